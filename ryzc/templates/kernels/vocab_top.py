"""The best candidates of a row of logits, its largest logit and its partition sum.

Each candidate is the first largest element of the first largest chunk. It is taken out of the row by
writing -inf over it, and all are put back at the end, so the logits and their maxima stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I32, I64, Function, Value, vec
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share
from ryzc.templates.kernels.vocab_max import CHUNK, LANES, ROW, chunk_largest, vectors_of
from ryzc.templates.kernels.vocab_sum import row_largest, slices


@dataclass(frozen=True)
class VocabTop(Kernel):
    """Parameters: ``stride`` as in :class:`.vocab_max.VocabMax`, and the candidates a row has room for."""

    stride: int
    max_candidates: int

    operands: ClassVar[tuple[str, ...]] = ("chunk_max", "partial")

    def __post_init__(self) -> None:
        require_multiple(self, CHUNK, stride=self.stride)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        chunks, parts = self.stride // CHUNK, slices(self.stride)
        fn = begin(module, symbol, self.operands)
        logits, wanted = context_field(fn, "logits"), context_field(fn, "candidate_count")
        with fn.loop(*share(fn, context_field(fn, "row_count"))) as rows:
            row = rows.index
            chunk_max = fn.at(fn.args["chunk_max"], row * (4 * chunks))
            partial = fn.at(fn.args["partial"], row * (4 * parts))
            fn.store(row_largest(fn, chunk_max, chunks), context_field(fn, "row_max"), row << 2, align=4)
            with fn.loop(0, parts, 1, [fn.const(F32, 0.0)]) as i:
                i.values = [i.values[0] + fn.load(F32, partial, i.index << 2, align=4)]
            fn.store(i.results[0], context_field(fn, "row_sum"), row << 2, align=4)

            base = fn.at(logits, row * (4 * self.stride))
            ids = fn.at(context_field(fn, "candidate_ids"), row * (4 * self.max_candidates))
            best = fn.at(context_field(fn, "candidate_logits"), row * (4 * self.max_candidates))
            with fn.loop(0, wanted) as c:
                chunk = _first_largest(fn, chunk_max, chunks)
                start = fn.at(base, chunk * (4 * CHUNK))
                offset = _first_largest(fn, start, CHUNK)
                value = fn.load(F32, start, offset << 2, align=4)
                fn.store((chunk * CHUNK + offset).to_int(I32), ids, c.index << 2, align=4)
                fn.store(value, best, c.index << 2, align=4)
                fn.store(fn.const(F32, float("-inf")), start, offset << 2, align=4)
                fn.store(chunk_largest(fn, start), chunk_max, chunk << 2, align=4)
            # Last out, first in: where -inf itself was taken twice, the first copy is the true value.
            with fn.loop(0, wanted) as c:
                index = wanted - 1 - c.index
                token = fn.load(I32, ids, index << 2, align=4).to_int(I64)
                value, at = fn.load(F32, best, index << 2, align=4), (token // CHUNK) << 2
                fn.store(value, base, token << 2, align=4)
                fn.store(fn.load(F32, chunk_max, at, align=4).maximum(value), chunk_max, at, align=4)
        fn.finish()


KERNEL = VocabTop


def _first_largest(fn: Function, values: Value, count: int) -> Value:
    """Index of the first largest of some floats; 0 where all are NaN or -inf."""
    lanes = vec(I32, LANES)

    def step(first: Value, found: Value, carried: list[Value]) -> list[Value]:
        index = first.to_int(I32).splat(LANES) + fn.const(lanes, list(range(LANES)))
        better = found.compare(">", carried[0])
        return [better.select(found, carried[0]), better.select(index, carried[1])]

    start = [fn.const(ROW, float("-inf")), fn.const(lanes, 0)]
    best, index = vectors_of(fn, values, count, start, step)
    at_best = best.compare("==", best.max().splat(LANES))
    return at_best.select(index, count).smallest().to_int(I64)


def reference(
    logits: npt.NDArray[np.float32], candidates: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], np.float32, np.float64]:
    """The meaning for one row: ids and logits of the candidates, largest logit, partition sum."""
    order = np.argsort(-logits, kind="stable")[:candidates]
    largest = logits.max()
    return order, logits[order], largest, np.exp(logits.astype(np.float64) - largest).sum()
