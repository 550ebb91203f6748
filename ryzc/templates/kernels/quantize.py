"""Activations to int8 codes with a scale a block of 32, see :mod:`.activations`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, vec
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share
from ryzc.templates.kernels.quantize_row import LANES, quantize_block

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
            codes = fn.at(fn.args["codes"], tokens.index * self.columns)
            records = fn.at(fn.args["records"], tokens.index * (self.columns // act.BLOCK * act.RECORD_BYTES))
            with fn.loop(0, self.columns // act.BLOCK) as blocks:
                at = blocks.index * (4 * act.BLOCK)
                first, second = (fn.load(row, x, at, 4 * LANES * i, align=4) for i in range(2))
                record = fn.at(records, blocks.index * act.RECORD_BYTES)
                quantize_block(fn, first, second, fn.at(codes, blocks.index * act.BLOCK), record, self.unit)
        fn.finish()


KERNEL = Quantize
