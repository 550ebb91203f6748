"""Adjusts the logits that rows are drawn from: penalties and biases of single tokens, and a mask of allowed ones.

Runs in the phase of :mod:`.vocab_max`, before it: both give a thread the same chunks, so what one adjusts
the same one reduces. Each thread goes through all of a row's adjustments and makes those of its own chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I1, I16, I32, I64, Function, Value, vec
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, row_field, share
from ryzc.templates.kernels.vocab_max import CHUNK, LANES, ROW


@dataclass(frozen=True)
class VocabAdjust(Kernel):
    """Parameters: ``vocab_size``, and ``stride`` as in :class:`.vocab_max.VocabMax`."""

    vocab_size: int
    stride: int

    operands: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        require_multiple(self, CHUNK, stride=self.stride)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        chunks = self.stride // CHUNK
        fn = begin(module, symbol, self.operands)
        logits, masks = context_field(fn, "logits"), context_field(fn, "token_masks")
        first, last = share(fn, context_field(fn, "row_count") * chunks)
        with fn.loop(first // chunks, (last + (chunks - 1)) // chunks) as rows:
            row = rows.index
            base, start = fn.at(logits, row * (4 * self.stride)), row * chunks
            low = (first - start).compare("<", 0).select(fn.i64(0), first - start) * CHUNK
            high = fn.below(last - start, chunks) * CHUNK
            _adjust(fn, row, base, low, fn.below(high, self.vocab_size))
            with fn.when(row_field(fn, row, "masked").compare("!=", 0)):
                _mask(fn, fn.at(masks, row * (self.stride // 8)), base, low, high)
        fn.finish()


KERNEL = VocabAdjust


def _adjust(fn: Function, row: Value, base: Value, low: Value, high: Value) -> None:
    """A row's adjustments, in order, of ids in ``low .. high - 1``."""
    start, count = (row_field(fn, row, f"adjustment_{name}").to_int(I64) for name in ("start", "count"))
    end = fn.below(start + count, context_field(fn, "adjustment_capacity"))
    ids, factors, offsets = (context_field(fn, f"adjustment_{name}") for name in ("ids", "factors", "offsets"))
    with fn.loop(start.compare("<", 0).select(end, start), end) as i:
        id_ = fn.load(I32, ids, i.index << 2, align=4).to_int(I64)
        with fn.when(id_.compare(">=", low) & id_.compare("<", high)):
            logit = fn.load(F32, base, id_ << 2, align=4)
            factor = fn.load(F32, factors, i.index << 2, align=4)
            scaled = logit.compare(">", 0.0).select(logit / factor, logit * factor)
            fn.store(scaled + fn.load(F32, offsets, i.index << 2, align=4), base, id_ << 2, align=4)


def _mask(fn: Function, mask: Value, base: Value, low: Value, high: Value) -> None:
    """-inf over the logits of ``low .. high - 1`` whose bits are not set."""
    with fn.loop(low, high, LANES) as i:
        allowed = fn.load(I16, mask, i.index >> 3, align=2).bits(vec(I1, LANES))
        at = i.index << 2
        fn.store(allowed.select(fn.load(ROW, base, at, align=4), float("-inf")), base, at, align=4)


def reference(
    logits: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int32],
    factors: npt.NDArray[np.float32],
    offsets: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float32]:
    """The meaning for one row, to the bit."""
    out = logits.copy()
    for id_, factor, offset in zip(ids, factors, offsets, strict=True):
        if 0 <= id_ < len(out):
            out[id_] = (out[id_] / factor if out[id_] > 0 else out[id_] * factor) + offset
    if mask is not None:
        out[~mask] = -np.inf
    return out
