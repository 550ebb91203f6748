"""The phases that reduce, adjust and draw from rows of logits, run one after the other as a step does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from harness import frozen, run

from ryzc.runtime.sampling import RowParameters
from ryzc.templates.kernels.vocab_adjust import VocabAdjust
from ryzc.templates.kernels.vocab_draw import VocabDraw
from ryzc.templates.kernels.vocab_max import CHUNK, VocabMax
from ryzc.templates.kernels.vocab_race import VocabRace
from ryzc.templates.kernels.vocab_sum import VocabSum, slices
from ryzc.templates.kernels.vocab_top import VocabTop

MAX_CANDIDATES = 40
F32 = npt.NDArray[np.float32]


def padded(logits: F32) -> F32:
    """Rows with a tail of -inf up to whole chunks, as the runtime keeps them."""
    rows, vocabulary = logits.shape
    stride = -(-vocabulary // CHUNK) * CHUNK
    out = np.full((rows, stride), -np.inf, np.float32)
    out[:, :vocabulary] = logits
    return out


@dataclass
class Drawn:
    """What the phases wrote."""

    logits: F32
    ids: npt.NDArray[np.int32]
    best: F32
    row_max: F32
    row_sum: F32
    drawn: npt.NDArray[np.int32]


@dataclass
class Vocabulary:
    """The phases for a vocabulary on a target."""

    target: str
    size: int
    threads: int = 1
    max_candidates: int = MAX_CANDIDATES
    stride: int = field(init=False)

    def __post_init__(self) -> None:
        self.stride = -(-self.size // CHUNK) * CHUNK

    def draw(self, logits: F32, parameters: RowParameters, *, candidates: int = MAX_CANDIDATES) -> Drawn:
        """Run all phases over ``[R, size]``."""
        work, rows = padded(logits), len(logits)
        chunk_max = np.full((rows, self.stride // CHUNK), 7, np.float32)
        partial, scores = (np.full((rows, slices(self.stride)), 7, np.float32) for _ in range(2))
        winners = np.full((rows, slices(self.stride)), 7, np.int32)
        ids, drawn = np.full((rows, self.max_candidates), -7, np.int32), np.full(rows, -7, np.int32)
        best = np.full((rows, self.max_candidates), 7, np.float32)
        row_max, row_sum = np.full(rows, 7, np.float32), np.full(rows, 7, np.float32)
        step = {"row_count": rows, "row_parameters": frozen(parameters.records[:rows].view(np.uint8))}
        adjustments = self.adjustments(parameters)
        run(
            VocabAdjust(self.size, self.stride),
            self.target,
            [],
            threads=self.threads,
            logits=work,
            **step,
            **adjustments,
        )
        run(VocabMax(self.stride), self.target, [chunk_max], threads=self.threads, row_count=rows, logits=frozen(work))
        maxima = chunk_max.copy()
        self._run(VocabSum(self.stride), [frozen(chunk_max), partial], row_count=rows, logits=frozen(work))
        race = VocabRace(self.stride, self.max_candidates)
        self._run(race, [frozen(chunk_max), scores, winners], logits=frozen(work), **step)
        before = work.copy()
        self._run(
            VocabTop(self.stride, self.max_candidates),
            [chunk_max, frozen(partial)],
            row_count=rows,
            logits=work,
            candidate_count=candidates,
            candidate_ids=ids,
            candidate_logits=best,
            row_max=row_max,
            row_sum=row_sum,
        )
        assert before.tobytes() == work.tobytes()
        assert np.array_equal(maxima, chunk_max)
        self._run(
            VocabDraw(self.stride, self.max_candidates),
            [frozen(chunk_max), frozen(scores), frozen(winners)],
            logits=frozen(work),
            candidate_count=candidates,
            candidate_ids=frozen(ids),
            candidate_logits=frozen(best),
            row_max=frozen(row_max),
            row_sum=frozen(row_sum),
            drawn=drawn,
            **step,
        )
        return Drawn(work[:, : self.size], ids[:, :candidates], best[:, :candidates], row_max, row_sum, drawn)

    def adjustments(self, parameters: RowParameters) -> Mapping[str, int | npt.NDArray[np.generic]]:
        """What the step's context says about adjustments."""
        return {
            "token_masks": frozen(parameters.masks),
            "adjustment_ids": frozen(parameters.ids),
            "adjustment_factors": frozen(parameters.factors),
            "adjustment_offsets": frozen(parameters.offsets),
            "adjustment_capacity": len(parameters.ids),
        }

    def _run(self, kernel: object, operands: list[npt.NDArray[np.generic]], **context: object) -> None:
        run(kernel, self.target, operands, threads=self.threads, **context)  # type: ignore[arg-type]
