"""The sampler against a slow oracle that goes through llama.cpp's chain one filter at a time.

What native code draws from a row is held to the same meaning in ``templates/test_draw_kernels.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzc.errors import InternalError, UsageError
from ryzc.runtime.sampling import RowParameters, Sampler, SamplingParams, noise, reference
from ryzc.runtime.sampling.adjustments import Adjustments

F32 = npt.NDArray[np.float32]
VOCAB = 24


def oracle(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]
) -> list[tuple[int, float]]:
    """Ids with their probabilities, best first."""
    recent = [*prompt, *generated]
    if params.repeat_last_n >= 0:
        recent = recent[len(recent) - params.repeat_last_n :] if params.repeat_last_n < len(recent) else recent
    items = []
    for id_, logit in enumerate(logits):
        if params.repeat_last_n and id_ in recent:
            logit = logit / params.repeat_penalty if logit > 0 else logit * params.repeat_penalty
        count = list(generated).count(id_)
        logit -= count * params.frequency_penalty + (count > 0) * params.presence_penalty
        items.append((id_, logit + params.logit_bias.get(id_, 0)))
    items = [(id_, logit) for id_, logit in items if logit > -math.inf]
    items.sort(key=lambda item: (-item[1], item[0]))
    if params.temperature == 0:
        return [(items[0][0], 1.0)]
    if params.top_k:
        items = items[: params.top_k]
    if params.typical_p < 1:
        items = _typical(items, params.typical_p)
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


def _typical(items: list[tuple[int, float]], share: float) -> list[tuple[int, float]]:
    best = items[0][1]
    total = sum(math.exp(logit - best) for _, logit in items)
    chances = {id_: math.exp(logit - best) / total for id_, logit in items}
    entropy = -sum(p * math.log(p) for p in chances.values())
    order = sorted(items, key=lambda item: round(abs(-math.log(chances[item[0]]) - entropy), 9))
    kept, reached = set(), 0.0
    for id_, _ in order:
        kept.add(id_)
        reached += chances[id_]
        if reached > share:
            break
    return [item for item in items if item[0] in kept]


def draw(sampler: Sampler, logits: Sequence[float], position: int = 0, most: int = 256) -> int:
    """One token of a row, as native code draws it."""
    rows = RowParameters(1, 32 * -(-len(logits) // 32))
    assert sampler.prepare(rows, 0, position) == 1
    return reference.draw(reference.adjusted(np.array(logits, np.float32), rows, 0), rows.records[0], most)


# Whole multiples, and shares that no sum of them comes close to: no filter's border falls between two roundings.
logit_rows = st.lists(st.integers(-24, 24).map(lambda n: n / 4), min_size=1, max_size=VOCAB)
histories = st.lists(st.integers(0, VOCAB - 1), max_size=8)
settings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.5]),
    top_k=st.integers(0, 30),
    top_p=st.sampled_from([0.0, 0.1, 0.513, 0.907, 0.951, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.05, 0.3, 0.99]),
    seed=st.integers(0, 1 << 40),
    repeat_penalty=st.sampled_from([0.5, 1.0, 1.0, 2.0]),
    repeat_last_n=st.sampled_from([-1, 0, 3, 64]),
    typical_p=st.sampled_from([1.0, 1.0, 0.213, 0.907]),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -0.5]),
    logit_bias=st.dictionaries(st.integers(1, VOCAB - 1), st.sampled_from([-math.inf, -2.0, 0.0, 1.5]), max_size=4),
)


def fitting(params: SamplingParams, size: int, *histories: list[int]) -> tuple[SamplingParams, list[list[int]]]:
    """The same about a smaller vocabulary."""
    bias = {id_: bias for id_, bias in params.logit_bias.items() if id_ < size}
    return SamplingParams(**{**vars(params), "logit_bias": bias}), [[i for i in h if i < size] for h in histories]


@given(logit_rows, settings, histories, histories, st.integers(0, 1 << 50))
def test_draws_as_the_oracle(
    logits: list[float], params: SamplingParams, prompt: list[int], generated: list[int], position: int
) -> None:
    """The winner of the race: among the oracle's tokens, that with the largest sum of log probability and noise."""
    params, (prompt, generated) = fitting(params, len(logits), prompt, generated)
    sampler = Sampler(params, vocab_size=len(logits), prompt=prompt)
    for id_ in generated:
        sampler.accept(id_)
    expected = oracle(logits, params, prompt, generated)
    values = noise.gumbel(sampler.seed, position, np.array([id_ for id_, _ in expected]))
    scores = np.array([math.log(p) if p else -math.inf for _, p in expected]) + values
    drawn = draw(sampler, logits, position)
    near = {expected[i][0] for i in np.flatnonzero(scores >= scores.max() - 1e-5)}
    assert drawn in near


