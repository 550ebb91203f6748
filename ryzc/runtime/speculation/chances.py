"""How often guesses of a kind were right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from ryzc.runtime.speculation import Draft

MEMORY = 512.0
"""Guesses of a kind after which older ones begin to count less."""

LEAST = 0.03
"""A chain ends where the chance that all of it is accepted falls below this."""


class Chances:
    """A beta distribution for each kind of guess.

    Args:
        prior: what is assumed of each kind at first.
        weight: how many guesses the assumption counts for.
    """

    def __init__(self, prior: Sequence[float], weight: float = 4.0) -> None:
        self._right = [p * weight for p in prior]
        self._all = [weight] * len(prior)
        self._chance = list(prior)

    def __getitem__(self, kind: int) -> float:
        return self._chance[kind]

    def count(self, kind: int, right: bool) -> None:
        """A guess of this kind was right or not."""
        guesses = self._all[kind] + 1
        rights = self._right[kind] + right
        if guesses > MEMORY:
            guesses /= 2
            rights /= 2
        self._all[kind], self._right[kind] = guesses, rights
        self._chance[kind] = rights / guesses


class Counts(Protocol):
    """Chances by kind, learned from outcomes."""

    def __getitem__(self, kind: int) -> float: ...

    def count(self, kind: int, right: bool) -> None:
        """A guess of this kind was right or not."""


Guess: TypeAlias = tuple[int, Counts, int]
"""A token, where guesses like it are counted, and their kind there."""


class Guesses:
    """The last chain of guesses, to be held against what comes.

    A guess need not be verified to be counted: the first is right or not by the next token, however it was found. So
    the chances are learned even while nothing is drafted.
    """

    def __init__(self) -> None:
        self._open: list[Guess] = []

    def draft(self, guesses: list[Guess]) -> Draft:
        """Remember a chain, and give it with its chances."""
        self._open = guesses
        return Draft([guess[0] for guess in guesses], [chances[kind] for _, chances, kind in guesses])

    def settle(self, ids: Sequence[int]) -> None:
        """Count the last chain up to its first wrong guess; ``ids`` came."""
        for id_, (guess, chances, kind) in zip(ids, self._open, strict=False):
            chances.count(kind, guess == id_)
            if guess != id_:
                break
        self._open = []
