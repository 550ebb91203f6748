"""The cost model against brute force, on step times that are known."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzc.runtime.speculation import Draft
from ryzc.runtime.speculation.cost import Account, CostModel, StepCurve
from ryzc.runtime.speculation.speculator import Running, Speculator

CHANCES = st.lists(st.floats(0, 1), max_size=5)
TILES = (1.0, 1.1, 1.35, 1.15, 1.5, 1.7, 2.0, 1.65, 1.95, 2.1, 2.25, 2.2)
"""Steps of 1, 2, … tokens on a real machine: a step of 4 takes less than one of 3."""


def tiled(tokens: float) -> float:
    return TILES[int(tokens) - 1] if tokens <= len(TILES) else TILES[-1] * tokens / len(TILES)


def known(seconds: Callable[[float], float] = tiled, most: int = 40) -> CostModel:
    """A cost model that has seen all sizes."""
    cost = CostModel()
    for size in [*range(1, most)] * 50:
        cost.measured(size, size, seconds(size))
    return cost


def drafts(chances: Sequence[Sequence[float]]) -> list[Draft]:
    return [Draft(list(range(len(each))), list(each)) for each in chances]


def promised(chances: Sequence[Sequence[float]], counts: Sequence[int]) -> float:
    """Expected tokens of a step."""
    chains = (list(itertools.accumulate(each[:n], lambda a, b: a * b)) for each, n in zip(chances, counts, strict=True))
    return sum(1 + sum(chain) for chain in chains)


@given(st.lists(CHANCES, min_size=1, max_size=3))
def test_no_other_choice_is_faster(chances: list[list[float]]) -> None:
    counts = known().choose(drafts(chances), len(chances))
    rate = promised(chances, counts) / tiled(len(chances) + sum(counts))
    every = itertools.product(*(range(len(each) + 1) for each in chances))
    best = max(promised(chances, other) / tiled(len(chances) + sum(other)) for other in every)
    assert all(n <= len(each) for n, each in zip(counts, chances, strict=True))
    assert rate >= best / 1.0301  # less is not worth beginning to draft


@given(st.lists(CHANCES, min_size=1, max_size=4), st.integers(0, 5))
def test_room_is_kept(chances: list[list[float]], most: int) -> None:
    assert sum(known(lambda tokens: 1.0).choose(drafts(chances), len(chances), most=most)) <= most


def test_certain_drafts_are_all_verified_where_they_are_free() -> None:
    assert known(lambda tokens: 1.0).choose(drafts([[1.0] * 5, [1.0] * 3]), 2) == [5, 3]


def test_poor_drafts_are_left_alone() -> None:
    assert known().choose(drafts([[0.05] * 5]), 1) == [0]
    assert CostModel().choose(drafts([[1.0] * 5]), 1) == [0]


def test_a_full_tile_is_preferred_to_an_expensive_third_token() -> None:
    # Two drafts would take longer than three.
    assert known().choose(drafts([[0.9, 0.9, 0.05]]), 1) == [3]


def test_drafts_beside_a_prompt_earn_what_they_would_alone() -> None:
    cost = known(lambda tokens: 1 + 0.3 * tokens, most=300)
    # Beside the long prompt nothing is memory-bound: a draft costs as much as a token of a step that has no drafts.
    assert cost.choose(drafts([[0.2] * 4]), 256) == [0]
    assert cost.choose(drafts([[0.95] * 4]), 256)[0] > 0


def test_a_draft_that_must_be_made_first_costs_more() -> None:
    chances = [[0.5, 0.5, 0.5]]
    assert known().choose(drafts(chances), 1)[0] > 0
    assert known().choose(drafts(chances), 1, seconds_each=0.6) == [0]


@given(st.integers(0, 1 << 32), st.floats(0.5, 2.0))
def test_the_curve_finds_the_shape_through_noise_and_drift(seed: int, drift: float) -> None:
    noise = random.Random(seed)
    curve = StepCurve()
    for i in range(600):
        size = noise.choice([1, 1, 1, 2, 4, 5, 8])
        spike = 5.0 if noise.random() < 0.02 else 1.0
        curve.measured(size, tiled(size) * (1 + (drift - 1) * i / 600) * noise.lognormvariate(0, 0.03) * spike)
    for size in (2, 4, 5, 8):
        assert curve(size) / curve(1) == pytest.approx(tiled(size) / tiled(1), rel=0.12)
    assert curve(1) == pytest.approx(drift, rel=0.15)


@given(st.lists(st.tuples(st.integers(1, 600), st.floats(1e-4, 10)), min_size=1, max_size=30), st.integers(1, 1000))
def test_the_curve_is_finite_and_positive(seen: list[tuple[int, float]], tokens: int) -> None:
    curve = StepCurve()
    for size, seconds in seen:
        curve.measured(size, seconds)
    assert 0 < curve(tokens) < 1e6


def test_one_accident_does_not_rule_a_size_out() -> None:
    cost = known(most=8)
    cost.measured(8, 8, 20 * tiled(8))
    draft = drafts([[0.97] * 7])
    assert cost.choose(draft, 1) == [3]
    for _ in range(600):
        n = cost.choose(draft, 1)[0]
        cost.measured(1 + n, 1 + n, tiled(1 + n))
    assert cost.choose(draft, 1) == [7]


def test_sizes_between_and_beyond_are_estimated() -> None:
    curve = StepCurve()
    for size in (1, 5, 9):
        for _ in range(30):
            curve.measured(size, 1 + 0.2 * (size - 1))
    assert curve(3) == pytest.approx(1.4, rel=0.02)
    assert curve(13) == pytest.approx(3.4, rel=0.1)


def test_rows_cost_their_share() -> None:
    cost = CostModel(head_share=0.25)
    for _ in range(50):
        cost.measured(64, 0, 48.0)
        cost.measured(48, 48, 48.0)
    assert cost.seconds(64, 0) == pytest.approx(48.0)
    assert cost.seconds(64, 64) > cost.seconds(64, 0)


class Sure:
    """A drafter that is sure of itself whatever happens."""

    name, candidates = "sure", 0

    def open(self, prompt: Sequence[int], **_: object) -> Sure:
        return self

    def extend(self, ids: Sequence[int], found: object) -> None:
        pass

    def propose(self, most: int) -> Draft:
        return Draft([1] * min(most, 4), [0.9] * min(most, 4))

    def close(self) -> None:
        pass


def run(speculator: Speculator, one: Running, steps: int, right: Callable[[int], bool]) -> tuple[float, int]:
    """Seconds and tokens of some steps whose drafts are all right or all wrong."""
    seconds, tokens = 0.0, 0
    for i in range(steps):
        [draft] = speculator.draft([one], [16])
        taken = tiled(1 + len(draft))
        speculator.measured(1 + len(draft), 1 + len(draft), taken)
        accepted = len(draft) if right(i) else 0
        speculator.extend(one, [1] * accepted + [1 if right(i) else 2], None)
        seconds, tokens = seconds + taken, tokens + accepted + 1
    return seconds, tokens


@pytest.mark.parametrize("steps", [60, 120, 1000])
def test_a_drafter_that_is_always_wrong_costs_less_than_three_percent(steps: int) -> None:
    speculator = Speculator(Sure())
    seconds, tokens = run(speculator, speculator.open([1]), steps, lambda i: False)
    assert seconds <= 1.03 * tokens + 1


def test_a_drafter_that_becomes_wrong_loses_little_of_what_it_won() -> None:
    speculator = Speculator(Sure())
    one = speculator.open([1])
    seconds, tokens = run(speculator, one, 50, lambda i: True)
    assert tokens / seconds > 2.5
    seconds, tokens = run(speculator, one, 300, lambda i: False)
    assert seconds <= 1.03 * tokens + 5


def test_a_request_in_debt_drafts_again_when_its_guesses_are_right() -> None:
    speculator = Speculator(Sure())
    one = speculator.open([1])
    run(speculator, one, 50, lambda i: False)
    assert one.account.in_debt
    seconds, tokens = run(speculator, one, 50, lambda i: True)
    assert tokens / seconds > 2


def test_failed_tries_become_rare() -> None:
    account, tries = Account(), []
    for step in range(4000):
        if account.in_debt:
            account.settle(0.0, 0)
        else:
            account.settle(0.5, 0)
            tries.append(step)
    gaps = [b - a for a, b in itertools.pairwise(tries[4:])]
    assert gaps == sorted(gaps)
    assert len(tries) < 15


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 2)), max_size=200))
def test_the_loss_is_bounded_whatever_comes(outcomes: list[tuple[bool, float]]) -> None:
    account, lost, worst = Account(), 0.0, 0.0
    for right, spent in outcomes:
        if account.in_debt:
            account.settle(0.0, 0)
            continue
        account.settle(spent, int(right))
        lost = max(0.0, lost + spent - right)
        worst = max(worst, lost)
    assert worst <= 4 + 2 + 0.0075 * len(outcomes) + 1e-9
