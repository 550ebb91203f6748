"""Cosines and sines of the rotary embedding for the positions of a batch.

``angle = position * inv_freq`` in float64; reduced by the nearest multiple of pi / 2 in two parts
(Cody and Waite), then Taylor polynomials on ``|r| <= pi / 4``; rounded to float32 at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, F64, I32, I64, vec
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share
from ryzc.templates.kernels.scalar_math import polynomial

LANES = 8
_HIGH = float.fromhex("0x1.921fb54400000p+0")  # pi / 2 to 33 bits: products with small integers are exact
_LOW = float.fromhex("0x1.0b4611a626331p-34")  # the rest
_SIN = [(-1) ** i / math.factorial(2 * i + 1) for i in range(8, -1, -1)]
_COS = [(-1) ** i / math.factorial(2 * i) for i in range(8, -1, -1)]


@dataclass(frozen=True)
class RopeAngles(Kernel):
    """Parameter: ``head_dim`` D, even."""

    head_dim: int

    operands: ClassVar[tuple[str, ...]] = ("inv_freq", "cos", "sin")

    def __post_init__(self) -> None:
        require_multiple(self, 2, head_dim=self.head_dim)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        half = self.head_dim // 2
        lanes = math.gcd(LANES, half)
        fn = begin(module, symbol, self.operands)
        positions = context_field(fn, "positions")
        with fn.loop(*share(fn, context_field(fn, "token_count"))) as tokens:
            position = fn.load(I32, positions, tokens.index << 2, align=4).to_float(F64).splat(lanes)
            outs = [fn.at(fn.args[o], tokens.index * (4 * half)) for o in ("cos", "sin")]
            with fn.loop(0, half, lanes) as k:
                angle = position * fn.load(vec(F64, lanes), fn.args["inv_freq"], k.index << 3, align=8)
                turns = (angle * (2 / math.pi)).rint()
                r = fn.fma(-turns, fn.const(turns.type, _HIGH), angle)
                r = fn.fma(-turns, fn.const(turns.type, _LOW), r)
                square = r * r
                sine, cosine = polynomial(fn, square, _SIN) * r, polynomial(fn, square, _COS)
                quadrant = turns.to_int(I64)
                swap = (quadrant & 1).compare("!=", 0)
                negative_sine = (quadrant & 2).compare("!=", 0)
                negative_cosine = ((quadrant + 1) & 2).compare("!=", 0)
                found_cosine, found_sine = swap.select(sine, cosine), swap.select(cosine, sine)
                results = (
                    negative_cosine.select(-found_cosine, found_cosine),
                    negative_sine.select(-found_sine, found_sine),
                )
                for out, value in zip(outs, results, strict=True):
                    fn.store(value.to_float(F32), out, k.index << 2, align=4)
        fn.finish()


KERNEL = RopeAngles


def reference(
    positions: npt.NDArray[np.int32], inv_freq: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The meaning: cosines and sines, each ``float32 [T, D/2]``."""
    angles = positions.astype(np.float64)[:, None] * inv_freq
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
