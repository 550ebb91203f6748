from __future__ import annotations

from pathlib import Path

import pytest
import tiny_chat


@pytest.fixture(scope="session")
def chat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a chat template; tests must not change it."""
    return tiny_chat.write(tmp_path_factory.mktemp("bundles") / "tiny.ryzc")


@pytest.fixture(scope="session")
def base_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without one."""
    return tiny_chat.write(tmp_path_factory.mktemp("bundles") / "base.ryzc", template=None)
