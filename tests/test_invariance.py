"""The real models' logits have the same bits at any thread count, however a prompt is cut, and in any company."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import ryzc
from ryzc.runtime.step import CompiledModel

CONTEXT = 640
LONG = 560
"""Tokens of the prompt: more than a step takes, and more than Gemma's window of 512."""
SHORT = 40


@pytest.fixture(scope="module", params=["smollm2_path", "gemma3_path"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source: Path = request.getfixturevalue(request.param)
    return ryzc.build(source, tmp_path_factory.mktemp("invariance") / "model.ryzc")


@pytest.fixture
def model(bundle: Path) -> Iterator[CompiledModel]:
    with _open(bundle, 1) as opened:
        yield opened


def _open(bundle: Path, threads: int, sequences: int = 1) -> CompiledModel:
    model = CompiledModel(bundle, context=CONTEXT, threads=threads, sequences=sequences)
    order = np.random.default_rng(threads).permutation(model.pages).astype(np.int32)
    model.page_table[:] = order.reshape(model.page_table.shape)
    return model


def _tokens(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 40_000, count)


def _last(
    model: CompiledModel, tokens: npt.NDArray[np.int64], sizes: Sequence[int], wanted: int
) -> npt.NDArray[np.float32]:
    """Logits of the last ``wanted`` tokens, the prompt fed in chunks of these sizes."""
    start, found = 0, []
    for size in sizes:
        part = np.arange(start, start + size)
        rows = np.flatnonzero(part >= len(tokens) - wanted)
        for block in [rows[i : i + model.max_rows] for i in range(0, len(rows), model.max_rows)] or [rows]:
            found.append(model.step(tokens[part], part, np.zeros(size), block).all_logits.copy())
        start += size
    assert start == len(tokens)
    return np.concatenate(found)


def test_chunks_and_threads(bundle: Path, model: CompiledModel) -> None:
    tokens = _tokens(SHORT)
    whole = _last(model, tokens, [SHORT], SHORT)
    assert np.isfinite(whole).all()
    for sizes in ([1] * SHORT, [7, 33], [32, 8], [5, 6, 1, 28]):
        assert np.array_equal(_last(model, tokens, sizes, SHORT), whole)
    with _open(bundle, 2) as two:
        assert np.array_equal(_last(two, tokens, [SHORT], SHORT), whole)
        assert np.array_equal(_last(two, tokens, [1] * SHORT, SHORT), whole)


def test_a_prompt_longer_than_a_step_and_than_the_window(bundle: Path, model: CompiledModel) -> None:
    tokens = _tokens(LONG, seed=1)
    whole = _last(model, tokens, [512, LONG - 512], 8)
    with _open(bundle, 2) as two:
        assert np.array_equal(_last(two, tokens, [100] * 5 + [LONG - 500], 8), whole)
        assert np.array_equal(_last(two, tokens, [512] + [1] * (LONG - 512), 8), whole)


def test_company(bundle: Path, model: CompiledModel) -> None:
    """A sequence decoded beside two others, one of which is still taking in its prompt."""
    tokens, other, third = _tokens(SHORT), _tokens(SHORT, seed=2), _tokens(4 * SHORT, seed=3)
    whole = _last(model, tokens, [SHORT], SHORT)
    with _open(bundle, 2, sequences=3) as shared:
        found = []
        for i in range(SHORT):
            chunk = np.arange(4 * i, 4 * i + 4)
            batch = np.concatenate([other[i : i + 1], third[chunk], tokens[i : i + 1]])
            places = np.concatenate([[i], chunk, [i]])
            owners = np.array([1, 2, 2, 2, 2, 0])
            found.append(shared.step(batch, places, owners, [5]).all_logits.copy())
        assert np.array_equal(np.concatenate(found), whole)
