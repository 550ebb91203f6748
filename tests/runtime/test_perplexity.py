"""Perplexity against the definition, on a toy model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from toy_model import BOS, FIRST_LETTER, ToyStep, toy

from ryzc.errors import UsageError
from ryzc.runtime.perplexity import of_tokens, perplexity

TEXT = "the quick brown fox jumps over the lazy dog and runs away from the cat."


def expected(step: ToyStep, ids: list[int], context: int, *, bos: bool) -> list[list[float]]:
    """Costs a window, by the definition."""
    windows = []
    for start in range(0, len(ids) - context + 1, context):
        window = ids[start : start + context]
        seen = [BOS, *window[1:]] if bos else window
        costs = []
        for position in range(context // 2, context - 1):
            logits = step.logits(seen[: position + 1]).astype(np.float64)
            costs.append(float(np.log(np.exp(logits).sum()) - logits[window[position + 1]]))
        windows.append(costs)
    return windows


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("context", [4, 9, 16, 30])
def test_is_the_definition(context: int, add_bos: bool) -> None:
    model, step = toy(add_bos=add_bos)
    windows = expected(step, model.tokenizer.encode(TEXT), context, bos=add_bos)
    calls: list[tuple[int, int, float]] = []
    result = perplexity(model, TEXT, context=context, progress=lambda *args: calls.append(args))
    every = [cost for costs in windows for cost in costs]
    assert result.value == pytest.approx(math.exp(np.mean(every)), rel=1e-6)
    assert result.error == pytest.approx(result.value * np.std(every, ddof=1) / math.sqrt(len(every)), rel=1e-5)
    assert result.windows == pytest.approx([math.exp(np.mean(costs)) for costs in windows], rel=1e-6)
    assert result.scored == len(windows) * (context - 1 - context // 2)
    assert [call[:2] for call in calls] == [(i + 1, len(windows)) for i in range(len(windows))]
    assert calls[-1][2] == pytest.approx(result.value)


def test_first_windows_only() -> None:
    model, _ = toy()
    whole = perplexity(model, TEXT, context=16)
    part = perplexity(model, TEXT, context=16, chunks=2)
    assert part.windows == whole.windows[:2]
    assert perplexity(model, TEXT, context=16, chunks=99) == whole


def test_first_half_asks_for_no_logits() -> None:
    model, step = toy()
    of_tokens(model, [FIRST_LETTER] * 32, context=32)
    assert sum(len(batch.rows) for batch in step.batches) == 15
    assert sum(len(batch.tokens) for batch in step.batches) == 31


def test_refuses() -> None:
    model, _ = toy()
    with pytest.raises(UsageError, match="less than one window of 64"):
        perplexity(model, "short", context=64)
    with pytest.raises(UsageError, match="windows of 65"):
        perplexity(model, TEXT, context=65)
    with pytest.raises(UsageError, match="0 windows"):
        perplexity(model, TEXT, context=8, chunks=0)
