"""Elementary functions as polynomials: native code calls no libm.

Each takes float vectors (or scalars) and is lane-wise, so results do not depend on vector width.
"""

from __future__ import annotations

import math

from ryzc.codegen.vector import F32, I32, Function, Value, vec

_LOG2E = 1.4426950408889634
# ln 2 in two parts: the first has trailing zero bits, so n * _LN2_HIGH is exact for |n| < 2**12.
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440054690583e-4


def _f32(fn: Function, like: Value, number: float) -> Value:
    return fn.const(like.type, number)


def polynomial(fn: Function, x: Value, coefficients: list[float]) -> Value:
    """Horner's rule with fused multiply-adds; ``coefficients`` from the highest power down."""
    total = fn.const(x.type, coefficients[0])
    for c in coefficients[1:]:
        total = fn.fma(total, x, fn.const(x.type, c))
    return total


def exp(fn: Function, x: Value) -> Value:
    """``e**x`` in float32, relative error below 2e-7 for ``-87 <= x <= 88``; clamped outside.

    ``x = n ln 2 + r`` with ``|r| <= ln 2 / 2``, a Taylor polynomial for ``e**r``, and ``2**n`` made
    from its exponent bits.
    """
    x = x.maximum(-87.0).minimum(88.0)
    n = (x * _LOG2E).rint()
    r = fn.fma(-n, _f32(fn, x, _LN2_HIGH), x)
    r = fn.fma(-n, _f32(fn, x, _LN2_LOW), r)
    mantissa = polynomial(fn, r, [1 / math.factorial(i) for i in range(7, -1, -1)])
    integer = vec(I32, x.lanes) if x.lanes > 1 else I32
    power = (n.to_int(I32) + 127) << 23
    assert power.type == integer
    return mantissa * power.bits(vec(F32, x.lanes) if x.lanes > 1 else F32)


def sigmoid(fn: Function, x: Value) -> Value:
    """``1 / (1 + e**-x)``."""
    return fn.const(x.type, 1.0) / (exp(fn, -x) + 1.0)


def silu(fn: Function, x: Value) -> Value:
    """``x * sigmoid(x)``."""
    return x / (exp(fn, -x) + 1.0)


def gelu_tanh(fn: Function, x: Value) -> Value:
    """GELU by its tanh form: ``x / 2 * (1 + tanh(z)) = x * sigmoid(2 z)``, ``z = sqrt(2/pi) (x + 0.044715 x^3)``."""
    cubic = fn.fma(x * x * x, fn.const(x.type, 0.044715), x)
    return x * sigmoid(fn, cubic * (2 * math.sqrt(2 / math.pi)))
