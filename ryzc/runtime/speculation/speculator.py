"""What an engine calls: a drafter, the cost model, and each request's account."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ryzc.runtime.speculation import BatchDrafter, Draft, Drafter, DraftState, Draw, Found
from ryzc.runtime.speculation.cost import Account, CostModel

MOST = 16
"""Drafts of a request that one step verifies at most."""

_PATIENCE = 64
"""Steps after which a request whose drafts would not pay drafts once more; doubled each time."""

_LEARNING = 0.1
"""What a measured time to find a draft counts for against all before it."""

_NOTHING = Draft([], [])


class Running:
    """A request that decodes.

    Attributes:
        state: what the drafter knows of it.
        account: what drafting has cost and won it.
        drafted: drafts of its last step.
        accepted: of these.
    """

    def __init__(self, state: DraftState) -> None:
        self.state = state
        self.account = Account()
        self.drafted = self.accepted = 0
        self.spent = 0.0
        self.guess: int | None = None
        self._idle, self._patience = 0, _PATIENCE

    def tries(self, pays: bool) -> bool:
        """Whether to look for costly drafts: when they pay, and ever more rarely when not."""
        if pays:
            self._idle, self._patience = 0, _PATIENCE
            return True
        self._idle += 1
        if self._idle < self._patience:
            return False
        self._idle, self._patience = 0, 2 * self._patience
        return True


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
        self._seconds_each = 0.0
        self._costly = drafter if isinstance(drafter, BatchDrafter) else None

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
        limits = [min(MOST, limit) for limit in room]
        for one in running:
            one.drafted, one.spent, one.guess = 0, 0.0, None
        if self._costly:
            proposals = self._find_together(self._costly, running, limits)
        else:
            proposals = [self._find(one, limit) for one, limit in zip(running, limits, strict=True)]
        base = len(running) if base_tokens is None else base_tokens
        counts = self.cost.choose(proposals, base, most=most)
        if not any(counts) and not self._costly:
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

    def _find_together(self, drafter: BatchDrafter, running: Sequence[Running], limits: Sequence[int]) -> list[Draft]:
        """Drafts that take time, of those requests alone whose forecast pays for it."""
        forecasts = []
        for one, limit in zip(running, limits, strict=True):
            chances = [] if limit <= 0 or one.account.in_debt else drafter.forecast(one.state, limit)
            forecasts.append(Draft([0] * len(chances), chances))
        counts = self.cost.choose(forecasts, len(running), seconds_each=self._seconds_each)
        tries = [bool(f.ids) and one.tries(n > 0) for one, f, n in zip(running, forecasts, counts, strict=True)]
        if not any(tries):
            return [_NOTHING] * len(running)
        price, start = self.cost.price(len(running)), time.perf_counter()
        drafts = drafter.propose_all(
            [one.state for one in running],
            [max(count, 1) if tried else 0 for count, tried in zip(counts, tries, strict=True)],
            min(self._seconds_each / price, 1.0) if price else 0.0,
        )
        each = (time.perf_counter() - start) / max(1, sum(len(draft.ids) for draft in drafts))
        self._seconds_each += (each - self._seconds_each) * (_LEARNING if self._seconds_each else 1.0)
        return drafts

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
        one.state.extend(ids, found)
