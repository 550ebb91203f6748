"""Gumbel noise from a counter: a number for every (seed, position, id), with no state between them.

The largest of ``logit / T + noise`` is a draw from ``softmax(logit / T)`` (the Gumbel-max trick), over whatever
set of tokens it is taken. :mod:`ryzc.runtime.sampling.noise` says the same in numpy.

The key of a row is output ``position`` of SplitMix64 (Steele, Lea and Flood, 2014) whose state is the mixed seed.
The bits of an id come from the 32-bit mixer "triple32" of Chris Wellons' hash-prospector, the key's halves
entering before its first and after its second multiplication. The noise is ``-log(-log(1 - v))`` for the
uniform ``v = (bits + 1/2) / 2**31``: large noise is made of small ``v``, which float32 holds to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzc.codegen.vector import I32, Function, Value, vec
from ryzc.templates.kernels.kernel import row_field
from ryzc.templates.kernels.scalar_math import exp, log
from ryzc.templates.kernels.vocab_max import LANES, ROW

LARGEST = 22.25
"""No noise is as large: ``v`` is at least ``2**-32``."""

_IDS = vec(I32, LANES)
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_TRIPLE32 = (17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)
_LAST_SHIFT = 14


@dataclass(frozen=True)
class Noise:
    """The noise of one row: the two halves of its key in every lane."""

    fn: Function
    low: Value
    high: Value

    def of(self, bits: Value) -> Value:
        """The noise of 16 ids, of which :meth:`bits` are given; absolute error below 3e-6."""
        fn = self.fn
        unit, half = fn.const(ROW, 2.0**-31), fn.const(ROW, 2.0**-32)
        v = fn.fma(bits.to_float(), unit, half)
        rest = fn.fma((bits ^ 0x7FFFFFFF).to_float(), unit, half)
        return -log(fn, -log(fn, rest, less_one=-v))

    def bits(self, ids: Value) -> Value:
        """31 random bits for each of 16 ids."""
        x = ids ^ self.low
        for i, (shift, factor) in enumerate(_TRIPLE32):
            x = (x ^ (x >> shift)) * _signed(factor, 32)
            if i == 1:
                x = x ^ self.high
        return (x ^ (x >> _LAST_SHIFT)) >> 1


def most_bits(fn: Function, least: Value) -> Value:
    """What :meth:`Noise.bits` must not exceed for the noise to be ``least`` or more; only a little too much.

    Noise is below ``-log(v)``, so ``v`` must be below ``e**-least``.
    """
    v = exp(fn, -least)
    return v.compare(">=", 1.0).select(fn.const(I32, 0x7FFFFFFF), (v.minimum(0.99) * 2.0**31).to_int(I32))


def noise_of(fn: Function, row: Value) -> Noise:
    """The noise of a row, by its seed and position."""
    state = _mix64(row_field(fn, row, "seed") + _signed(_GOLDEN, 64))
    key = _mix64(state + row_field(fn, row, "position") * _signed(_GOLDEN, 64))
    return Noise(fn, key.to_int(I32).splat(LANES), (key >> 32).to_int(I32).splat(LANES))


def _mix64(x: Value) -> Value:
    x = (x ^ (x >> 30)) * _signed(_MIX1, 64)
    x = (x ^ (x >> 27)) * _signed(_MIX2, 64)
    return x ^ (x >> 31)


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number


def lane_ids(fn: Function, first: Value) -> Value:
    """``first .. first + 15`` as 32-bit integers."""
    return first.to_int(I32).splat(LANES) + fn.const(_IDS, list(range(LANES)))
