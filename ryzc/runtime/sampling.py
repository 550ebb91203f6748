"""Choosing the next token from a row of logits.

The order is llama.cpp's: repeat penalty, top-k, top-p, min-p, temperature, draw. Of equal logits the
lower id counts as the better one, as in a step's candidates.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ryzc.errors import InternalError, UsageError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose a token; the defaults are llama.cpp's.

    Attributes:
        temperature: divides the logits; 0 always takes the best token.
        top_k: only so many of the best tokens are considered; 0 is all.
        top_p: only the fewest tokens whose probabilities reach this together; 1 is all.
        min_p: only tokens at least this probable, relative to the best one; 0 is all.
        seed: of the random numbers; ``None`` draws one.
        repeat_penalty: divides positive and multiplies negative logits of recent tokens; 1 is off.
        repeat_last_n: how many tokens are recent, the prompt's included; 0 is off, -1 is all.

    Raises:
        UsageError: a value is out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64

    def __post_init__(self) -> None:
        _require(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or more")
        _require(self.top_k >= 0, "top-k", self.top_k, "0 (off) or more")
        _require(0 <= self.top_p <= 1, "top-p", self.top_p, "between 0 and 1 (off)")
        _require(0 <= self.min_p <= 1, "min-p", self.min_p, "between 0 (off) and 1")
        _require(self.repeat_penalty > 0, "repeat-penalty", self.repeat_penalty, "above 0; 1 is off")
        _require(self.repeat_last_n >= -1, "repeat-last-n", self.repeat_last_n, "-1 (all), 0 (off) or more")
        if self.seed is not None:
            _require(0 <= self.seed < 1 << 64, "seed", self.seed, "between 0 and 2^64 - 1")

    @property
    def penalizes(self) -> bool:
        """Whether recent tokens matter."""
        return self.repeat_penalty != 1 and self.repeat_last_n != 0


def _require(holds: bool, name: str, value: float, range_: str) -> None:
    if not holds or not math.isfinite(value):
        raise UsageError(f"{name} cannot be {value}", hint=f"choose a value {range_}")


class Logits(Protocol):
    """What sampling needs of :class:`ryzc.runtime.step.StepResult`."""

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """The best ids of each row, ``int32 [R, C]``, best first."""

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Their logits, ``float32 [R, C]``."""

    def full(self, row: int) -> npt.NDArray[np.float32]:
        """The logits of a row over the whole vocabulary."""


class Sampler:
    """Chooses the tokens of one request.

    Args:
        params: how.
        vocab_size: logits a row has.
        max_candidates: how many candidates a step can find.
        history: the tokens of the prompt.
    """

    def __init__(
        self, params: SamplingParams, *, vocab_size: int, max_candidates: int, history: Iterable[int] = ()
    ) -> None:
        self.params = params
        self._vocab_size = vocab_size
        self._max_candidates = max_candidates
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        last = params.repeat_last_n if params.penalizes else 0
        self._recent = deque(history, maxlen=None if last < 0 else last)

    def accept(self, id_: int) -> None:
        """Count a token as recent."""
        self._recent.append(id_)

    @property
    def candidates(self) -> int:
        """How many candidates the next step has to find."""
        return self._needed() or 1

    def _needed(self) -> int:
        """How many of the best tokens decide the choice; 0 where only the whole row does.

        A penalty of 1 or more only lowers logits, so the best k afterwards are among the best
        ``k + penalized`` before.
        """
        p = self.params
        keep = 1 if p.temperature == 0 else p.top_k
        if keep == 0 or (p.penalizes and p.repeat_penalty < 1):
            return 0
        needed = min(keep + len(set(self._recent)), self._vocab_size)
        return needed if needed <= self._max_candidates else 0

    def pick(self, result: Logits, row: int = 0) -> int:
        """The next token of a row whose step found :attr:`candidates` candidates.

        Raises:
            InternalError: a logit that decides the choice is not finite, or candidates are missing.
        """
        needed = self._needed()
        recent = np.fromiter(set(self._recent), np.int64)
        if needed:
            if result.ids.shape[1] < needed:
                raise InternalError(f"sampling needs {needed} candidates, the step found {result.ids.shape[1]}")
            ids, found = result.ids[row, :needed], result.logits[row, :needed]
            penalized = np.flatnonzero(np.isin(ids, recent))
        else:
            found = result.full(row)
            ids, penalized = np.arange(len(found), dtype=np.int32), recent
        if not np.isfinite(found).all():
            raise InternalError("the model computed logits that are not finite")
        logits = found.astype(np.float64)
        if len(penalized):
            before, factor = logits[penalized], self.params.repeat_penalty
            logits[penalized] = np.where(before > 0, before / factor, before * factor)
        chosen = self._choose(ids, logits)
        self.accept(chosen)
        return chosen

    def _choose(self, ids: npt.NDArray[np.int32], logits: npt.NDArray[np.float64]) -> int:
        p = self.params
        if p.temperature == 0:
            return int(ids[logits == logits.max()].min())
        if 0 < p.top_k < len(ids):
            threshold = np.partition(logits, -p.top_k)[-p.top_k]
            # Ties at the threshold are settled below, by the sort.
            near = logits >= threshold
            ids, logits = ids[near], logits[near]
            order = np.lexsort((ids, -logits))[: p.top_k]
            ids, logits = ids[order], logits[order]
        # Top-p and min-p each keep a beginning of the sorted tokens. So it does no harm to drop those
        # that min-p excludes before sorting, as long as top-p still counts their probability.
        relative = logits - logits.max()
        total = np.exp(relative).sum()
        if p.min_p > 0:
            probable = relative >= math.log(p.min_p)
            ids, logits, relative = ids[probable], logits[probable], relative[probable]
        order = np.lexsort((ids, -relative))
        ids, relative = ids[order], relative[order]
        if p.top_p < 1:
            reached = np.cumsum(np.exp(relative)) >= p.top_p * total
            keep = int(reached.argmax()) + 1 if reached.any() else len(ids)
            ids, relative = ids[:keep], relative[:keep]
        with np.errstate(over="ignore"):  # a tiny temperature: all but the best go to zero
            cumulative = np.cumsum(np.exp(relative / p.temperature))
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])
