"""What tests of every room share: the real models, fetched by ryzc's own pull, and hypothesis profiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from ryzc.sources import pull

# Examples are drawn the same way in every run: a failure in CI is a failure here.
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("default")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: llama architecture, byte-level BPE."""
    return pull("smollm2")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M: gemma3 architecture, SentencePiece."""
    return pull("gemma3-270m")
