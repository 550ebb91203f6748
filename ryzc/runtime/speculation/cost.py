"""What a step costs by its tokens, and how many drafts are worth verifying.

A draft costs what the step takes longer, and is worth the time that decoding its token alone would have taken. All is
measured while running: nothing is known of the model or the machine at first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from operator import mul

from ryzc.runtime.speculation import Draft

_ASSUMED_SLOPE = 0.1
"""What a further token is taken to add, in steps of one token, where no larger step was seen yet."""

_ASSUMED_WEIGHT = 2.0
"""How many measured tokens this assumption counts for."""

_EXACT = 64
"""Steps of up to so many tokens are told apart one by one; kernels work on tiles, so that time does not grow evenly."""

_CLIP = 1.5
"""A single measurement further off than this factor counts as if it were this far off."""

_MEMORY = 24
"""Measurements that a size's time is averaged over, about."""

_HOPE = 0.4
"""The part of its cost that a size not measured yet may turn out not to have."""

_STALE = 8
"""Measurements after which what was worked out from them is worked out anew."""

_DOUBT = 512
"""Measurements after which all earlier ones count half."""

_MARGIN_ON, _MARGIN_OFF = 0.01, 0.03
"""By how much drafts must promise to speed decoding up: to go on drafting, and to begin."""

_CREDIT = 1.0
"""Steps of plain decoding that a request may lose before drafting has won it any."""

_MOST_CREDIT = 4.0
"""What it may lose of those that drafting won it before."""

_TRICKLE = 0.0075
"""What a request in debt gets back with each step, at first."""


class StepCurve:
    """Seconds of a step as a function of its tokens, from noisy measurements that drift together.

    A level, which follows the machine and the growing contexts, times a shape, which is the model's and hardly changes.
    So a size that was not seen for long drifts along with the others.
    """

    def __init__(self) -> None:
        self._level = 0.0
        self._shape: dict[int, float] = {}
        self._seen: dict[int, float] = {}
        self._sizes: list[int] = []
        self._relative: dict[float, float] = {}
        self._count = 0

    def measured(self, tokens: float, seconds: float) -> None:
        """A step took so long."""
        size = _bucket(tokens)
        if not self._sizes:
            self._level = seconds / (1 + _ASSUMED_SLOPE * (size - 1))
        seen = self._seen.get(size, 0)
        if not seen:
            self._begin(size, seconds / self._level)
        off = min(max(seconds / (self._level * self._shape[size]), 1 / _CLIP), _CLIP)
        if seen:
            # Of two that disagree the shape is the more certain, the more it was measured.
            self._level *= off ** min(0.1, seen / 50)
            self._shape[size] *= off ** (1 / min(seen + 1, _MEMORY))
        self._seen[size] = seen + 1
        self._count += 1
        if self._count % _DOUBT == 0:
            self._doubt()
        if not seen or self._count % _STALE == 0:
            self._relative.clear()

    def _doubt(self) -> None:
        """Forget what was hardly measured: it may have been an accident, and would not be tried again."""
        self._seen = {size: seen / 2 for size, seen in self._seen.items()}
        for size in [size for size in self._sizes[1:] if self._seen[size] < 1]:
            self._sizes.remove(size)
            del self._shape[size], self._seen[size]

    def _begin(self, size: int, relative: float) -> None:
        """The first measurement of a size; one that is far from what its neighbours suggest may be an accident."""
        if self._sizes:
            expected = self._at(size)
            relative = min(max(relative, expected / _CLIP), expected * _CLIP)
        insort(self._sizes, size)
        self._shape[size] = relative

    def __call__(self, tokens: float) -> float:
        """Expected seconds of a step; 0 while nothing was measured."""
        relative = self._relative.get(tokens)
        if relative is None:
            relative = self._relative[tokens] = self._at(_bucket(tokens))
        return self._level * relative

    def hoped(self, tokens: int, plain: float) -> float:
        """Seconds that a step takes longer than a plain one; sizes that were hardly measured are thought well of.

        So they are tried when they might be the best, and soon no longer if they are not.
        """
        return (self(tokens) - plain) * (1 - _HOPE / (1 + self._seen.get(_bucket(tokens), 0)))

    def _at(self, size: int) -> float:
        sizes, shape = self._sizes, self._shape
        if not sizes:
            return 0.0
        if size in shape:
            return shape[size]
        at = bisect_left(sizes, size)
        if 0 < at < len(sizes):
            low, high = sizes[at - 1], sizes[at]
            part = (size - low) / (high - low)
            return shape[low] + part * (shape[high] - shape[low])
        first, last = shape[sizes[0]], shape[sizes[-1]]
        grown, distance = last - first, sizes[-1] - sizes[0]
        slope = max(0.0, (grown + _ASSUMED_SLOPE * _ASSUMED_WEIGHT * first) / (distance + _ASSUMED_WEIGHT))
        if size > sizes[-1]:
            return last + slope * (size - sizes[-1])
        return max(first - slope * (sizes[0] - size), first * size / sizes[0])


