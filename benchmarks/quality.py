"""How well an engine computes a model, so that no speed stands without its quality.

Perplexity by llama.cpp's method (windows of 512 tokens, each after the beginning-of-sequence token where the model has
one, the second half scored) on a text that everybody has: the documentation that CPython carries, in order of its keys.
"""

from __future__ import annotations

import math
import pydoc_data.topics
from collections.abc import Sequence

from benchmarks.worker import PeerError, Worker

CONTEXT = 512


def text() -> str:
    """The documentation's topics, with blank lines between."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[key] for key in sorted(topics))


def windows(ours: Worker, count: int) -> list[list[int]]:
    """The first ``count`` windows of the text, cut by ryzc's tokenizer."""
    cut: list[list[int]] = ours.call("windows", text=text(), context=CONTEXT, count=count)
    return cut


def perplexities(workers: Sequence[Worker], cut: Sequence[Sequence[int]]) -> dict[str, float | str]:
    """By engine, its perplexity on some windows, or why it has none."""
    found: dict[str, float | str] = {}
    for worker in workers:
        try:
            found[worker.name] = math.exp(worker.call("nll", windows=cut))
        except PeerError as error:
            found[worker.name] = str(error)
    return found
