"""Look-up and recycling in one chain: each token from whichever promises more."""

from __future__ import annotations

from collections.abc import Sequence

from ryzc.runtime.speculation import Draft, Draw, Found
from ryzc.runtime.speculation.chances import LEAST, Chances, Guess, Guesses
from ryzc.runtime.speculation.lookup import LONGEST, Lookup
from ryzc.runtime.speculation.recycling import Recycling

_POWERS = (1, 1, 1, 0.5, 0.3)
"""How the table changes the chance at first: it says nothing, another token, the same, confirmed once, or oftener."""

_SAYS = len(_POWERS)


class Auto:
    """The drafters that need no second model, together."""

    name = "auto"

    def __init__(self) -> None:
        self.lookup, self.recycling = Lookup(), Recycling()
        self.candidates = self.recycling.candidates
        self._own = Chances(_joint(self.lookup.own))
        self._others = Chances(_joint(self.lookup.others))

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


def _joint(chances: Chances) -> list[float]:
    """What is assumed of a guess by the length of its match and by what the table says."""
    return [chances[length] ** power for length in range(LONGEST + 1) for power in _POWERS]


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
