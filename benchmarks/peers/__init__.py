"""Inference engines that can be timed, one file each.

A peer runs alone in a process of its own (:mod:`benchmarks.worker`), so that its thread pool and its
memory meet nobody else's. A new peer is a file here that has a function ``load`` with the signature below.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

NAMES = ("ryzc", "llama_cpp")
"""The peers there are, in the order in which a round runs them."""


class Peer(Protocol):
    """A loaded model that can be timed. Times are wall seconds of the engine alone, tokenizer and sampler left out."""

    def prefill(self, tokens: Sequence[int]) -> float:
        """Forget everything, then take in a prompt; the logits of its last token are made."""

    def decode(self, tokens: Sequence[int]) -> float:
        """Append tokens one by one to whatever the sequence holds; logits are made for each."""

    def about(self) -> dict[str, str | int | float]:
        """Version, settings, and whatever else a reader needs to judge the figures."""

    def close(self) -> None:
        """Free the model."""


class Loader(Protocol):
    """The function ``load`` of a peer's file."""

    def __call__(self, model: Path, *, threads: int, context: int) -> Peer:
        """Load a model so that ``context`` tokens fit, in the engine's best setting."""


def loader(name: str) -> Loader:
    """The ``load`` of a peer by its name in :data:`NAMES`."""
    module = importlib.import_module(f"benchmarks.peers.{name if name != 'ryzc' else 'ryzc_'}")
    return cast(Loader, module.load)
