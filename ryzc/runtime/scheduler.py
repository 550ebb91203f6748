"""Which tokens of which sequence go into the next step, and who holds the pages they need.

A step takes, under the bundle's bounds of tokens and rows of logits: of every sequence that has its prompt behind it
the last token, with drafts to verify; then pieces of prompts, whole pages at a time. Sequences are served by their
**due** times: ``arrival + PATIENCE``, or the request's own deadline where that is earlier, less ``AGING`` a point of
priority. A due time never changes, so whoever waits long enough comes before all newcomers, whatever their priority.

Pages are never promised twice. A sequence begins when its whole prompt fits; where a running one needs a page and none
is free, the sequence due last gives all of its own back and waits again. It loses time but no token: its prompt is then
what it had so far, and because a token's keys and values have the same bits however they are computed, it goes on
exactly as it would have.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

import numpy as np

from ryzc.errors import InternalError, PoolFullError
from ryzc.runtime.kv import PagePool
from ryzc.runtime.metrics import Metrics
from ryzc.runtime.request import Sequence

PATIENCE = 30.0
"""Seconds after its arrival at which a request without a deadline is due."""
AGING = 5.0
"""Seconds of waiting that weigh as much as one point of priority."""
MIXED_TOKENS = 128
"""Prompt tokens in a step that others decode in: more would make them wait longer than a reader likes."""


@dataclass(slots=True)
class Part:
    """What a step computes of a sequence.

    Attributes:
        sequence: whose.
        start: position of the first token.
        tokens: how many.
        drafts: guesses behind the last token, included in ``tokens``.
        rows: its last tokens whose logits are wanted.
        draws: how many of these, at their end, draw a token.
        first_row: the first of their rows in the step.
    """

    sequence: Sequence
    start: int
    tokens: int
    drafts: Items[int] = ()
    rows: int = 0
    draws: int = 0
    first_row: int = 0


class Scheduler:
    """Orders sequences, gives them pages, and plans steps; used by one thread at a time.

    Args:
        pool: the pages and the page table.
        metrics: told of preemptions and cached tokens.
        max_tokens, max_rows: bounds of a step.
        rows: rows of the page table that sequences may take.

    Attributes:
        running: sequences that hold a row, by due time.
    """

    def __init__(self, pool: PagePool, metrics: Metrics, *, max_tokens: int, max_rows: int, rows: Items[int]) -> None:
        self.pool = pool
        self.metrics = metrics
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.running: list[Sequence] = []
        self._free_rows = list(rows)
        self._waiting: list[tuple[float, int, Sequence]] = []
        self._number = count()

    @property
    def waiting(self) -> int:
        """Sequences without a row."""
        return len(self._waiting)

    @property
    def free_rows(self) -> int:
        """Rows that no sequence holds."""
        return len(self._free_rows)

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.running or self._waiting)

    def sequences(self) -> list[Sequence]:
        """Every sequence, running or not."""
        return [*self.running, *(entry[2] for entry in self._waiting)]

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        heapq.heappush(self._waiting, (sequence.due, next(self._number), sequence))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, running or not; what it computed stays in the prefix cache."""
        if sequence.row >= 0:
            self._stop(sequence)
            self.running.remove(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)

    # --- who runs -------------------------------------------------------------------------------

    def admit(self) -> list[Sequence]:
        """Let waiting sequences begin, as far as rows and pages go; those that did."""
        begun: list[Sequence] = []
        while self._waiting:
            sequence = self._waiting[0][2]
            if not self._free_rows and not self._displace(sequence):
                break
            if not self._begin(sequence):
                break
            heapq.heappop(self._waiting)
            begun.append(sequence)
        return begun

    def _displace(self, sequence: Sequence) -> bool:
        """Make room for a more important request: the running sequence due last waits again."""
        last = self.running[-1]
        if last.due <= sequence.due or last.request.options.priority >= sequence.request.options.priority:
            return False
        self.preempt(last)
        return True

    def _begin(self, sequence: Sequence) -> bool:
        """Give a sequence a row and what the prefix cache has of it, if the rest of its prompt fits."""
        page_tokens = self.pool.page_tokens
        # What others were promised counts too, and a page for each of them to go on.
        promised = sum(-(-max(0, len(s.ids) + 1 - s.held) // page_tokens) + 1 for s in self.running)
        needed = -(-(len(sequence.ids) + 1) // page_tokens)
        if self.running and promised + needed > self.pool.available:  # asked last, because it is dear
            needed -= self.pool.in_use(sequence.ids[:-1], sequence.request.options.salt)
            if promised + needed > self.pool.available:
                return False
        sequence.row = self._free_rows.pop()
        self._adopt(sequence)
        insort(self.running, sequence, key=_due)
        return True

    def _stop(self, sequence: Sequence) -> None:
        """Take row and pages back."""
        sequence.stop_drafting()
        self.pool.release(sequence.row)
        self._free_rows.append(sequence.row)
        sequence.row, sequence.held, sequence.computed, sequence.published = -1, 0, 0, 0

    def preempt(self, sequence: Sequence) -> None:
        """Let a running sequence wait again; it will compute anew what the prefix cache loses."""
        self._stop(sequence)
        self.running.remove(sequence)
        self.add(sequence)
        self.metrics.preemptions += 1

    # --- pages ----------------------------------------------------------------------------------

    def _adopt(self, sequence: Sequence) -> None:
        """Take over the pages of the longest known prefix; the last token is always computed, for its logits."""
        if sequence.request.options.prompt_logprobs is not None:
            return
        known = self.pool.adopt(sequence.row, sequence.ids[:-1], sequence.request.options.salt)
        sequence.computed = sequence.held = sequence.published = known

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Make room for so many tokens, at the cost of sequences due later; false if it was its own."""
        while tokens > sequence.held:
            whole = -(-tokens // self.pool.page_tokens) * self.pool.page_tokens
            try:
                self.pool.resize(sequence.row, whole)
                sequence.held = whole
            except PoolFullError:
                victim = self.running[-1]
                alone = victim is sequence and len(self.running) == 1
                if alone:
                    raise InternalError("the KV pool is too small for one sequence") from None
                self.preempt(victim)
                if victim is sequence:
                    return False
        return True

    def publish(self, sequence: Sequence) -> None:
        """Let others find the pages that a sequence has filled since."""
        whole = sequence.computed - sequence.computed % self.pool.page_tokens
        if whole > sequence.published and sequence.request.options.prompt_logprobs is None:
            self.pool.publish(sequence.row, sequence.ids[:whole], sequence.request.options.salt)
            sequence.published = whole

    # --- a step ---------------------------------------------------------------------------------

    def plan(self, drafts: Drafts | None = None) -> list[Part]:
        """The next step.

        Args:
            drafts: for sequences that decode, and the tokens that the step has room for, guesses at what follows.
        """
        parts: list[Part] = []
        decoding = [s for s in self.running if s.decoding]
        needed = sum(1 << s.raw_rows for s in decoding)
        if needed > self.max_rows:  # then they take turns
            decoding.sort(key=_last_token)
        prompts = [s for s in self.running if not s.decoding]
        guesses: Items[Items[int]] = ()
        if drafts is not None and decoding and not prompts:
            guesses = drafts(decoding, max(0, min(self.max_rows, self.max_tokens) - needed))
        room = Room(self.max_tokens, self.max_rows)
        for i, sequence in enumerate(decoding):
            if sequence.row < 0 or room.rows < 1 << sequence.raw_rows:  # it had to give its pages away; no room
                continue
            guess = guesses[i] if guesses else ()
            if guess and not self._spare(sequence, len(guess), len(decoding)):
                guess = ()
            if self._grow(sequence, len(sequence.ids) + len(guess)):
                room.take(1 + len(guess), (1 + len(guess)) << sequence.raw_rows)
                parts.append(
                    Part(sequence, len(sequence.ids) - 1, 1 + len(guess), guess, 1 + len(guess), 1 + len(guess))
                )
        if parts:
            room.tokens = min(room.tokens, MIXED_TOKENS)
        if prompts:
            self._plan_prompts(parts, prompts, room)
        return [part for part in parts if part.sequence.row >= 0]

    def _plan_prompts(self, parts: list[Part], prompts: list[Sequence], room: Room) -> None:
        """Pieces of prompts, in order, until there is no room."""
        page_tokens = self.pool.page_tokens
        planned: list[Part] = []
        for sequence in prompts:
            if room.tokens < 1 or room.rows < 1 << sequence.raw_rows:
                break
            if sequence.row < 0:
                continue
            aligned = sequence.computed % page_tokens == 0
            if aligned and sequence.held == sequence.computed:
                self._adopt(sequence)
            if aligned and any(_comes_first(part, sequence, page_tokens) for part in planned):
                continue
            tokens = len(sequence.ids) - sequence.computed
            every = sequence.request.options.prompt_logprobs is not None and not sequence.new_tokens
            most = min(room.tokens, room.rows >> sequence.raw_rows) if every else room.tokens
            if tokens > most:  # ends with a page, so that the rest can still be found in the cache
                whole = (sequence.computed + most) // page_tokens * page_tokens - sequence.computed
                tokens = whole if whole > 0 else most
            if not self._grow(sequence, sequence.computed + tokens):
                continue
            last = sequence.computed + tokens == len(sequence.ids)
            part = Part(sequence, sequence.computed, tokens, (), tokens if every else int(last), int(last))
            room.take(tokens, part.rows << sequence.raw_rows)
            parts.append(part)
            planned.append(part)

    def _spare(self, sequence: Sequence, drafts: int, running: int) -> bool:
        """Whether drafts fit without taking a page that a running sequence will need."""
        missing = len(sequence.ids) + drafts - sequence.held
        return missing <= 0 or -(-missing // self.pool.page_tokens) + running <= self.pool.available


Drafts: TypeAlias = Callable[[list[Sequence], int], Items[Items[int]]]


@dataclass(slots=True)
class Room:
    """Tokens and rows of logits that a step has left."""

    tokens: int
    rows: int

    def take(self, tokens: int, rows: int) -> None:
        """Use some."""
        self.tokens -= tokens
        self.rows -= rows


def _last_token(sequence: Sequence) -> float:
    return sequence.last_token


def _due(sequence: Sequence) -> float:
    return sequence.due


def due_time(arrival: float, deadline: float | None, priority: int) -> float:
    """When a request should be served, see the head of this file."""
    patient = arrival + PATIENCE
    return (patient if deadline is None else min(patient, deadline)) - AGING * priority


def _comes_first(part: Part, sequence: Sequence, page_tokens: int) -> bool:
    """Whether a part planned before leads to the very page that a sequence needs next."""
    other = part.sequence
    if other.request.options.salt != sequence.request.options.salt or part.start > sequence.computed:
        return False
    return _shared(other, sequence) >= sequence.computed + page_tokens


def _shared(first: Sequence, second: Sequence) -> int:
    """Tokens that two sequences begin with alike."""
    count = min(len(first.ids), len(second.ids) - 1)
    a, b = np.asarray(first.ids[:count]), np.asarray(second.ids[:count])
    differs = a != b
    return int(differs.argmax()) if differs.any() else count
