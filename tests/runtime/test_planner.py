"""Which costly drafts are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ryzc.runtime.speculation import BatchDrafter, Draft, DraftState, Found, planner
from ryzc.runtime.speculation.cost import CostModel
from ryzc.runtime.speculation.planner import Planner


class Clock:
    """Time that only passes when something is done."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Costly:
    """A drafter that takes known times; its states are themselves."""

    name, candidates = "costly", 0

    def __init__(self, clock: Clock, *, each: float, read: float, chance: float, believed: float = 0.1) -> None:
        self.relative_cost = believed
        self.left = 0
        self.asked: list[list[int]] = []
        self._clock, self._each, self._read, self._chance = clock, each, read, chance

    def open(self, prompt: Sequence[int], **_: object) -> Costly:
        self.left = len(prompt) - 1
        return self

    def extend(self, ids: Sequence[int], found: Found | None) -> None:
        self.left += len(ids)

    def propose(self, most: int) -> Draft:
        raise AssertionError("it is asked for all requests at once")

    def close(self) -> None:
        pass

    def forecast(self, state: DraftState, most: int) -> list[float]:
        return [self._chance] * most

    def unread(self, state: DraftState) -> int:
        return self.left

    def read(self, states: Sequence[DraftState]) -> None:
        self._clock.now += self.left * self._read
        self.left = 0

    def propose_all(self, states: Sequence[DraftState], most: Sequence[int], least: float) -> list[Draft]:
        self.asked.append(list(most))
        self.left = 0
        self._clock.now += sum(most) * self._each
        return [Draft([1] * n, [self._chance] * n) for n in most]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(planner, "time", clock)
    return clock


@pytest.fixture
def cost() -> CostModel:
    """A step of one token takes a second, each further one a tenth."""
    cost = CostModel()
    for size in [*range(1, 20)] * 30:
        cost.measured(size, size, 0.9 + 0.1 * size)
    return cost


def steps(plans: Planner, drafter: Costly, count: int) -> int:
    """How many of so many steps asked for drafts."""
    before = len(drafter.asked)
    for i in range(count):
        plans.find([drafter], [8], [i])
        drafter.extend([1], None)
    return len(drafter.asked) - before


def test_it_is_a_batch_drafter(clock: Clock) -> None:
    assert isinstance(Costly(clock, each=1, read=1, chance=1), BatchDrafter)


def test_good_drafts_are_asked_for_at_once(clock: Clock, cost: CostModel) -> None:
    drafter = Costly(clock, each=0.1, read=0.02, chance=0.8)
    drafter.open([1] * 200)
    assert steps(Planner(drafter, cost), drafter, 10) == 10


def test_a_text_too_long_to_read_is_left_until_it_pays(clock: Clock, cost: CostModel) -> None:
    drafter = Costly(clock, each=0.1, read=0.02, chance=0.8)
    drafter.open([1] * 50_000)
    plans = Planner(drafter, cost)
    assert steps(plans, drafter, 100) == 0
    # A request that has run for long is taken to run for as long again.
    drafter.extend([1] * 3000, None)
    assert plans.find([drafter], [8], [3000]) != [Draft([], [])]


@pytest.mark.parametrize("each", [1.0, 3.0])
def test_drafts_that_cost_too_much_take_a_hundredth_of_the_time(clock: Clock, cost: CostModel, each: float) -> None:
    drafter = Costly(clock, each=each, read=0.001, chance=0.6)
    drafter.open([1] * 20)
    steps(Planner(drafter, cost), drafter, 2000)
    assert 0 < clock.now <= 0.01 * 2000 + 2 * 8 * each  # the first ones were believed to be cheap


def test_room_of_nothing_asks_for_nothing(clock: Clock, cost: CostModel) -> None:
    drafter = Costly(clock, each=0.1, read=0.02, chance=0.9)
    drafter.open([1] * 20)
    assert Planner(drafter, cost).find([drafter], [0], [5]) == [Draft([], [])]
    assert Planner(drafter, CostModel()).find([drafter], [8], [5]) == [Draft([], [])]
    assert not drafter.asked
