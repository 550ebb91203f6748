"""The largest logit of every chunk of 128, the first step of reducing a row of logits.

Runs in the phase after the head; :mod:`.vocab_sum` and :mod:`.vocab_top` follow, each in its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, Function, Value, vec
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, share

LANES = 16
CHUNK = 128
ROW = vec(F32, LANES)


def chunk_largest(fn: Function, chunk: Value) -> Value:
    """The largest of the 128 floats at ``chunk``; never a NaN."""
    best = fn.const(ROW, float("-inf"))
    for i in range(CHUNK // LANES):
        best = best.maximum(fn.load(ROW, chunk, 4 * LANES * i, align=4))
    return best.max()


@dataclass(frozen=True)
class VocabMax(Kernel):
    """Parameter: ``stride``, elements of a row of logits, a multiple of 128; the tail is -inf."""

    stride: int

    operands: ClassVar[tuple[str, ...]] = ("chunk_max",)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        logits = context_field(fn, "logits")
        chunks = context_field(fn, "row_count") * (self.stride // CHUNK)
        with fn.loop(*share(fn, chunks)) as i:
            fn.store(chunk_largest(fn, fn.at(logits, i.index * (4 * CHUNK))), fn.args["chunk_max"], i.index << 2)
        fn.finish()


KERNEL = VocabMax
