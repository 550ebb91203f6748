"""Copies the batch rows that want logits next to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I32, I64, vec
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share

LANES = 16


@dataclass(frozen=True)
class SelectRows(Kernel):
    """Parameter: ``columns`` K, a multiple of 16."""

    columns: int

    operands: ClassVar[tuple[str, ...]] = ("x", "out")

    def __post_init__(self) -> None:
        require_multiple(self, LANES, columns=self.columns)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        rows = context_field(fn, "rows")
        with fn.loop(*share(fn, context_field(fn, "row_count"))) as selected:
            token = fn.load(I32, rows, selected.index << 2, align=4).to_int(I64)
            x = fn.at(fn.args["x"], token * (4 * self.columns))
            out = fn.at(fn.args["out"], selected.index * (4 * self.columns))
            with fn.loop(0, self.columns, LANES) as k:
                fn.store(fn.load(vec(F32, LANES), x, k.index << 2, align=4), out, k.index << 2, align=4)
        fn.finish()


KERNEL = SelectRows
