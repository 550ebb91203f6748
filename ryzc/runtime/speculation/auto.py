"""Look-up and recycling in one chain: each token from whichever promises more."""

from __future__ import annotations

from collections.abc import Sequence

from ryzc.runtime.speculation import Draft, Draw, Found
from ryzc.runtime.speculation.chances import LEAST, MEMORY, Chances, Guess, Guesses
from ryzc.runtime.speculation.lookup import LONGEST, Lookup
from ryzc.runtime.speculation.recycling import Recycling

_POWERS = (1, 1, 1, 0.5, 0.3)
"""How the table changes the chance at first: it says nothing, another token, the same, confirmed once, or oftener."""

_SAYS = len(_POWERS)

_WEIGHT = 6.0
"""Guesses that the chance by length alone counts for."""


class Joint:
    """How often guesses of the look-up were right, by the length of their match and by what the table says.

    A kind that was seldom seen is taken for what its length alone says.
    """

    def __init__(self, lengths: Chances) -> None:
        self._lengths = lengths
        self._right = [0.0] * (_SAYS * (LONGEST + 1))
        self._all = [0.0] * (_SAYS * (LONGEST + 1))

    def __getitem__(self, kind: int) -> float:
        length, says = divmod(kind, _SAYS)
        assumed = self._lengths[length] ** _POWERS[says]
        return (self._right[kind] + _WEIGHT * assumed) / (self._all[kind] + _WEIGHT)

    def count(self, kind: int, right: bool) -> None:
        """A guess of this kind was right or not."""
        self._lengths.count(kind // _SAYS, right)
        self._right[kind] += right
        self._all[kind] += 1
        if self._all[kind] > MEMORY:
            self._right[kind] /= 2
            self._all[kind] /= 2


class Auto:
    """The drafters that need no second model, together."""

    name = "auto"

    def __init__(self) -> None:
        self.lookup, self.recycling = Lookup(), Recycling()
        self.candidates = self.recycling.candidates
        self._own = Joint(self.lookup.own)
        self._others = Joint(self.lookup.others)

    def open(self, prompt: Sequence[int], *, private: bool = False, draw: Draw | None = None) -> AutoState:
        return AutoState(self, prompt, private)

    def weigh(self, copied: Guess, recycled: Guess | None) -> Guess:
        """What the look-up guesses, with the chance that follows from what the table says there.

        A guess of the table that contradicts the look-up is hardly ever right.
        """
        id_, chances, length = copied
        if recycled is None:
            says = 0
        elif recycled[0] != id_:
            says = 1
        else:
            says = 2 + min(recycled[2], 2)
        return id_, self._own if chances is self.lookup.own else self._others, length * _SAYS + says


class AutoState:
    """Both states of one request."""

    def __init__(self, auto: Auto, prompt: Sequence[int], private: bool) -> None:
        self._auto = auto
        self._copied = auto.lookup.open(prompt, private=private)
        self._recycled = auto.recycling.open(prompt, private=private)
        self._guesses = Guesses()

    def extend(self, ids: Sequence[int], found: Found | None) -> None:
        self._guesses.settle(ids)
        self._copied.extend(ids, found)
        self._recycled.extend(ids, found)

    def propose(self, most: int) -> Draft:
        copied = self._copied.guesses(most)
        auto, (before, last) = self._auto, self._recycled.last
        chain: list[Guess] = []
        promise = 1.0
        while len(chain) < most and promise > LEAST:
            guess = auto.recycling.guess(before, last)
            if len(chain) < len(copied):
                guess = auto.weigh(copied[len(chain)], guess)
            elif guess is None:
                break
            chain.append(guess)
            promise *= guess[1][guess[2]]
            before, last = last, guess[0]
        return self._guesses.draft(chain)

    def close(self) -> None:
        self._copied.close()
        self._recycled.close()


drafter = Auto
