"""RMS norm of every token, float32 in and out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.templates.kernels import rms
from ryzc.templates.kernels.kernel import Kernel, ask_for_next, begin, context_field, require_multiple, share

reference = rms.reference


@dataclass(frozen=True)
class Norm(Kernel):
    """Parameters: ``columns`` K (a multiple of 16), ``epsilon``, and the field that counts tokens."""

    columns: int
    epsilon: float
    count: str = "token_count"

    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "out")

    def __post_init__(self) -> None:
        require_multiple(self, rms.LANES, columns=self.columns)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        with fn.loop(*share(fn, context_field(fn, self.count))) as tokens:
            x, out = (fn.at(fn.args[o], tokens.index * (4 * self.columns)) for o in ("x", "out"))
            scale = rms.factor(fn, x, self.columns, self.epsilon)
            with fn.loop(0, self.columns, rms.LANES) as k:
                at = k.index << 2
                ask_for_next(fn, x, 4 * self.columns, at, 4 * rms.LANES)
                fn.store(rms.normed(fn, x, fn.args["weight"], at, scale), out, at, align=4)
        fn.finish()


KERNEL = Norm
