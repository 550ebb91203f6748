"""The sampling of one request."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

from ryzc.errors import InternalError, UsageError
from ryzc.runtime.sampling.adjustments import Adjustments
from ryzc.runtime.sampling.grammar import Grammar
from ryzc.runtime.sampling.params import SamplingParams
from ryzc.runtime.sampling.rows import RowParameters

MAX_CANDIDATES = 256
_SMALLEST, _LARGEST = 1.2e-38, 3.4e38
"""Inverse temperatures between these are normal numbers of float32."""


class Sampler:
    """Tells native code how to draw the tokens of one request, and follows them.

    Args:
        params: how they are chosen.
        vocab_size: logits that a row has.
        prompt: the tokens before the first drawn one.
        grammar: what the tokens have to follow.
        max_candidates: how many candidates a step can find.

    Attributes:
        seed: of the request's noise.
        candidates: how many candidates a step with its rows has to find.

    Raises:
        UsageError: a bias is for a token that the model does not know.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        vocab_size: int,
        prompt: Sequence[int] = (),
        grammar: Grammar | None = None,
        max_candidates: int = MAX_CANDIDATES,
    ) -> None:
        unknown = max(params.logit_bias, default=0)
        if unknown >= vocab_size:
            raise UsageError(f"there is no token {unknown}", hint=f"ids are below {vocab_size} (logit-bias)")
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self._grammar = None if grammar is None else grammar.start()
        adjusts = params.penalizes_recent or params.penalizes_generated or bool(params.logit_bias)
        self._adjustments = Adjustments(params, prompt) if adjusts else None
        top_k = _top_k(params, vocab_size, max_candidates)
        self.candidates = top_k if 0 < top_k <= max_candidates else 1
        self._static = self._filters(top_k)

    @property
    def adjusts(self) -> bool:
        """Whether rows are changed before a token is drawn from them."""
        return self._adjustments is not None or self._grammar is not None

    def _filters(self, top_k: int) -> tuple[float, float, float, float, int]:
        """Inverse temperature, top-p, log of min-p, typical-p, top-k."""
        p = self.params
        if p.temperature == 0:
            return 0.0, 1.0, -math.inf, 1.0, 0
        inverse = min(max(1 / p.temperature, _SMALLEST), _LARGEST)
        return inverse, p.top_p, math.log(p.min_p) if p.min_p > 0 else -math.inf, p.typical_p, top_k

    def prepare(self, rows: RowParameters, first: int, position: int, drafts: Sequence[int] = ()) -> int:
        """Say how tokens are drawn from rows ``first .. first + len(drafts)`` of the next step.

        Row ``j`` is prepared as if ``drafts[:j]`` had been accepted; afterwards the state is what it was.

        Args:
            position: the place of the first drawn token in the request.

        Returns:
            How many rows were prepared: fewer where the grammar does not allow a draft, or a draft ends the text.
        """
        if self._adjustments is None and self._grammar is None:
            for i in range(len(drafts) + 1):
                rows.put(first + i, (self.seed, position + i, *self._static, 0, 0, 0))
            return len(drafts) + 1
        count = len(drafts) + 1
        masked = self._grammar is not None
        if self._grammar is not None:
            count = self._grammar.fill(rows.masks, first, drafts)
        pushed = 0
        try:
            for i in range(count):
                span = (0, 0) if self._adjustments is None else self._adjustments.write(rows)
                rows.put(first + i, (self.seed, position + i, *self._static, masked, *span))
                if self._adjustments is not None and i + 1 < count:
                    self._adjustments.push(drafts[i])
                    pushed += 1
        finally:
            if self._adjustments is not None:
                for id_ in reversed(drafts[:pushed]):
                    self._adjustments.pop(id_)
        return count

    def forced(self) -> list[int]:
        """Tokens that a grammar leaves no choice about: drafts that are surely accepted."""
        return [] if self._grammar is None else self._grammar.forced()

    def foresee(self, rows: RowParameters, row: int, position: int, drafts: Sequence[int] = ()) -> None:
        """Say how another model draws what may be drawn at a position, behind these drafts.

        The noise is the same, so that two models of nearly the same mind draw nearly always the same. A grammar is
        left out: its masks are the rows' of the model that has the last word.
        """
        span = (0, 0)
        if self._adjustments is not None:
            for id_ in drafts:
                self._adjustments.push(id_)
            span = self._adjustments.write(rows)
            for id_ in reversed(drafts):
                self._adjustments.pop(id_)
        rows.put(row, (self.seed, position, *self._static, 0, *span))

    def accept(self, id_: int) -> None:
        """A token became certain.

        Raises:
            InternalError: it is -1: there was nothing to draw from.
        """
        if id_ < 0:
            raise InternalError("no token can be drawn: the logits are not finite, or every token is forbidden")
        if self._adjustments is not None:
            self._adjustments.push(id_)
        if self._grammar is not None:
            self._grammar.accept(id_)


def _top_k(params: SamplingParams, vocab_size: int, max_candidates: int) -> int:
    """How many of the best tokens native code has to look at; 0 is all."""
    if params.temperature == 0:
        return 0
    top_k = params.top_k if params.top_k < vocab_size else 0
    if params.typical_p == 1:
        return top_k
    return min(top_k or vocab_size, max_candidates, vocab_size)
