"""Guessing tokens ahead, so that one step can verify several of them.

A drafter is one file, found by its name. It sees the tokens of each running request as they become certain and
proposes a chain that may follow. The step verifies a chain like a prompt, and a token's logits are bit-identical
whatever shares its step: so drafts change when a token is computed, never which one.

Only chains are proposed. A tree's branches would need places in the step whose attention differs from that of plain
decoding in the order of its sums, and outputs would no longer be bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from ryzc.errors import UsageError
from ryzc.runtime.step import CompiledModel, StepResult

Found: TypeAlias = npt.NDArray[np.int32]

_NOT_DRAFTERS = {"automaton", "chances", "cost", "draft_model", "planner", "speculator"}


class Draft(NamedTuple):
    """A chain of tokens that may follow.

    Attributes:
        ids: the tokens.
        chances: the estimated chance that each is accepted, given that all before it are.
    """

    ids: list[int]
    chances: list[float]


class DraftState(Protocol):
    """What a drafter knows of one running request."""

    def extend(self, ids: Sequence[int], found: Found | None) -> None:
        """Tokens became certain.

        Args:
            ids: in their order.
            found: ``[n, C]``, the best candidates in the rows that drew them, best first; rows of drafts behind a
                refused one may follow.
        """

    def propose(self, most: int) -> Draft:
        """A chain of at most so many tokens that may follow the certain ones."""

    def close(self) -> None:
        """The request is over."""


class Draw(Protocol):
    """How a second model draws the drafts of a request: with the noise of the request, so that both draw the same."""

    def prepare(self, model: CompiledModel, row: int, position: int, drafts: Sequence[int]) -> None:
        """Before a step of the second model: its row so and so draws the token of a position, behind these drafts."""

    def drawn(self, result: StepResult, row: int) -> int:
        """The token that was drawn."""


class Drafter(Protocol):
    """Drafts for all requests of an engine; used by one thread.

    Attributes:
        name: that of its file.
        candidates: best tokens a row that it learns from; 0 for none.
    """

    @property
    def name(self) -> str: ...

    @property
    def candidates(self) -> int: ...

    def open(self, prompt: Sequence[int], *, private: bool = False, draw: Draw | None = None) -> DraftState:
        """Begin a request.

        Args:
            prompt: its tokens.
            private: whether other requests must not learn from this one, not even by being faster.
            draw: how a second model is to draw; by default the best token.
        """


@runtime_checkable
class BatchDrafter(Drafter, Protocol):
    """A drafter whose drafts take time, so that it is asked for those alone that may pay, of all requests at once.

    Attributes:
        relative_cost: what a draft is expected to take, in steps of one token.
    """

    @property
    def relative_cost(self) -> float: ...

    def forecast(self, state: DraftState, most: int) -> list[float]:
        """The chances that a chain is expected to have before it is made."""

    def unread(self, state: DraftState) -> int:
        """Tokens that have to be read before the first draft."""

    def read(self, states: Sequence[DraftState]) -> None:
        """Read them, but for the last of each text, which the first draft reads."""

    def propose_all(self, states: Sequence[DraftState], most: Sequence[int], least: float) -> list[Draft]:
        """A chain for each state that may have one; it ends where the chance of all of it falls below ``least``."""


def names() -> tuple[str, ...]:
    """The drafters that need no second model."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if m.name not in _NOT_DRAFTERS))


def get(name: str) -> Drafter:
    """A new drafter.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in names():
        raise UsageError(f"there is no drafter {name!r}", hint=f"choose one of {', '.join(names())}")
    drafter: Drafter = import_module(f"{__name__}.{name}").drafter()
    return drafter
