"""Perplexity by llama.cpp's method.

The text's tokens are cut into windows of ``context`` tokens, the rest is dropped. Each window is run
on its own, its first token replaced by BOS where the tokenizer adds one. The second half is scored:
the logits at positions ``context / 2 .. context - 2``, each for the token that follows. So every
prediction has at least half a window before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ryzc.errors import UsageError
from ryzc.runtime.model import Model
from ryzc.runtime.prompts import first_token

MIN_CONTEXT = 4


@dataclass(frozen=True)
class Perplexity:
    """What a text's tokens cost.

    Attributes:
        value: ``exp`` of the mean negative log likelihood of the scored tokens.
        error: one standard error of ``value``.
        windows: the same of each window alone.
        scored: tokens scored.
        context: tokens of a window.
    """

    value: float
    error: float
    windows: tuple[float, ...]
    scored: int
    context: int


def perplexity(
    model: Model,
    text: str,
    *,
    context: int = 512,
    chunks: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Perplexity:
    """Measure a text's perplexity.

    Args:
        model: loaded with at least ``context`` tokens.
        text: at least one window long; control tokens written out in it are plain text.
        context: tokens of a window.
        chunks: only the first so many windows.
        progress: called after each window with the windows done, those in all, and the value so far.

    Raises:
        UsageError: the text is too short, or an argument makes no sense.
    """
    return of_tokens(
        model, model.tokenizer.encode(text, parse_special=False), context=context, chunks=chunks, progress=progress
    )


def of_tokens(
    model: Model,
    ids: Sequence[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Perplexity:
    """The same for a text in tokens; see :func:`perplexity`."""
    if not MIN_CONTEXT <= context <= model.context:
        raise UsageError(
            f"windows of {context} tokens are not possible", hint=f"choose {MIN_CONTEXT} to {model.context} (-c)"
        )
    if chunks is not None and chunks < 1:
        raise UsageError(f"{chunks} windows make no perplexity", hint="choose 1 or more (--chunks)")
    available = len(ids) // context
    if available == 0:
        raise UsageError(
            f"the text has {len(ids)} tokens, less than one window of {context}",
            hint="take a longer text or a smaller window (-c)",
        )
    count = available if chunks is None else min(chunks, available)
    bos = first_token(model.tokenizer)
    costs: list[npt.NDArray[np.float64]] = []
    for i in range(count):
        window = list(ids[i * context : (i + 1) * context])
        targets = window[1:]
        if bos is not None:
            window[0] = bos
        costs.append(_costs(model, window, targets))
        if progress is not None:
            progress(i + 1, count, math.exp(float(np.concatenate(costs).mean())))
    every = np.concatenate(costs)
    value = math.exp(float(every.mean()))
    return Perplexity(
        value=value,
        error=value * float(every.std(ddof=1)) / math.sqrt(len(every)),
        windows=tuple(math.exp(float(cost.mean())) for cost in costs),
        scored=len(every),
        context=context,
    )


def _costs(model: Model, window: list[int], targets: list[int]) -> npt.NDArray[np.float64]:
    """Negative log likelihoods of the scored tokens of a window."""
    first = len(window) // 2
    costs = np.empty(len(window) - 1 - first, np.float64)
    for start, result in model.evaluate(window[:-1], first):
        for row in range(len(result.row_max)):
            logit = float(result.full(row)[targets[start + row]])
            costs[start + row - first] = math.log(float(result.row_sum[row])) + float(result.row_max[row]) - logit
    return costs
