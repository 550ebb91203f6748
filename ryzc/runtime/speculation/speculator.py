"""What an engine calls: a drafter, the cost model, and each request's account."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ryzc.runtime.speculation import BatchDrafter, Draft, Drafter, DraftState, Draw, Found
from ryzc.runtime.speculation.cost import Account, CostModel
from ryzc.runtime.speculation.planner import Planner

MOST = 16
"""Drafts of a request that one step verifies at most."""

_TOGETHER = 48
"""Drafts that several requests look for together; a step of more tokens takes longer for each of them."""

_FRUITLESS = 4
"""Steps of several requests none of whose drafts was worth it, after which some steps are taken without looking."""

_REST = 32
"""How many these are at most; doubled each time."""

_NOTHING = Draft([], [])


class Running:
    """A request that decodes.

    Attributes:
        state: what the drafter knows of it.
        account: what drafting has cost and won it.
        steps: how many it has run for.
        drafted: drafts of its last step.
        accepted: of these.
    """

    def __init__(self, state: DraftState) -> None:
        self.state = state
        self.account = Account()
        self.drafted = self.accepted = 0
        self.spent = 0.0
        self.guess: int | None = None
        self.steps = 0


class Speculator:
    """Drafts for all running requests of an engine; used by one thread.

    Each step: :meth:`draft`; the step with the drafts behind each request's last token; :meth:`measured`; and
    :meth:`extend` for each request.

    Attributes:
        drafter, cost: as given.
        candidates: best tokens a row that the step has to find for the drafter; 0 for none.
        proposed: drafts that steps verified.
        accepted: of these.
    """

    def __init__(self, drafter: Drafter, cost: CostModel | None = None) -> None:
        self.drafter = drafter
        self.cost = cost or CostModel()
        self.candidates = drafter.candidates
        self.proposed = self.accepted = 0
        self._planner = Planner(drafter, self.cost) if isinstance(drafter, BatchDrafter) else None
        self._fruitless = self._resting = 0

    def open(self, prompt: Sequence[int], *, private: bool = False, draw: Draw | None = None) -> Running:
        """Begin a request, see :meth:`Drafter.open`; it ends with :meth:`close`."""
        return Running(self.drafter.open(prompt, private=private, draw=draw))

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
        """The drafts to verify of each request, often none.

        Args:
            running: the requests of the next step that decode.
            room: how many drafts each may have at most.
            base_tokens: tokens of the step without drafts, where prompts are in it too.
            most: drafts that the step has room for.
        """
        start = time.perf_counter()
        for one in running:
            one.drafted, one.spent, one.guess = 0, 0.0, None
        if self._resting and len(running) > 1:
            self._resting -= 1
            return [[] for _ in running]
        each = min(MOST, max(1, _TOGETHER // len(running)))
        limits = [min(each, limit) for limit in room]
        if self._planner:
            able = [0 if one.account.in_debt else limit for one, limit in zip(running, limits, strict=True)]
            proposals = self._planner.find([one.state for one in running], able, [one.steps for one in running])
        else:
            proposals = [self._find(one, limit) for one, limit in zip(running, limits, strict=True)]
        base = len(running) if base_tokens is None else base_tokens
        counts = self.cost.choose(proposals, base, most=most)
        self._fruitless = 0 if any(counts) else self._fruitless + 1
        if self._fruitless >= _FRUITLESS:
            self._resting = min(1 << (self._fruitless - _FRUITLESS), _REST)
        if not any(counts) and not self._planner:
            return [[] for _ in running]
        for one, count in zip(running, counts, strict=True):
            one.drafted = count
        self._charge(running, proposals, base, time.perf_counter() - start)
        return [draft.ids[:count] for draft, count in zip(proposals, counts, strict=True)]

    def _find(self, one: Running, most: int) -> Draft:
        if most <= 0:
            return _NOTHING
        draft = one.state.propose(most)
        if one.account.in_debt and draft.ids:
            one.guess = draft.ids[0]
            return _NOTHING
        return draft

    def _charge(self, running: Sequence[Running], proposals: Sequence[Draft], base: int, drafting: float) -> None:
        """Each request pays for its drafts: for verifying those chosen, and for finding all of them."""
        requests, chosen = len(running), sum(one.drafted for one in running)
        found = sum(len(draft.ids) for draft in proposals)
        price = self.cost.price(requests)
        if not found or not price:
            return
        longer = self.cost.seconds(base + chosen, requests + chosen) - self.cost.seconds(base, requests)
        for one, draft in zip(running, proposals, strict=True):
            verifying = longer * one.drafted / chosen if chosen else 0.0
            one.spent = (verifying + drafting * len(draft.ids) / found) / price

    def measured(self, tokens: int, rows: int, seconds: float) -> None:
        """The step took so long, see :meth:`CostModel.measured`."""
        self.cost.measured(tokens, rows, seconds)

    def extend(self, one: Running, ids: Sequence[int], found: Found | None) -> None:
        """Tokens of a request became certain, see :meth:`DraftState.extend`: the accepted drafts and one more."""
        one.accepted = min(len(ids) - 1, one.drafted)
        self.proposed += one.drafted
        self.accepted += one.accepted
        if one.guess is None:
            one.account.settle(one.spent, one.accepted)
        else:  # in debt: what a draft would have cost and won
            one.account.settle(self.cost.price_of_one(), int(one.guess == ids[0]))
        one.steps += 1
        one.state.extend(ids, found)
