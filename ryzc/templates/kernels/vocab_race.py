"""The first race of rows that are drawn from whole: in every slice, the token with the best score.

Runs beside :mod:`.vocab_sum`, over the same slices. :mod:`.vocab_draw` compares the winners of a row. The only
filter here is min-p, which the largest logit settles; a winner that others exclude has to race again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import I32, Function, Value
from ryzc.templates.kernels.gumbel import noise_of
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, row_field, share
from ryzc.templates.kernels.vocab_max import CHUNK
from ryzc.templates.kernels.vocab_prefix import NO_ID, Border, RowDraw
from ryzc.templates.kernels.vocab_sum import SLICE, row_largest, slices


@dataclass(frozen=True)
class VocabRace(Kernel):
    """Parameters: as in :class:`.vocab_top.VocabTop`."""

    stride: int
    max_candidates: int

    operands: ClassVar[tuple[str, ...]] = ("chunk_max", "scores", "winners")

    def __post_init__(self) -> None:
        require_multiple(self, CHUNK, stride=self.stride)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        chunks, parts, per_slice = self.stride // CHUNK, slices(self.stride), SLICE // CHUNK
        fn = begin(module, symbol, self.operands)
        logits = context_field(fn, "logits")
        with fn.loop(*share(fn, context_field(fn, "row_count") * parts)) as i:
            row, part = i.index // parts, i.index % parts
            with fn.when(is_drawn(fn, row) & is_whole(fn, row, self.max_candidates)):
                chunk_max = fn.at(fn.args["chunk_max"], row * (4 * chunks))
                largest = row_largest(fn, chunk_max, chunks)
                temperature, lowest = (row_field(fn, row, name) for name in ("inverse_temperature", "log_min_p"))
                base = fn.at(logits, row * (4 * self.stride))
                draw = RowDraw(fn, base, chunk_max, self.stride, largest, temperature, noise_of(fn, row))
                first = part * per_slice
                border = Border(largest + lowest, fn.const(I32, NO_ID))
                score, winner = draw.race(first, fn.below(first + per_slice, chunks), border)
                fn.store(score, fn.args["scores"], i.index << 2, align=4)
                fn.store(winner, fn.args["winners"], i.index << 2, align=4)
        fn.finish()


KERNEL = VocabRace


def is_drawn(fn: Function, row: Value) -> Value:
    """Whether a row does not just take its best token."""
    return row_field(fn, row, "inverse_temperature").compare(">", 0.0)


def is_whole(fn: Function, row: Value, max_candidates: int) -> Value:
    """Whether a row's candidates do not suffice."""
    top_k = row_field(fn, row, "top_k")
    return top_k.compare("<=", 0) | top_k.compare(">", max_candidates)
