"""What the server needs of an engine: :class:`ryzc.runtime.engine.Engine`, or a stand-in in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ryzc.runtime.metrics import Metrics
from ryzc.runtime.request import Delta, TokenLogprob
from ryzc.runtime.stream import Stream
from ryzc.runtime.tokenizer import Tokenizer

__all__ = ["Delta", "Engine", "Stream", "TokenLogprob"]


class Engine(Protocol):
    """A loaded model that answers many requests at a time."""

    tokenizer: Tokenizer
    context: int
    metrics: Metrics

    def submit(self, prompt: Sequence[int], **options: Any) -> Stream:
        """Ask for an answer; see :class:`ryzc.runtime.request.Options`."""

    def close(self, *, drain: bool = False) -> None:
        """End, with what runs cancelled or finished."""
