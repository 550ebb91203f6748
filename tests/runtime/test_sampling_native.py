"""Sampling through a whole compiled step: what the runtime sets is what native code reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from compiled import runnable_targets, write_bundle

from ryzc.errors import UsageError
from ryzc.runtime.kv import PagePool
from ryzc.runtime.sampling import RowParameters, Sampler, SamplingParams, reference
from ryzc.runtime.step import CompiledModel, StepResult

VOCAB = 2100
KINDS = {
    "greedy": SamplingParams(temperature=0),
    "defaults": SamplingParams(seed=3),
    "whole": SamplingParams(temperature=1.3, top_k=0, top_p=0.9, min_p=0, seed=4),
    "penalties": SamplingParams(seed=5, repeat_penalty=1.3, presence_penalty=0.2, logit_bias={7: -math.inf}),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sampling") / "tiny.ryzc"
    return write_bundle(tiny_models.llama(vocab=VOCAB), directory, target=runnable_targets()[0])


@pytest.fixture
def model(bundle: Path) -> Iterator[CompiledModel]:
    with open_(bundle, 2) as opened:
        yield opened


def open_(bundle: Path, threads: int) -> CompiledModel:
    opened = CompiledModel(bundle, context=64, threads=threads)
    PagePool(opened.pages, opened.page_tokens, opened.page_table).resize(0, 64)
    return opened


def step(model: CompiledModel, rows: list[int], candidates: int = 40) -> StepResult:
    tokens = np.arange(8) * 31 % VOCAB
    return model.step(tokens, np.arange(8), np.zeros(8), rows, candidates)


def test_draws_from_the_adjusted_row(model: CompiledModel) -> None:
    raw = step(model, list(range(8))).all_logits.copy()
    for name, params in KINDS.items():
        sampler = Sampler(params, vocab_size=VOCAB, prompt=range(50), max_candidates=model.max_candidates)
        expected = RowParameters(8, model.plan.logits_stride)
        for rows in (model.row_parameters, expected):
            sampler.prepare(rows, 2, 11, [1, 2, 3])
        found = step(model, list(range(8)))
        for row in range(8):
            adjusted = reference.adjusted(raw[row], expected, row)
            np.testing.assert_array_equal(found.all_logits[row], adjusted)
            assert found.drawn[row] == reference.draw(adjusted, expected.records[row], model.max_candidates), name
            assert found.row_max[row] == adjusted.max()
        np.testing.assert_array_equal(found.drawn[[0, 1, 6, 7]], raw[[0, 1, 6, 7]].argmax(axis=1))


def test_a_raw_row_beside_an_adjusted_one(model: CompiledModel) -> None:
    raw = step(model, [5]).all_logits.copy()
    sampler = Sampler(KINDS["penalties"], vocab_size=VOCAB, prompt=range(50))
    sampler.prepare(model.row_parameters, 0, 0)
    found = step(model, [5, 5])
    np.testing.assert_array_equal(found.all_logits[1], raw[0])
    assert (found.all_logits[0] != raw[0]).sum() == 50


def test_a_step_uses_parameters_up(model: CompiledModel) -> None:
    raw = step(model, [7]).all_logits.copy()
    sampler = Sampler(KINDS["penalties"], vocab_size=VOCAB, prompt=range(50))
    sampler.prepare(model.row_parameters, 0, 0)
    assert (step(model, [7]).all_logits != raw).any()
    assert (step(model, [7]).all_logits == raw).all()
    sampler.prepare(model.row_parameters, 0, 0)
    with pytest.raises(UsageError, match="token ids"):
        model.step([VOCAB], [0], [0], [0], 40)
    assert (step(model, [7]).all_logits == raw).all()


def test_more_adjustments_than_there_was_room_for(model: CompiledModel) -> None:
    raw = step(model, list(range(8))).all_logits.copy()
    params = SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=-1)
    Sampler(params, vocab_size=VOCAB, prompt=range(2000)).prepare(model.row_parameters, 0, 0, list(range(2000, 2007)))
    found = step(model, list(range(8))).all_logits
    assert [int((a != b).sum()) for a, b in zip(found, raw, strict=True)] == [2000 + i for i in range(8)]


def test_too_few_candidates_are_refused(model: CompiledModel) -> None:
    Sampler(KINDS["defaults"], vocab_size=VOCAB).prepare(model.row_parameters, 1, 0)
    with pytest.raises(UsageError, match="40 best tokens, but the step finds 39"):
        step(model, [0, 1], candidates=39)
    Sampler(KINDS["defaults"], vocab_size=VOCAB).prepare(model.row_parameters, 1, 0)
    step(model, [0], candidates=1)


def test_masks(model: CompiledModel) -> None:
    rows = model.row_parameters
    rows.masks[0] = 0
    rows.masks[0, 1234 // 32] = 1 << (1234 % 32)
    rows.put(0, (1, 1, 1.0, 1.0, -math.inf, 1.0, 0, 1, 0, 0))
    found = step(model, [3], candidates=1)
    assert found.drawn[0] == 1234
    assert np.isfinite(found.all_logits[0]).sum() == 1
    assert abs(found.row_sum[0] - 1) < 1e-6


def test_threads_change_no_draw(bundle: Path) -> None:
    drawn = []
    for threads in (1, 3):
        with open_(bundle, threads) as model:
            for i, params in enumerate(KINDS.values()):
                sampler = Sampler(params, vocab_size=VOCAB, prompt=range(50))
                sampler.prepare(model.row_parameters, 2 * i, i, [5])
            drawn.append(step(model, list(range(8))).drawn.tolist())
    assert drawn[0] == drawn[1]
