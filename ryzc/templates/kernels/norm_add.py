"""RMS norm of every token, added to the residual stream: ``residual += norm(x)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.templates.kernels import rms
from ryzc.templates.kernels.kernel import Kernel, ask_for_next, begin, context_field, require_multiple, share


@dataclass(frozen=True)
class NormAdd(Kernel):
    """Parameters: ``columns`` K (a multiple of 16) and ``epsilon``."""

    columns: int
    epsilon: float

    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "residual")

    def __post_init__(self) -> None:
        require_multiple(self, rms.LANES, columns=self.columns)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        with fn.loop(*share(fn, context_field(fn, "token_count"))) as tokens:
            x, residual = (fn.at(fn.args[o], tokens.index * (4 * self.columns)) for o in ("x", "residual"))
            scale = rms.factor(fn, x, self.columns, self.epsilon)
            with fn.loop(0, self.columns, rms.LANES) as k:
                at = k.index << 2
                for row in (x, residual):
                    ask_for_next(fn, row, 4 * self.columns, at, 4 * rms.LANES)
                old = fn.load(rms.ROW, residual, at, align=4)
                fn.store(old + rms.normed(fn, x, fn.args["weight"], at, scale), residual, at, align=4)
        fn.finish()


KERNEL = NormAdd


def reference(
    x: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    residual: npt.NDArray[np.float32],
    epsilon: float,
) -> npt.NDArray[np.float64]:
    """The meaning, ``[T, K]`` in float64."""
    return residual + rms.reference(x, weight, epsilon)
