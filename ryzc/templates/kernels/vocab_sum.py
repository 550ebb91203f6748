"""Partial sums of ``exp(logit - largest)``: 64 chunks of a row make a slice.

Slices are fixed by the vocabulary, not by the threads, so that the total has the same bits everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import Function, Value
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share
from ryzc.templates.kernels.scalar_math import exp
from ryzc.templates.kernels.vocab_max import CHUNK, LANES, ROW, vectors_of

SLICE = 64 * CHUNK


def slices(stride: int) -> int:
    """Slices of a row."""
    return -(-stride // SLICE)


def row_largest(fn: Function, chunk_max: Value, chunks: int) -> Value:
    """The largest of a row's chunk maxima."""
    lowest = [fn.const(ROW, float("-inf"))]
    (best,) = vectors_of(fn, chunk_max, chunks, lowest, lambda _, v, carried: [carried[0].maximum(v)])
    return best.max()


@dataclass(frozen=True)
class VocabSum(Kernel):
    """Parameter: ``stride`` as in :class:`.vocab_max.VocabMax`."""

    stride: int

    operands: ClassVar[tuple[str, ...]] = ("chunk_max", "partial")

    def __post_init__(self) -> None:
        require_multiple(self, CHUNK, stride=self.stride)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        chunks, count = self.stride // CHUNK, slices(self.stride)
        fn = begin(module, symbol, self.operands)
        logits = context_field(fn, "logits")
        with fn.loop(*share(fn, context_field(fn, "row_count") * count)) as i:
            row, part = i.index // count, i.index % count
            largest = row_largest(fn, fn.at(fn.args["chunk_max"], row * (4 * chunks)), chunks).splat(LANES)
            base = fn.at(logits, row * (4 * self.stride))
            start, end = part * SLICE, part * SLICE + SLICE
            last = fn.below(end, self.stride)
            with fn.loop(start, last, LANES, [fn.const(ROW, 0.0)]) as k:
                k.values = [k.values[0] + exp(fn, fn.load(ROW, base, k.index << 2, align=4) - largest)]
            fn.store(k.results[0].sum(), fn.args["partial"], i.index << 2, align=4)
        fn.finish()


KERNEL = VocabSum
