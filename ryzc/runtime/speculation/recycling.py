"""Token recycling: what the model said after the same tokens the last time (after Luo et al. 2024).

The paper keeps several successors of each single token and verifies a tree. Here only a chain is verified, so that only
the best successor matters; instead the last two tokens are asked first and the last one where they are new, and each
entry remembers how often in a row it was confirmed, as branch predictors do.
"""

from __future__ import annotations

from collections.abc import Sequence

from ryzc.runtime.speculation import Draft, Draw, Found
from ryzc.runtime.speculation.chances import Chances, Guess, Guesses

_ENTRIES = 1 << 16
"""Contexts of each length that are remembered at most."""

_SURE = 4
"""Confirmations in a row beyond which more make no difference."""

_PRIOR = (0.25, 0.5, 0.65, 0.75, 0.85), (0.5, 0.75, 0.8, 0.85, 0.9)
"""Chance of a successor by its confirmations, after one and two tokens."""

_SHIFT = 32


class Successors:
    """The last best token of each context and how often in a row it was that; the oldest contexts are forgotten."""

    def __init__(self, entries: int = _ENTRIES) -> None:
        self._young: dict[int, tuple[int, int]] = {}
        self._old: dict[int, tuple[int, int]] = {}
        self._limit = entries // 2

    def get(self, context: int) -> tuple[int, int] | None:
        """The successor of a context and its confirmations."""
        return self._young.get(context) or self._old.get(context)

    def learn(self, context: int, best: int) -> None:
        """The model found this token the best one after the context."""
        known = self.get(context)
        if known is None or known[0] != best:
            self._young[context] = (best, 0)
        else:
            self._young[context] = (best, min(known[1] + 1, _SURE))
        if len(self._young) > self._limit:
            self._old, self._young = self._young, {}


class Recycling:
    """Drafts from what the model found best in earlier rows of any request."""

    name = "recycling"
    candidates = 1

    def __init__(self, entries: int = _ENTRIES) -> None:
        self.after_one, self.after_two = Successors(entries), Successors(entries)
        self.chances = Chances(_PRIOR[0]), Chances(_PRIOR[1])

    def open(self, prompt: Sequence[int], *, private: bool = False, draw: Draw | None = None) -> RecyclingState:
        return RecyclingState(self, prompt, private)

    def guess(self, before: int, last: int) -> Guess | None:
        """The likelier successor of two tokens or of the last alone."""
        two, one = self.after_two.get(before << _SHIFT | last), self.after_one.get(last)
        if two and (one is None or self.chances[1][two[1]] >= self.chances[0][one[1]]):
            return two[0], self.chances[1], two[1]
        return (one[0], self.chances[0], one[1]) if one else None


class RecyclingState:
    """The last two tokens of a request."""

    def __init__(self, recycling: Recycling, prompt: Sequence[int], private: bool) -> None:
        self._recycling = recycling
        self._private = private
        self.last = (0, 0, *prompt[-2:])[-2:]
        self._guesses = Guesses()

    def extend(self, ids: Sequence[int], found: Found | None) -> None:
        self._guesses.settle(ids)
        before, last = self.last
        best = ids if found is None else found[:, 0].tolist()
        recycling, learns = self._recycling, not self._private
        for id_, successor in zip(ids, best, strict=False):
            if learns:
                recycling.after_one.learn(last, successor)
                recycling.after_two.learn(before << _SHIFT | last, successor)
            before, last = last, id_
        self.last = before, last

    def guesses(self, most: int) -> list[Guess]:
        """A chain with the kind of each guess."""
        before, last = self.last
        chain: list[Guess] = []
        while len(chain) < most and (guess := self._recycling.guess(before, last)):
            chain.append(guess)
            before, last = last, guess[0]
        return chain

    def propose(self, most: int) -> Draft:
        return self._guesses.draft(self.guesses(most))

    def close(self) -> None:
        pass


drafter = Recycling
