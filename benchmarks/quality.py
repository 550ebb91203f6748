"""How well an engine computes a model, so that no speed stands without its quality.

Perplexity by llama.cpp's method (windows of 512 tokens, each after the beginning-of-sequence token where the model has
one, the second half scored) on a text that everybody has: the documentation that CPython carries, in order of its keys.
"""

from __future__ import annotations

import math
import pydoc_data.topics
from collections.abc import Sequence

from benchmarks import peers
from benchmarks.worker import PeerError, Worker

CONTEXT = 512


def text() -> str:
    """The documentation's topics, with blank lines between."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[key] for key in sorted(topics))


def perplexities(workers: Sequence[Worker], count: int) -> dict[str, float | str]:
    """By engine, its perplexity on the first ``count`` windows (ryzc's tokenizer cuts them), or why it has none."""
    ours = next(worker for worker in workers if peers.is_ours(worker.name))
    windows = ours.call("windows", text=text(), context=CONTEXT, count=count)
    found: dict[str, float | str] = {}
    for worker in workers:
        try:
            found[worker.name] = math.exp(worker.call("nll", windows=windows))
        except PeerError as error:
            found[worker.name] = str(error)
    return found