@given(settings, histories, st.lists(st.integers(0, VOCAB - 1), max_size=6), st.integers(0, 100))
def test_drafts_are_prepared_as_if_accepted(
    params: SamplingParams, prompt: list[int], drafts: list[int], position: int
) -> None:
    """Row by row what a sampler prepares that accepted the drafts so far; and afterwards nothing has changed."""
    sampler = Sampler(params, vocab_size=VOCAB, prompt=prompt)
    together = RowParameters(len(drafts) + 3, 32)
    assert sampler.prepare(together, 2, position, drafts) == len(drafts) + 1
    logits = np.linspace(-3, 3, VOCAB, dtype=np.float32)
    follower = copy.deepcopy(sampler)
    for i, draft in enumerate([*drafts, 0]):
        alone = RowParameters(1, 32)
        follower.prepare(alone, 0, position + i)
        np.testing.assert_array_equal(reference.adjusted(logits, alone, 0), reference.adjusted(logits, together, 2 + i))
        for name in ("seed", "position", "inverse_temperature", "top_p", "log_min_p", "typical_p", "top_k", "masked"):
            assert alone.records[0][name] == together.records[2 + i][name]
        follower.accept(draft)
    again = RowParameters(len(drafts) + 3, 32)
    sampler.prepare(again, 2, position, drafts)
    for i in range(2, len(drafts) + 3):
        np.testing.assert_array_equal(reference.adjusted(logits, again, i), reference.adjusted(logits, together, i))


@given(settings, histories, st.lists(st.integers(-1, VOCAB - 1), max_size=30))
def test_adjustments_can_be_taken_back(params: SamplingParams, prompt: list[int], moves: list[int]) -> None:
    """Whatever was pushed and popped, the entries are those of the tokens that stayed."""
    moving, kept = Adjustments(params, prompt), []
    for move in moves:
        if move >= 0:
            moving.push(move)
            kept.append(move)
        elif kept:
            moving.pop(kept.pop())
    fresh = Adjustments(params, prompt)
    for id_ in kept:
        fresh.push(id_)
    assert entries(moving) == entries(fresh)
    assert len(moving) == len(entries(moving))


def entries(adjustments: Adjustments) -> dict[int, tuple[float, float]]:
    rows = RowParameters(1, 32)
    start, count = adjustments.write(rows)
    part = slice(start, start + count)
    found = zip(rows.ids[part].tolist(), rows.factors[part].tolist(), rows.offsets[part].tolist(), strict=True)
    return {id_: (factor, offset) for id_, factor, offset in found}


def test_history_slides() -> None:
    params = SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=2)
    sampler = Sampler(params, vocab_size=4, prompt=[3, 3, 3])
    drawn = []
    for position in range(5):
        drawn.append(draw(sampler, [4.0, 3.9, 3.8, 0.0], position))
        sampler.accept(drawn[-1])
    assert drawn == [0, 1, 2, 0, 1]


def test_generated_tokens_count_but_not_the_prompt() -> None:
    params = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    sampler = Sampler(params, vocab_size=4, prompt=[0, 0, 0])
    drawn = []
    for position in range(6):
        drawn.append(draw(sampler, [2.0, 1.9, 1.0, 0.0], position))
        sampler.accept(drawn[-1])
    # 2, 1.25, 1, 0.75 and 1.9, 1.15, 0.9 and 1
    assert drawn == [0, 1, 0, 1, 0, 2]


