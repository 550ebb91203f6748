"""What a format of keys and values costs: perplexity beside that of the same model with float16.

The text is the documentation that every CPython carries, in windows by the method of :mod:`.perplexity`. The same
windows go through both bundles, so what is uncertain is not a perplexity but the difference, window by window.

A difference has noise of its own where activations are quantized: codes tip over wherever keys or values move at all.
On SmolLM2 135M float32 instead of float16 changes 20 windows by 0.09 % with a standard error of 0.10 %.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ryzc.bundle import Bundle
from ryzc.kv_formats import KV_FORMATS, KVFormat
from ryzc.runtime.model import load
from ryzc.runtime.perplexity import Perplexity, perplexity

CONTEXT = 512
WINDOWS = 24
"""What a build measures; 20 s on SmolLM2 135M, both bundles, one thread."""
_CHARACTERS = 16
"""A token has fewer on average: so much text is enough for a window's."""


@dataclass(frozen=True)
class Cost:
    """A format beside float16.

    Attributes:
        format: of keys and values.
        perplexity, reference: with it, and with float16.
        share: what it costs, as a share of the reference; below 0 it came out better.
        error: one standard error of ``share``.
    """

    format: KVFormat
    perplexity: float
    reference: float
    share: float
    error: float

    @property
    def excessive(self) -> bool:
        """Whether it costs more than the format's bound, by more than the measurement's error."""
        return self.share - self.error > self.format.bound

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.4f} beside {self.reference:.4f} with f16,"
            f" {self.share:+.2%} ± {self.error:.2%}"
        )


def text() -> str:
    """The documentation's topics, with blank lines between."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[key] for key in sorted(topics))


def measure(
    bundle: str | Path,
    *,
    context: int = CONTEXT,
    windows: int = WINDOWS,
    of: str | None = None,
    threads: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Perplexity:
    """The perplexity of a bundle on the first windows of a text.

    Args:
        context: tokens of a window; fewer where the model was trained for fewer.
        of: the text; :func:`text` where none is given.

    Raises:
        RyzcError: the bundle cannot be loaded, or the text is shorter than one window.
    """
    size = min(context, Bundle.open(bundle).plan.context_length)
    words = (text() if of is None else of)[: size * windows * _CHARACTERS]
    with load(bundle, context=size, threads=threads) as model:
        return perplexity(model, words, context=size, chunks=windows, progress=progress)


def cost(name: str, found: Perplexity, reference: Perplexity) -> Cost:
    """What a format costs, both perplexities being of the same windows."""
    differences = [math.log(a / b) for a, b in zip(found.windows, reference.windows, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    share = found.value / reference.value - 1
    return Cost(KV_FORMATS[name], found.value, reference.value, share, error)
