"""Activations to int8 codes with a scale a token, see :mod:`.token_activations`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, Value, vec
from ryzc.templates.kernels import token_activations as act
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share

reference = act.quantize


@dataclass(frozen=True)
class QuantizeTokens(Kernel):
    """Parameters: ``columns`` K (a multiple of 16), and the field that counts tokens."""

    columns: int
    count: str = "token_count"

    operands: ClassVar[tuple[str, ...]] = ("x", "codes", "records")

    def __post_init__(self) -> None:
        require_multiple(self, act.LANES, columns=self.columns)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        with fn.loop(*share(fn, context_field(fn, self.count))) as tokens:
            x = fn.at(fn.args["x"], tokens.index * (4 * self.columns))
            codes = fn.at(fn.args["codes"], tokens.index * self.columns)
            record = fn.at(fn.args["records"], tokens.index * act.RECORD_BYTES)

            def sixteen(i: Value, x: Value = x) -> Value:
                return fn.load(vec(F32, act.LANES), x, i << 2, align=4)

            act.quantize_token(fn, self.columns, sixteen, codes, record)
        fn.finish()


KERNEL = QuantizeTokens
