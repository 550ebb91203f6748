"""Activations to int8 codes with a scale a block of 32, see :mod:`.activations`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, Value, vec
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels.kernel import Kernel, ask_for_next, begin, context_field, require_multiple, share
from ryzc.templates.kernels.quantize_row import LANES, quantize_row

reference = act.quantize


@dataclass(frozen=True)
class Quantize(Kernel):
    """Parameters: ``columns`` K (a multiple of 32), the field that counts tokens, and the ``unit`` of the records."""

    columns: int
    count: str = "token_count"
    unit: int = 1

    operands: ClassVar[tuple[str, ...]] = ("x", "codes", "records")

    def __post_init__(self) -> None:
        require_multiple(self, act.BLOCK, columns=self.columns)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        row = vec(F32, LANES)
        with fn.loop(*share(fn, context_field(fn, self.count))) as tokens:
            x = fn.at(fn.args["x"], tokens.index * (4 * self.columns))
            codes = fn.at(fn.args["codes"], tokens.index * act.code_bytes(self.columns))
            records = fn.at(fn.args["records"], tokens.index * act.record_bytes(self.columns))

            def block(i: Value, x: Value = x) -> tuple[Value, Value]:
                at = i * (4 * act.BLOCK)
                ask_for_next(fn, x, 4 * self.columns, at, 4 * act.BLOCK)
                return fn.load(row, x, at, align=4), fn.load(row, x, at, 4 * LANES, align=4)

            quantize_row(fn, self.columns, block, codes, records, self.unit)
        fn.finish()


KERNEL = Quantize
