"""Elementary functions as polynomials: native code calls no libm.

Each takes float vectors (or scalars) and is lane-wise, so results do not depend on vector width.
"""

from __future__ import annotations

import math

from ryzc.codegen.vector import I32, Function, Value, vec

_LOG2E = 1.4426950408889634
# ln 2 in two parts: the first has trailing zero bits, so n * _LN2_HIGH is exact for |n| < 2**12.
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440054690583e-4
_ROUND = 1.5 * 2.0**23
"""Added, it rounds to an integer; subtracted again, it leaves that integer."""

# Smallest largest relative error (9.2e-8 before rounding) among polynomials of degree 5 that are one at zero,
# for e**r where |r| <= ln 2 / 2 and for 2**r where |r| <= 1/2; float32, from the highest power down.
_EXP = [0.008290315046906471, 0.04189793020486832, 0.1666763573884964, 0.4999915063381195, 0.9999997019767761, 1.0]
_EXP2 = [0.001326472731307149, 0.009671512991189957, 0.05550733581185341, 0.24022242426872253, 0.6931470036506653, 1.0]

# Smallest largest relative error (3.2e-8 before rounding) of ``f - f**2 / 2 + f**3 P(f)`` for log(1 + f), where
# sqrt(1/2) <= 1 + f < sqrt(2), among polynomials P of degree 6; from the highest power down.
_LOG = [
    0.08700435608625412,
    -0.14267486333847046,
    0.14914767444133759,
    -0.1657758504152298,
    0.19963063299655914,
    -0.2500133812427521,
    0.3333390951156616,
]
_SQRT_HALF_BITS = 0x3F3504F3


def _f32(fn: Function, like: Value, number: float) -> Value:
    return fn.const(like.type, number)


def polynomial(fn: Function, x: Value, coefficients: list[float]) -> Value:
    """Horner's rule with fused multiply-adds; ``coefficients`` from the highest power down."""
    total = fn.const(x.type, coefficients[0])
    for c in coefficients[1:]:
        total = fn.fma(total, x, fn.const(x.type, c))
    return total


def exp2(fn: Function, x: Value, least: float = -125.0) -> Value:
    """``2**x`` in float32 for ``x <= 0``, relative error below 2e-7; clamped at ``least``, exact at 0."""
    x = x.maximum(least)
    shifted = x + _ROUND
    return _times_power(polynomial(fn, x - (shifted - _ROUND), _EXP2), shifted)


def exp(fn: Function, x: Value) -> Value:
    """``e**x`` in float32, relative error below 2e-7 for ``-87 <= x <= 88``; clamped outside.

    ``x = n ln 2 + r`` with ``|r| <= ln 2 / 2``, a polynomial for ``e**r``, and ``n`` added to its exponent.
    """
    return _exp(fn, x.maximum(-87.0).minimum(88.0), 1)


def _exp(fn: Function, x: Value, sign: int) -> Value:
    """``e**x``, or ``e**-x`` with a ``sign`` of -1: the bits of the negated number's, which nobody has to make."""
    shifted = fn.fma(x, _f32(fn, x, sign * _LOG2E), _f32(fn, x, _ROUND))
    n = shifted - _ROUND
    r = fn.fma(n, _f32(fn, x, -sign * _LN2_HIGH), x)
    r = fn.fma(n, _f32(fn, x, -sign * _LN2_LOW), r)
    powers = range(len(_EXP) - 1, -1, -1)
    return _times_power(polynomial(fn, r, [c * sign**power for c, power in zip(_EXP, powers, strict=True)]), shifted)


def _times_power(mantissa: Value, shifted: Value) -> Value:
    """``mantissa * 2**n`` where ``n + _ROUND`` is given: the integer lies in its lowest bits."""
    integer = vec(I32, mantissa.lanes) if mantissa.lanes > 1 else I32
    return (mantissa.bits(integer) + (shifted.bits(integer) << 23)).bits(mantissa.type)


def log(fn: Function, x: Value, less_one: Value | None = None) -> Value:
    """Natural logarithm in float32 of a positive normal number, relative error below 2e-7.

    ``x = 2**n (1 + f)`` with ``1 + f`` between the roots of 1/2 and 2, and a polynomial for ``log(1 + f)``.
    Near one the result is as exact as ``x - 1``: who knows that better than ``x`` can tell hands it over.
    """
    integer = vec(I32, x.lanes) if x.lanes > 1 else I32
    n = (x.bits(integer) - _SQRT_HALF_BITS).sar(23)
    f = (x.bits(integer) - (n << 23)).bits(x.type) - 1.0
    if less_one is not None:
        f = n.compare("==", 0).select(less_one, f)
    square = f * f
    result = fn.fma(f * square, polynomial(fn, f, _LOG), fn.fma(square, _f32(fn, x, -0.5), f))
    result = fn.fma(n.to_float(), _f32(fn, x, _LN2_LOW), result)
    return fn.fma(n.to_float(), _f32(fn, x, _LN2_HIGH), result)


def reciprocal(fn: Function, x: Value) -> Value:
    """``1 / x`` for ``1 <= x < 2**125``, relative error below 1.5e-7, in a third of the time of a division.

    A guess from the negated exponent, within 13 %, and three steps of Newton's method, which square the error.
    The CPU's own guess would differ from maker to maker, and results with it.
    """
    integer = vec(I32, x.lanes) if x.lanes > 1 else I32
    y = (fn.const(integer, 0x7EF311C7) - x.bits(integer)).bits(x.type)
    for _ in range(3):
        y = fn.fma(y, fn.fma(-x, y, _f32(fn, x, 1.0)), y)
    return y


def sigmoid(fn: Function, x: Value) -> Value:
    """``1 / (1 + e**-x)``; the same for all ``x`` below -86."""
    return reciprocal(fn, _exp(fn, x.maximum(-86.0).minimum(87.0), -1) + 1.0)


def silu(fn: Function, x: Value) -> Value:
    """``x * sigmoid(x)``."""
    return x * sigmoid(fn, x)


def gelu_tanh(fn: Function, x: Value) -> Value:
    """GELU by its tanh form: ``x / 2 * (1 + tanh(z)) = x * sigmoid(2 z)``, ``z = sqrt(2/pi) (x + 0.044715 x^3)``."""
    cubic = fn.fma(x * x * x, fn.const(x.type, 0.044715), x)
    return x * sigmoid(fn, cubic * (2 * math.sqrt(2 / math.pi)))


def relu2(fn: Function, x: Value) -> Value:
    """The square of what is positive, else 0 (arXiv:2109.08668)."""
    positive = x.maximum(0.0)
    return positive * positive
