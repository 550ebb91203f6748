"""Drafts from a smaller model of the same vocabulary.

It reads what became certain and then drafts token by token, all requests in the same steps. With the request's own
noise it draws what the large model would draw from the same probabilities, so that sampled drafts are accepted nearly
as often as greedy ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ryzc.bundle import Bundle
from ryzc.bundle.plan import Plan
from ryzc.errors import UsageError
from ryzc.runtime.bench import weight_bytes
from ryzc.runtime.speculation import Draft, DraftState, Draw, Found
from ryzc.runtime.speculation.chances import Chances, Guess, Guesses
from ryzc.runtime.step import CompiledModel, StepResult
from ryzc.runtime.tokenizer import Tokenizer

_BINS = 8
"""Kinds of guesses, by the probability that the small model gives them."""

_PRIOR = tuple((i + 0.5) / _BINS for i in range(_BINS))

_ASSUMED, _WEIGHT = 0.6, 3.0
"""The chance of a draft of a new request at first, and how many drafts this counts for."""

_LEARNING = 0.15
"""What a draft counts for against all of the request before it."""


class Greedy:
    """The best token."""

    def prepare(self, model: CompiledModel, row: int, position: int, drafts: Sequence[int]) -> None:
        pass

    def drawn(self, result: StepResult, row: int) -> int:
        return int(result.ids[row, 0])


class DraftModel:
    """A small model that drafts for a large one.

    Args:
        model: the small one, with a sequence for each running request.
        target: the plan of the large one.
    """

    name = "draft_model"
    candidates = 0

    def __init__(self, model: CompiledModel, target: Plan) -> None:
        self.model = model
        self.vocab_size = target.vocab_size
        self.relative_cost = weight_bytes(model.plan) / weight_bytes(target)
        self.chances = Chances(_PRIOR)
        self.expected = Chances((_ASSUMED,), _WEIGHT)
        table = model.page_table  # each sequence has its own pages for good; memory is taken when they are written
        table[:] = np.arange(table.size, dtype=np.int32).reshape(table.shape)
        self._free = list(range(len(table) - 1, -1, -1))

    @classmethod
    def load(
        cls, draft: str | Path | Bundle, target: Bundle, *, context: int, sequences: int, threads: int | None = None
    ) -> DraftModel:
        """Load a bundle that drafts for another.

        Raises:
            UsageError: the vocabularies differ.
            BundleError, TargetError: it cannot be loaded.
        """
        bundle = draft if isinstance(draft, Bundle) else Bundle.open(Path(draft))
        require_same_vocabulary(bundle, target)
        if context > bundle.plan.context_length:
            context = bundle.plan.context_length
        model = CompiledModel(bundle, context=context, sequences=sequences, threads=threads)
        return cls(model, target.plan)

    def open(self, prompt: Sequence[int], *, private: bool = False, draw: Draw | None = None) -> DraftModelState:
        return DraftModelState(self, self._free.pop() if self._free else None, prompt, draw or Greedy())

    def give_back(self, sequence: int) -> None:
        """A request no longer needs its sequence."""
        self._free.append(sequence)

    def forecast(self, state: DraftState, most: int) -> list[float]:
        assert isinstance(state, DraftModelState)
        return [state.expected] * min(most, state.room)

    def unread(self, state: DraftState) -> int:
        assert isinstance(state, DraftModelState)
        return max(0, len(state.text) - 1 - state.held)

    def propose_all(self, states: Sequence[DraftState], most: Sequence[int], least: float) -> list[Draft]:
        chains = []
        for state, limit in zip(states, most, strict=True):
            assert isinstance(state, DraftModelState)
            state.held = min(state.held, len(state.text) - 1)
            chains.append(_Chain(state, min(limit, state.room)))
        active = [chain for chain in chains if chain.most > 0]
        if sum(len(chain.unread) for chain in active) > self.model.max_tokens:
            self.read([chain.state for chain in active])
        while active:
            for first in range(0, len(active), self._rows):
                self._draft(active[first : first + self._rows], least)
            active = [chain for chain in active if len(chain.guesses) < chain.most]
        return [chain.state.remember(chain.guesses) for chain in chains]

    @property
    def _rows(self) -> int:
        return min(self.model.max_rows, self.model.max_tokens)

    def read(self, states: Sequence[DraftState]) -> None:
        for state in states:
            assert isinstance(state, DraftModelState)
            while self.unread(state):
                end = min(state.held + self.model.max_tokens, len(state.text) - 1)
                part = range(state.held, end)
                self.model.step(state.text[state.held : end], part, [state.sequence or 0] * len(part), [])
                state.held = end

    def _draft(self, chains: Sequence[_Chain], least: float) -> None:
        """Another token of each chain."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        rows: list[int] = []
        for row, chain in enumerate(chains):
            state, unread = chain.state, chain.unread
            tokens += unread
            positions += range(state.held, state.held + len(unread))
            sequences += [state.sequence or 0] * len(unread)
            rows.append(len(tokens) - 1)
            state.held += len(unread)
            state.draw.prepare(self.model, row, state.held, [guess[0] for guess in chain.guesses])
        result = self.model.step(tokens, positions, sequences, rows)
        for row, chain in enumerate(chains):
            chain.add(chain.state.draw.drawn(result, row), result, row, least)


