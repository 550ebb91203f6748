"""RMS norm of every token, straight to int8 codes with a scale a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import Value
from ryzc.templates.kernels import rms
from ryzc.templates.kernels import token_activations as act
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share


@dataclass(frozen=True)
class NormQuantizeTokens(Kernel):
    """Parameters: ``columns`` K (a multiple of 32), ``epsilon``, and the field that counts tokens."""

    columns: int
    epsilon: float
    count: str = "token_count"

    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "codes", "records")

    def __post_init__(self) -> None:
        require_multiple(self, 2 * act.LANES, columns=self.columns)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        weight = fn.args["weight"]
        with fn.loop(*share(fn, context_field(fn, self.count))) as tokens:
            x = fn.at(fn.args["x"], tokens.index * (4 * self.columns))
            codes = fn.at(fn.args["codes"], tokens.index * self.columns)
            record = fn.at(fn.args["records"], tokens.index * act.RECORD_BYTES)
            scale = rms.factor(fn, x, self.columns, self.epsilon)

            def sixteen(i: Value, x: Value = x, scale: Value = scale) -> Value:
                return rms.normed(fn, x, weight, i << 2, scale)

            act.quantize_token(fn, self.columns, sixteen, codes, record)
        fn.finish()


KERNEL = NormQuantizeTokens
