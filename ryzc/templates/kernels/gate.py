"""Gated feed-forward where gate and up come from separate layers: ``out = activation(gate) * up``.

Layers whose weights share a format are fused instead, see :mod:`.epilogue`; both compute the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, vec
from ryzc.templates.kernels.epilogue import GATES
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share

LANES = 16


@dataclass(frozen=True)
class Gate(Kernel):
    """Parameters: ``columns`` N (a multiple of 16), ``activation`` (``silu`` or ``gelu_tanh``), the count of tokens."""

    columns: int
    activation: str
    count: str = "token_count"

    operands: ClassVar[tuple[str, ...]] = ("gate", "up", "out")

    def __post_init__(self) -> None:
        require_multiple(self, LANES, columns=self.columns)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        with fn.loop(*share(fn, context_field(fn, self.count))) as tokens:
            gate, up, out = (fn.at(fn.args[o], tokens.index * (4 * self.columns)) for o in self.operands)
            with fn.loop(0, self.columns, LANES) as n:
                g, u = (fn.load(vec(F32, LANES), x, n.index << 2, align=4) for x in (gate, up))
                fn.store(GATES[self.activation](fn, g) * u, out, n.index << 2, align=4)
        fn.finish()


KERNEL = Gate
