"""For which requests a drafter whose drafts take time is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from ryzc.runtime.speculation import BatchDrafter, Draft, DraftState
from ryzc.runtime.speculation.cost import CostModel

_LEARNING = 0.1
"""What a measured time counts for against all before it."""

_READ_SHARE = 0.2
"""What reading a token is taken to cost at first, of a draft's time: many are read at once."""

_HORIZON = 64
"""Steps that a request is taken to go on for at least; one that has run for longer is taken to run as long again."""

_TRIALS = 0.01
"""The part of all decoding time that may go to drafts that do not promise to pay, so that a change is noticed."""

_TRIAL = 4.0
"""Steps that such a trial may cost at most."""

_SHORT = 32
"""Tokens that are read without asking whether it pays: what comes between two drafts."""


class Planner:
    """Asks a costly drafter for those drafts that may pay.

    A draft must pay for itself and for being verified; and before the first of a request the drafter has to read all of
    the text, which must pay over the rest of the request.
    """

    def __init__(self, drafter: BatchDrafter, cost: CostModel) -> None:
        self._drafter = drafter
        self._cost = cost
        self._unread = drafter.unread
        self._each = self._read = 0.0
        self._credit = 0.0

    def find(self, states: Sequence[DraftState], most: Sequence[int], steps: Sequence[int]) -> list[Draft]:
        """Drafts of several requests.

        Args:
            states: of requests that decode.
            most: how many each may have; 0 for none.
            steps: how many steps each has run for.
        """
        nothing = [Draft([], [])] * len(states)
        price = self._cost.price(len(states))
        if not price:
            return nothing
        each = self._each or self._drafter.relative_cost * price
        chances = [self._drafter.forecast(*pair) if pair[1] > 0 else [] for pair in zip(states, most, strict=True)]
        forecasts = [Draft([0] * len(chance), chance) for chance in chances]
        counts = self._cost.choose(forecasts, len(states), seconds_each=each)
        self._credit = min(self._credit + _TRIALS * price * len(states), _TRIAL * price)
        for i, state in enumerate(states):
            reading = self._unread(state) * (self._read or _READ_SHARE * self._drafter.relative_cost * price)
            gain = self._gain(chances[i][: counts[i]], each) * price * max(_HORIZON, steps[i])
            if counts[i] and self._unread(state) > _SHORT and reading > gain:
                counts[i] = 0
            if not counts[i] and chances[i] and reading + each < self._credit:
                self._credit -= reading + each
                counts[i] = 1
        if not any(counts):
            return nothing
        self._catch_up([state for state, n in zip(states, counts, strict=True) if n and self._unread(state) > _SHORT])
        start = time.perf_counter()
        drafts = self._drafter.propose_all(states, counts, min(each / price, 1.0))
        taken = (time.perf_counter() - start) / max(1, sum(len(draft.ids) for draft in drafts))
        self._each += (taken - self._each) * (_LEARNING if self._each else 1.0)
        return drafts

    def _gain(self, chances: Sequence[float], each: float) -> float:
        """By what part a request becomes faster."""
        n, plain = len(chances), self._cost.seconds(1, 1)
        tokens: float = 1 + sum(accumulate(chances, mul))
        return tokens * plain / (self._cost.seconds(1 + n, 1 + n) + n * each) - 1

    def _catch_up(self, states: Sequence[DraftState]) -> None:
        tokens = sum(map(self._unread, states))
        if tokens:
            start = time.perf_counter()
            self._drafter.read(states)
            taken = (time.perf_counter() - start) / tokens
            self._read += (taken - self._read) * (_LEARNING if self._read else 1.0)