class DraftModelState:
    """What the small model has read of a request.

    Attributes:
        text: the certain tokens.
        held: tokens of it, and of the drafts behind it, whose keys and values the small model has.
        sequence: of the small model; ``None`` where all were taken, and nothing is drafted then.
        draw: how to draw.
    """

    def __init__(self, drafter: DraftModel, sequence: int | None, prompt: Sequence[int], draw: Draw) -> None:
        self.drafter = drafter
        self.text = list(prompt)
        self.held = 0
        self.sequence = sequence
        self.draw = draw
        self.expected = drafter.expected[0]
        self._drafts: list[int] = []
        self._guesses = Guesses()

    @property
    def room(self) -> int:
        """Drafts that the small model's context still takes."""
        return max(0, self.drafter.model.context - len(self.text)) if self.sequence is not None and self.text else 0

    def extend(self, ids: Sequence[int], found: Found | None) -> None:
        self._guesses.settle(ids)
        certain = len(self.text)
        self.text += ids
        if self._drafts:
            right = 0
            while right < min(len(self._drafts), len(ids)) and self._drafts[right] == ids[right]:
                right += 1
            for accepted in [True] * right + [False] * (right < min(len(self._drafts), len(ids))):
                self.expected += (accepted - self.expected) * _LEARNING
                self.drafter.expected.count(0, accepted)
            self.held = min(self.held, certain + right)
            self._drafts = []

    def remember(self, guesses: list[Guess]) -> Draft:
        """The drafts whose outcome :meth:`extend` will show."""
        draft = self._guesses.draft(guesses)
        self._drafts = draft.ids
        return draft

    def propose(self, most: int) -> Draft:
        return self.drafter.propose_all([self], [most], 0.0)[0]

    def close(self) -> None:
        if self.sequence is not None:
            self.drafter.give_back(self.sequence)
            self.sequence = None


class _Chain:
    """Drafts of a request, so far."""

    def __init__(self, state: DraftModelState, most: int) -> None:
        self.state = state
        self.most = most
        self.guesses: list[Guess] = []
        self._promise = 1.0

    @property
    def unread(self) -> list[int]:
        """What the small model has to read before the next draft."""
        drafts = [guess[0] for guess in self.guesses]
        return self.state.text[self.state.held :] + drafts[max(0, self.state.held - len(self.state.text)) :]

    def add(self, id_: int, result: StepResult, row: int, least: float) -> None:
        """Another token, unless it promises too little or the large model does not know it."""
        drafter = self.state.drafter
        if id_ >= drafter.vocab_size:
            self.most = len(self.guesses)
            return
        probability = math.exp(float(result.all_logits[row, id_] - result.row_max[row])) / float(result.row_sum[row])
        guess = id_, drafter.chances, min(int(probability * _BINS), _BINS - 1)
        self.guesses.append(guess)
        self._promise *= drafter.chances[guess[2]]
        if self._promise < least:
            self.most = len(self.guesses)


def require_same_vocabulary(draft: Bundle, target: Bundle) -> None:
    """Check that an id means the same in two bundles.

    Raises:
        UsageError: it does not.
    """
    ours, theirs = Tokenizer.load(draft.path), Tokenizer.load(target.path)
    if ours.eos_ids != theirs.eos_ids or ours.vocabulary() != theirs.vocabulary():
        raise UsageError(
            f"{draft.path} does not have the tokens of the model that it should draft for",
            hint="take a small model of the same family",
        )
