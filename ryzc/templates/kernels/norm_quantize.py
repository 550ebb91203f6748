"""RMS norm of every token, straight to int8 codes: the normed floats never reach memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import Value
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels import rms
from ryzc.templates.kernels.kernel import Kernel, ask_for_next, begin, context_field, require_multiple, share
from ryzc.templates.kernels.quantize_row import quantize_row


@dataclass(frozen=True)
class NormQuantize(Kernel):
    """Parameters: ``columns`` K (a multiple of 32), ``epsilon``, what counts tokens, the records' ``unit``."""

    columns: int
    epsilon: float
    count: str = "token_count"
    unit: int = 1

    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "codes", "records")

    def __post_init__(self) -> None:
        require_multiple(self, act.BLOCK, columns=self.columns)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        weight = fn.args["weight"]
        with fn.loop(*share(fn, context_field(fn, self.count))) as tokens:
            x = fn.at(fn.args["x"], tokens.index * (4 * self.columns))
            codes = fn.at(fn.args["codes"], tokens.index * act.code_bytes(self.columns))
            records = fn.at(fn.args["records"], tokens.index * act.record_bytes(self.columns))
            scale = rms.factor(fn, x, self.columns, self.epsilon)

            def block(i: Value, x: Value = x, scale: Value = scale) -> tuple[Value, Value]:
                at = i * (4 * act.BLOCK)
                ask_for_next(fn, x, 4 * self.columns, at, 4 * act.BLOCK)
                return rms.normed(fn, x, weight, at, scale), rms.normed(fn, x, weight, at + 4 * rms.LANES, scale)

            quantize_row(fn, self.columns, block, codes, records, self.unit)
        fn.finish()


KERNEL = NormQuantize