def test_candidates() -> None:
    def needed(vocab: int = 1000, **params: float) -> int:
        return Sampler(SamplingParams(**params), vocab_size=vocab, max_candidates=64).candidates  # type: ignore[arg-type]

    assert needed(temperature=0) == 1
    assert needed(temperature=0, repeat_penalty=1.1) == 1
    assert needed() == 40
    assert needed(top_k=64) == 64
    assert needed(top_k=65) == needed(top_k=0) == 1
    assert needed(vocab=40) == needed(vocab=30) == 1
    assert needed(top_k=0, typical_p=0.5) == needed(top_k=999, typical_p=0.5) == 64
    assert needed(vocab=50, top_k=0, typical_p=0.5) == 50


def test_greedy_ties_go_to_the_lower_id() -> None:
    assert draw(Sampler(SamplingParams(temperature=0), vocab_size=5), [1, 3, 3, 3, 0]) == 1


def test_a_seed_and_a_position_make_a_token() -> None:
    logits = np.random.default_rng(5).standard_normal(50).tolist()

    def choices(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed, top_k=0, min_p=0, temperature=2.0), vocab_size=50)
        return [draw(sampler, logits, position) for position in range(40)]

    assert choices(7) == choices(7)
    assert choices(7) != choices(8)
    assert choices(None) != choices(None)
    assert len(set(choices(7))) > 5


def test_bans_and_biases() -> None:
    logits = [3.0, 2.0, 1.0, 0.0]
    ban = SamplingParams(temperature=0, logit_bias={0: -math.inf, 3: 1.5})
    assert draw(Sampler(ban, vocab_size=4), logits) == 1
    assert draw(Sampler(SamplingParams(temperature=0, logit_bias={3: 3.5}), vocab_size=4), logits) == 3
    nothing = Sampler(SamplingParams(logit_bias=dict.fromkeys(range(4), -math.inf)), vocab_size=4)
    assert draw(nothing, logits) == -1
    with pytest.raises(InternalError, match="no token can be drawn"):
        nothing.accept(-1)


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
        ("typical_p", -0.1),
        ("presence_penalty", math.inf),
        ("frequency_penalty", math.nan),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: math.inf}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: 1e31}),
    ],
)
def test_refuses_values_out_of_range(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "-")) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.hint


def test_refuses_a_bias_of_no_token() -> None:
    with pytest.raises(UsageError, match="no token 9"):
        Sampler(SamplingParams(logit_bias={9: 1.0}), vocab_size=9)


@pytest.mark.parametrize("temperature", [1e-310, 5e-324, 1e-37])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, seed=1), vocab_size=3)
    assert {draw(sampler, [1.0, 2.0, 1.5], position) for position in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e30, 1e308])
def test_huge_temperature_is_a_dice(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, seed=1, top_p=1, min_p=0), vocab_size=3)
    assert {draw(sampler, [1.0, 2.0, 1.5], position) for position in range(20)} == {0, 1, 2}


def test_rows_are_checked_and_used_up() -> None:
    rows = RowParameters(4, 32)
    sampler = Sampler(SamplingParams(seed=1, repeat_penalty=1.1), vocab_size=9, prompt=[1, 2, 3])
    for first, drafts in ((-1, []), (4, []), (2, [0, 0])):
        with pytest.raises(UsageError, match="up to 4"):
            sampler.prepare(rows, first, 0, drafts)
    rows.clear()
    assert not rows.records.view(np.uint8).any()
    sampler.prepare(rows, 3, 0)
    assert rows.records["adjustment_count"].tolist() == [0, 0, 0, 3]
    assert rows.most_candidates(4) == 0
    Sampler(SamplingParams(seed=1), vocab_size=99).prepare(rows, 1, 0)
    assert rows.most_candidates(4) == 40
    assert rows.most_candidates(1) == 0


def test_adjustments_have_no_limit() -> None:
    rows = RowParameters(40, 4096)
    params = SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=-1)
    sampler = Sampler(params, vocab_size=4000, prompt=range(2000))
    before = rows.generation
    sampler.prepare(rows, 0, 0, [3999] * 39)
    assert rows.generation > before
    logits = np.ones(4000, np.float32)
    for row, penalized in ((0, 2000), (1, 2001), (39, 2001)):
        assert (reference.adjusted(logits, rows, row) == 0.5).sum() == penalized