def _bucket(tokens: float) -> int:
    """Large steps are counted with those of about their size."""
    size = max(1, round(tokens))
    if size <= _EXACT:
        return size
    grain = 1 << (size.bit_length() - 4)
    return size // grain * grain


class CostModel:
    """Chooses how many drafts a step verifies.

    Args:
        head_share: the part of a token's work that only rows of logits need.
    """

    def __init__(self, *, head_share: float = 0.0) -> None:
        self.curve = StepCurve()
        self._head_share = head_share
        self._drafting = False

    def _size(self, tokens: int, rows: int) -> float:
        return tokens - self._head_share * (tokens - min(rows, tokens))

    def measured(self, tokens: int, rows: int, seconds: float) -> None:
        """A step of so many tokens and rows of logits took so long."""
        self.curve.measured(self._size(tokens, rows), seconds)

    def seconds(self, tokens: int, rows: int) -> float:
        """Expected seconds of a step."""
        return self.curve(self._size(tokens, rows))

    def price(self, requests: int) -> float:
        """Seconds that a token of one of so many requests takes in plain decoding."""
        return self.curve(requests) / max(requests, 1)

    def price_of_one(self) -> float:
        """What a draft adds to a step of one token, as a part of it."""
        return self.curve(2) / self.curve(1) - 1

    def choose(
        self, proposals: Sequence[Draft], base_tokens: int, *, most: int | None = None, seconds_each: float = 0.0
    ) -> list[int]:
        """How many drafts of each running request to verify.

        The drafts are taken by what they promise: a chain's tokens promise less and less, so that the best n drafts are
        the n best ones. Of all n the one is chosen that makes the most tokens a second; where the step holds tokens of
        prompts too, drafts must earn at least what they would in a step of their own.

        Args:
            proposals: one of each running request; an empty one does not draft.
            base_tokens: tokens of the step without drafts.
            most: drafts that there is room for.
            seconds_each: what it takes to find a draft, if that is still to come.
        """
        counts = [0] * len(proposals)
        order, gains = _by_promise(proposals, most)
        requests, curve = len(proposals), self.curve
        if not order or not (plain := curve(requests)):
            return counts
        best, value = 0, (1 + (_MARGIN_ON if self._drafting else _MARGIN_OFF)) * requests / plain
        total = float(requests)
        for n, gain in enumerate(gains, 1):
            total += gain
            rate = total / (plain + curve.hoped(requests + n, plain) + n * seconds_each)
            if rate > value:
                best, value = n, rate
        self._drafting = best > 0
        if best and base_tokens > requests:
            best = self._beside_prompts(gains, base_tokens, requests, value, seconds_each)
        for request in order[:best]:
            counts[request] += 1
        return counts

    def _beside_prompts(
        self, gains: Sequence[float], base_tokens: int, requests: int, rate: float, seconds_each: float
    ) -> int:
        """How many drafts pay at the rate of steps without prompts."""
        best, value, gained = 0, 0.0, 0.0
        base = self.seconds(base_tokens, requests)
        for n, gain in enumerate(gains, 1):
            gained += gain
            longer = self.seconds(base_tokens + n, requests + n) - base + n * seconds_each
            if gained - rate * longer > value:
                best, value = n, gained - rate * longer
        return best


def _by_promise(proposals: Sequence[Draft], most: int | None) -> tuple[list[int], list[float]]:
    """The request of each draft and the tokens it promises, best first."""
    if len(proposals) == 1:
        gains = list(accumulate(proposals[0].chances[:most], mul))
        return [0] * len(gains), gains
    heap = [(-draft.chances[0], i, 1) for i, draft in enumerate(proposals) if draft.ids]
    heapify(heap)
    order: list[int] = []
    gains = []
    while heap and (most is None or len(order) < most):
        negative, i, depth = heappop(heap)
        order.append(i)
        gains.append(-negative)
        chances = proposals[i].chances
        if depth < len(chances):
            heappush(heap, (negative * chances[depth], i, depth + 1))
    return order, gains


class Account:
    """What drafting has cost one request and brought it, in steps of plain decoding.

    Chances may be wrong for a request. Its account bounds what that can cost: it begins with a small credit, drafts
    that are refused are paid from it, and a request in debt does not draft. A trickle pays for another try now and
    then; it is halved with every try that fails.
    """

    def __init__(self) -> None:
        self._balance = _CREDIT
        self._trickle = _TRICKLE

    @property
    def in_debt(self) -> bool:
        """Whether the request has to decode plainly."""
        return self._balance < 0

    def settle(self, spent: float, earned: int) -> None:
        """A step is over.

        Args:
            spent: how much longer its drafts made it.
            earned: how many of them were accepted.
        """
        if spent or earned:
            won = earned - spent
            if won > 0:
                self._trickle = _TRICKLE
            elif self._balance + won < 0:
                self._trickle /= 2
            self._balance = min(self._balance + won, _MOST_CREDIT)
        self._balance = min(self._balance + self._trickle, max(self._balance, _CREDIT))
