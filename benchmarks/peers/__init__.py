"""Inference engines that can be timed, one file each.

A peer runs alone in a process of its own (:mod:`benchmarks.worker`), so that its thread pool and its
memory meet nobody else's. A new peer is a file here that has a function ``load`` with the signature below,
and a recipe in :mod:`benchmarks.peers.build` where it is not a plain Python package.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from benchmarks.peers import build

NATIVE = ("ryzc", "llama_cpp", "ik_llama_cpp")
"""The engines at their best on this CPU, in the order in which a round runs them."""
AVX2 = ("ryzc_avx2", "llama_cpp_avx2", "ik_llama_cpp_avx2")
"""The same, held to what Zen 2 and Zen 3 can do."""
NAMES = NATIVE + AVX2
AVX2_TARGET = "znver3"
"""The target that ryzc takes this CPU for where it is held to AVX2."""


def is_ours(name: str) -> bool:
    """Whether an engine is ryzc."""
    return name.startswith("ryzc")


def title(name: str) -> str:
    """An engine's name for people."""
    base, suffix = name.removesuffix("_avx2"), " (AVX2)" * name.endswith("_avx2")
    return base.replace("_cpp", ".cpp") + suffix


def environment(name: str) -> dict[str, str]:
    """Environment variables that an engine's process needs.

    Raises:
        FileNotFoundError: it is not built.
    """
    if is_ours(name):
        return {"RYZC_CPU": AVX2_TARGET} if name.endswith("_avx2") else {}
    return build.environment(name)


class Peer(Protocol):
    """A loaded model that can be timed.

    Times are wall seconds of the engine alone, tokenizer and sampler left out. ``sequences`` above 1 are
    independent sequences that hold the same tokens.
    """

    def prefill(self, tokens: Sequence[int]) -> float:
        """Forget everything, then take in a prompt; the logits of its last token are made."""

    def fill(self, tokens: Sequence[int], sequences: int, imitate: bool) -> None:
        """Make each sequence hold ``tokens``, not timed; a lone sequence that begins with them is only cut.

        Args:
            imitate: the lone sequence may be filled with copies of the keys and values of its first tokens: as much
                to read as a context of that depth, for a fraction of the time. Not where layers see a window.
        """

    def decode(self, tokens: Sequence[int], sequences: int, at_once: int) -> float:
        """Append ``tokens`` to every sequence, ``at_once`` of them to each in a step; logits are made for each."""

    def nll(self, windows: Sequence[Sequence[int]]) -> float:
        """Mean negative log likelihood of the second half of each window, see :mod:`benchmarks.quality`."""

    def about(self) -> dict[str, str | int | float]:
        """Version, settings, and whatever else a reader needs to judge the figures."""

    def close(self) -> None:
        """Free the model."""


class Loader(Protocol):
    """The function ``load`` of a peer's file."""

    def __call__(self, model: Path, *, threads: int, context: int, sequences: int, each: int) -> Peer:
        """Load a model in the engine's best setting.

        Args:
            context: tokens that must fit into a lone sequence.
            sequences: sequences that may be decoded together.
            each: tokens that must fit into each of these.
        """


def loader(name: str) -> Loader:
    """The ``load`` of a peer by its name in :data:`NAMES`."""
    base = name.removesuffix("_avx2")
    module = importlib.import_module(f"benchmarks.peers.{base if base != 'ryzc' else 'ryzc_'}")
    return cast(Loader, module.load)
