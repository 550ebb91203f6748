"""What an engine calls: a drafter, the cost model, and each request's account."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ryzc.runtime.speculation import Draft, Drafter, DraftState, Found
from ryzc.runtime.speculation.cost import Account, CostModel

MOST = 16
"""Drafts of a request that one step verifies at most."""

_NOTHING = Draft([], [])


class Running:
    """A request that decodes.

    Attributes:
        drafted: drafts of its last step.
        accepted: of these.
    """

    def __init__(self, state: DraftState) -> None:
        self.state = state
        self.account = Account()
        self.drafted = self.accepted = 0
        self.spent = 0.0
        self.guess: int | None = None


class Speculator:
    """Drafts for all running requests of an engine; used by one thread.

    Each step: :meth:`draft`, the step with the drafts behind each request's last token, :meth:`measured`, and
    :meth:`extend` for each request.

    Attributes:
        proposed: drafts that steps verified.
        accepted: of these.
    """

    def __init__(self, drafter: Drafter, cost: CostModel | None = None) -> None:
        self.drafter = drafter
        self.cost = cost or CostModel()
        self.candidates = drafter.candidates
        self.proposed = self.accepted = 0

    def open(self, prompt: Sequence[int], *, private: bool = False) -> Running:
        """Begin a request, see :meth:`Drafter.open`; it ends with :meth:`close`."""
        return Running(self.drafter.open(prompt, private=private))

    def close(self, running: Running) -> None:
        """A request is over or preempted."""
        running.state.close()

    def draft(
        self,
        running: Sequence[Running],
        room: Sequence[int],
        *,
        base_tokens: int | None = None,
        most: int | None = None,
    ) -> list[list[int]]:
        """The drafts to verify of each request, best none.

        Args:
            running: the requests of the next step that decode.
            room: how many drafts each may have at most.
            base_tokens: tokens of the step without drafts, where prompts are in it too.
            most: drafts that the step has room for.
        """
        start = time.perf_counter()
        proposals = [self._propose(one, min(MOST, limit)) for one, limit in zip(running, room, strict=True)]
        base = len(running) if base_tokens is None else base_tokens
        counts = self.cost.choose(proposals, base, most=most)
        total = sum(counts)
        for one, count in zip(running, counts, strict=True):
            one.drafted = count
        if not total:
            return [[] for _ in running]
        price = self.cost.price(len(running))
        longer = self.cost.seconds(base + total, len(running) + total) - self.cost.seconds(base, len(running))
        each = (longer + time.perf_counter() - start) / total / price
        for one, count in zip(running, counts, strict=True):
            one.spent = count * each
        return [draft.ids[:count] for draft, count in zip(proposals, counts, strict=True)]

    def _propose(self, one: Running, most: int) -> Draft:
        one.spent, one.guess = 0.0, None
        if most <= 0:
            return _NOTHING
        draft = one.state.propose(most)
        if one.account.in_debt and draft.ids:
            one.guess = draft.ids[0]
            return _NOTHING
        return draft

    def measured(self, tokens: int, rows: int, seconds: float) -> None:
        """The step took so long, see :meth:`CostModel.measured`."""
        self.cost.measured(tokens, rows, seconds)

    def extend(self, one: Running, ids: Sequence[int], found: Found | None) -> None:
        """Tokens of a request became certain, see :meth:`DraftState.extend`: accepted drafts and one more."""
        if one.drafted:
            one.accepted = min(len(ids) - 1, one.drafted)
            self.proposed += one.drafted
            self.accepted += one.accepted
        else:
            one.accepted = 0
        if one.guess is None:
            one.account.settle(one.spent, one.accepted)
        else:  # what a draft would have done
            one.account.settle(self.cost.price_of_one(), one.guess == ids[0])
        one.state.extend(ids, found)
