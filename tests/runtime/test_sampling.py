"""Sampling against a slow oracle that goes through llama.cpp's chain one filter at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzc.errors import InternalError, UsageError
from ryzc.runtime.sampling import Sampler, SamplingParams

F32 = npt.NDArray[np.float32]


@dataclass
class Rows:
    """A step's result for one row."""

    ids: npt.NDArray[np.int32]
    logits: F32
    whole: F32

    def full(self, row: int) -> F32:
        assert row == 0
        return self.whole


def rows(logits: Sequence[float] | F32, candidates: int) -> Rows:
    whole = np.asarray(logits, np.float32)
    order = np.argsort(-whole, kind="stable")[:candidates].astype(np.int32)
    return Rows(order[None], whole[order][None], whole)


def oracle(logits: F32, params: SamplingParams, recent: Sequence[int]) -> list[tuple[int, float]]:
    """Ids with their probabilities, best first."""
    items = []
    for id_, logit in enumerate(float(x) for x in logits):
        if params.repeat_last_n and id_ in recent:
            logit = logit / params.repeat_penalty if logit > 0 else logit * params.repeat_penalty
        items.append((id_, logit))
    items.sort(key=lambda item: (-item[1], item[0]))
    if params.temperature == 0:
        return [(items[0][0], 1.0)]
    if params.top_k:
        items = items[: params.top_k]
    best = items[0][1]
    total = sum(math.exp(logit - best) for _, logit in items)
    kept, reached = [], 0.0
    for id_, logit in items:
        kept.append((id_, logit))
        reached += math.exp(logit - best) / total
        if params.top_p < 1 and reached >= params.top_p:
            break
    if params.min_p:
        kept = [(id_, logit) for id_, logit in kept if logit >= best + math.log(params.min_p)]
    weights = [math.exp((logit - best) / params.temperature) for _, logit in kept]
    return [(id_, weight / sum(weights)) for (id_, _), weight in zip(kept, weights, strict=True)]


def sampler(params: SamplingParams, vocab: int, max_candidates: int = 8, history: Sequence[int] = ()) -> Sampler:
    return Sampler(params, vocab_size=vocab, max_candidates=max_candidates, history=history)


# Whole multiples, so that no filter's border falls between two ways of rounding.
logit_rows = st.lists(st.integers(-24, 24).map(lambda n: n / 4), min_size=1, max_size=24)
settings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.5]),
    top_k=st.integers(0, 30),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.05, 0.3, 0.99]),
    seed=st.integers(0, 1 << 40),
    repeat_penalty=st.sampled_from([0.5, 1.0, 1.1, 2.0]),
    repeat_last_n=st.sampled_from([-1, 0, 3, 64]),
)


@given(logit_rows, settings, st.lists(st.integers(0, 23), max_size=8), st.integers(1, 30))
def test_draws_as_the_oracle(logits: list[float], params: SamplingParams, history: list[int], most: int) -> None:
    history = [id_ for id_ in history if id_ < len(logits)]
    s = sampler(params, len(logits), most, history)
    recent = history if params.repeat_last_n < 0 else history[max(0, len(history) - params.repeat_last_n) :]
    expected = oracle(np.asarray(logits, np.float32), params, recent)
    u = np.random.Generator(np.random.PCG64(params.seed)).random() if params.temperature else 0.0
    borders = np.cumsum([p for _, p in expected])
    chosen = s.pick(rows(logits, s.candidates))
    assert s.candidates <= most or most == 0
    near = {min(int(np.searchsorted(borders, v, side="right")), len(expected) - 1) for v in (u - 1e-9, u, u + 1e-9)}
    assert chosen in {expected[i][0] for i in near}


@given(logit_rows, settings, st.lists(st.integers(0, 23), max_size=8))
def test_candidates_suffice(logits: list[float], params: SamplingParams, history: list[int]) -> None:
    """Choosing among the candidates is choosing among all."""
    history = [id_ for id_ in history if id_ < len(logits)]
    few, all_ = (sampler(params, len(logits), most, history) for most in (len(logits), 0))
    assert few.pick(rows(logits, few.candidates)) == all_.pick(rows(logits, 1))


def test_penalized_tokens_cannot_crowd_out_the_right_one() -> None:
    logits = [5.0, 4.9, 4.8, 4.7, 4.6, 1.0]
    s = sampler(SamplingParams(temperature=0, repeat_penalty=10.0), 6, history=[0, 1, 2, 3, 3, 4])
    assert s.candidates == 6
    assert s.pick(rows(logits, s.candidates)) == 5


def test_history_slides_and_grows() -> None:
    params = SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=2)
    s = sampler(params, 4, history=[9, 9, 9])
    logits = [4.0, 3.9, 3.8, 0.0]
    assert [s.pick(rows(logits, s.candidates)) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_greedy_asks_for_one_candidate_and_ties_go_to_the_lower_id() -> None:
    s = sampler(SamplingParams(temperature=0), 5)
    assert s.candidates == 1
    assert s.pick(rows([1, 3, 3, 3, 0], 1)) == 1
    with_all = sampler(SamplingParams(temperature=0, repeat_penalty=0.9), 5, history=[0])
    assert with_all.pick(rows([1, 3, 3, 3, 0], 1)) == 1


def test_same_seed_same_choices() -> None:
    logits = np.random.default_rng(5).standard_normal(50, np.float32)

    def choices(seed: int | None) -> list[int]:
        s = sampler(SamplingParams(seed=seed, top_k=0, min_p=0, temperature=2.0), 50)
        return [s.pick(rows(logits, 1)) for _ in range(40)]

    assert choices(7) == choices(7)
    assert choices(7) != choices(8)
    assert choices(None) != choices(None)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=11),
        SamplingParams(seed=12, top_k=0, top_p=1, min_p=0, temperature=1.0),
        SamplingParams(seed=13, top_k=5, top_p=0.98, min_p=0.01, temperature=1.7),
    ],
    ids=["defaults", "everything", "narrow"],
)
def test_frequencies(params: SamplingParams) -> None:
    """Chi-square over 20,000 draws of a fixed seed: a distribution off by a few per cent would fail."""
    logits = np.random.default_rng(3).standard_normal(12).astype(np.float32)
    expected = oracle(logits, params, [])
    assert len(expected) > 2
    s = sampler(params, 12, 40)
    result = rows(logits, min(s.candidates, 12))
    draws = 20_000
    counts = np.bincount([s.pick(result) for _ in range(draws)], minlength=12)
    assert set(np.flatnonzero(counts)) <= {id_ for id_, _ in expected}
    chi_square = sum((counts[id_] - draws * p) ** 2 / (draws * p) for id_, p in expected)
    degrees = len(expected) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 1.01),
        ("top_p", -0.5),
        ("min_p", 2.0),
        ("repeat_penalty", 0.0),
        ("repeat_last_n", -2),
        ("seed", -1),
        ("seed", 1 << 64),
    ],
)
def test_refuses_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "-")) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.hint


def test_tiny_temperature_is_greedy() -> None:
    s = sampler(SamplingParams(temperature=1e-310, seed=1), 3)
    assert {s.pick(rows([1.0, 2.0, 1.5], 3)) for _ in range(20)} == {1}


def test_logits_that_are_no_numbers_are_our_fault() -> None:
    s = sampler(SamplingParams(top_k=0), 3)
    with pytest.raises(InternalError, match="not finite"):
        s.pick(rows([1.0, math.nan, 0.0], 1))
    with pytest.raises(InternalError, match="needs 3 candidates"):
        sampler(SamplingParams(), 3).pick(rows([1.0, 2.0, 0.0], 1))
