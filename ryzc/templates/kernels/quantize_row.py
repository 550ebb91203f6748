"""Quantizing one block of an activation: the code side of :mod:`ryzc.templates.kernels.activations`."""

from __future__ import annotations

from ryzc.codegen.vector import F32, I8, I32, Function, Value
from ryzc.templates.kernels import activations as act

LANES = 16


def quantize_block(fn: Function, first: Value, second: Value, codes: Value, record: Value, unit: int) -> None:
    """Write the codes and the record of 32 elements, given as two vectors of 16."""
    amax = first.abs().maximum(second.abs()).max()
    counts = amax.compare(">=", act.TINY)
    inverse = counts.select(fn.const(F32, 127.0) / amax, 0.0).splat(LANES)
    scale = counts.select(amax / 127.0, 0.0)
    sums = []
    for i, x in enumerate((first, second)):
        code = (x * inverse).rint().to_int(I32)
        fn.store(code.to_int(I8), codes, LANES * i, align=16)
        sums.append(code.sum())
    total = sums[0] + sums[1]
    fn.store(scale, record, act.SCALE, align=4)
    fn.store(-total * unit, record, act.MINUS_SUM, align=4)
    fn.store(-sums[0] * unit, record, act.MINUS_FIRST, align=4)
    fn.store(scale * total.to_float(), record, act.SCALED_SUM, align=4)
