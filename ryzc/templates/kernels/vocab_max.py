"""The largest logit of every chunk of 128, the first step of reducing a row of logits.

Runs in the phase after the head; :mod:`.vocab_sum` and :mod:`.vocab_top` follow, each in its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I1, Function, Value, vec
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share

LANES = 16
CHUNK = 128
ROW = vec(F32, LANES)
Step: TypeAlias = Callable[[Value, Value, list[Value]], list[Value]]


def chunk_largest(fn: Function, chunk: Value) -> Value:
    """The largest of the 128 floats at ``chunk``; never a NaN."""
    best = fn.const(ROW, float("-inf"))
    for i in range(CHUNK // LANES):
        best = best.maximum(fn.load(ROW, chunk, 4 * LANES * i, align=4))
    return best.max()


def vectors_of(fn: Function, values: Value, count: int, carried: list[Value], step: Step) -> list[Value]:
    """Fold ``step(index of the first lane, 16 floats, carried)`` over ``count`` floats; lanes past them are -inf."""
    whole = count // LANES * LANES
    with fn.loop(0, whole, LANES, carried) as i:
        i.values = step(i.index, fn.load(ROW, values, i.index << 2, align=4), i.values)
    if whole == count:
        return i.results
    mask = fn.const(vec(I1, LANES), [int(lane < count - whole) for lane in range(LANES)])
    rest = mask.select(fn.load_masked(ROW, mask, values, 4 * whole), float("-inf"))
    return step(fn.i64(whole), rest, i.results)


@dataclass(frozen=True)
class VocabMax(Kernel):
    """Parameter: ``stride``, elements of a row of logits, a multiple of 128; the tail is -inf."""

    stride: int

    operands: ClassVar[tuple[str, ...]] = ("chunk_max",)

    def __post_init__(self) -> None:
        require_multiple(self, CHUNK, stride=self.stride)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        logits = context_field(fn, "logits")
        chunks = context_field(fn, "row_count") * (self.stride // CHUNK)
        with fn.loop(*share(fn, chunks)) as i:
            fn.store(chunk_largest(fn, fn.at(logits, i.index * (4 * CHUNK))), fn.args["chunk_max"], i.index << 2)
        fn.finish()


KERNEL = VocabMax
