"""Codes of a head of a query, key or value.

Queries, which nothing keeps: codes in -32258 .. 32258 and a float32 scale for each block; a code is 254 times a
signed byte and another one, so that products by keys are two integer sums. Beside keys of 16 bits they have
codes as these, and a float32 scale.

16 bits: codes whose norm is :data:`.NORM`, and one bfloat16 scale; element = code * scale. A product of two heads is at
most that of their norms, so it fits into 32 bits.

8 bits: codes in -127 .. 127 and a bfloat16 scale for each block; element = code * scale.

4 bits: for each group of 16 a code in 0 .. 15, a zero point in 0 .. 30 and a scale, a byte each;
element = (2 * code - zero) * scale. A zero point counts half steps, so that the codes lie around the middle of
the group. Scales have 5 bits of exponent and 3 of fraction, from 2 ** -21 to 1920.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ryzc.codegen.vector import F32, I8, I16, I32, Function, Value, vec
from ryzc.kv_formats import NORM, SCALE_BIAS, SCALE_SHIFT
from ryzc.templates.kernels.activations import TINY

LANES = 16
QUERY_BASE = 254
QUERY_TOP = 127 * QUERY_BASE
NORM_TINY = 2.0**-50
"""Heads whose norm is below this count as zero: their squares would not be normal numbers."""
_CODES = 15
_LAST_SCALE = 255


def query_codes(fn: Function, x: Value, head_dim: int, block: int) -> tuple[list[Value], list[Value]]:
    """Codes of a query ``float32 [head_dim]``, int32 in vectors of 16, and the scale of each block."""
    codes, scales = [], []
    for first in range(0, head_dim, block):
        vectors, amax = _block(fn, x, first, block)
        counts = amax.compare(">=", TINY)
        inverse = counts.select(fn.const(F32, float(QUERY_TOP)) / amax, 0.0).splat(LANES)
        codes += [(vector * inverse).rint().to_int(I32) for vector in vectors]
        scales.append(counts.select(amax / float(QUERY_TOP), 0.0))
    return codes, scales


def wide_codes(fn: Function, x: Value, head_dim: int) -> tuple[list[Value], Value]:
    """16-bit codes of ``float32 [head_dim]``, int32 in vectors of 16, and their bfloat16 scale."""
    vectors = [fn.load(vec(F32, LANES), x, 4 * d, align=4) for d in range(0, head_dim, LANES)]
    squares = vectors[0] * vectors[0]
    for vector in vectors[1:]:
        squares = fn.fma(vector, vector, squares)
    norm = squares.sum().sqrt()
    none, zero = norm.compare("<", NORM_TINY), fn.const(F32, 0.0)  # a NaN is not nothing, and stays one
    scale = _bfloat16(norm / float(NORM))
    inverse = none.select(zero, fn.const(F32, 1.0) / scale).splat(LANES)
    return [(vector * inverse).nearest() for vector in vectors], none.select(zero, scale)


def two_bytes(codes: Value) -> tuple[Value, Value]:
    """What of a query's codes counts 254, and the rest; both in -127 .. 127."""
    high = (codes.to_float() * (1 / QUERY_BASE)).rint().to_int(I32)
    return high, codes - high * QUERY_BASE


def _block(fn: Function, x: Value, first: int, block: int) -> tuple[list[Value], Value]:
    """A block in vectors of 16, and the largest magnitude in it."""
    vectors = [fn.load(vec(F32, LANES), x, 4 * d, align=4) for d in range(first, first + block, LANES)]
    largest = vectors[0].abs()
    for vector in vectors[1:]:
        largest = largest.maximum(vector.abs())
    return vectors, largest.max()


def byte_codes(fn: Function, x: Value, head_dim: int, block: int) -> tuple[list[Value], list[Value]]:
    """8-bit codes of ``float32 [head_dim]``, int32 in vectors of 16, and the scale of each block."""
    codes, scales = [], []
    for first in range(0, head_dim, block):
        vectors, amax = _block(fn, x, first, block)
        counts = amax.compare(">=", TINY)
        scale = counts.select(_bfloat16(amax / 127.0), 0.0)
        inverse = counts.select(fn.const(F32, 1.0) / scale, 0.0).splat(LANES)
        codes += [(vector * inverse).rint().to_int(I32) for vector in vectors]
        scales.append(scale)
    return codes, scales


def _bfloat16(x: Value) -> Value:
    """The nearest float32 whose lower half is zero, ties to even."""
    bits = x.bits(I32)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).bits(F32)


def store_bfloat16(scale: Value, pointer: Value, *offsets: Value | int) -> None:
    """Store a float32 that is a bfloat16."""
    scale.fn.store((scale.bits(I32) >> 16).to_int(I16), pointer, *offsets, align=2)


def load_bfloat16(fn: Function, pointer: Value, *offsets: Value | int) -> Value:
    """16 bfloat16 as float32."""
    stored = fn.load(vec(I16, LANES), pointer, *offsets, align=2)
    return (stored.zext(I32) << 16).bits(vec(F32, LANES))


def nibble_codes(fn: Function, x: Value, *offsets: Value | int) -> tuple[Value, Value, Value]:
    """4-bit codes (int32, 16 lanes), scale and zero point (int32) of a group of 16 float32.

    Six grids are tried, and the first with the least squared error is taken: the smallest scale that holds the whole
    group and the next smaller one, each with the codes around the middle of the group or half a step to either side.
    """
    vector = fn.load(vec(F32, LANES), x, *offsets, align=4)
    high, low = vector.max().maximum(0.0), -(-vector).max().maximum(0.0)
    largest = _scale_byte((high - low) * (1 / (2 * _CODES)))
    smaller = largest - 1
    best: list[Value] = []
    for byte in (largest, smaller.compare(">", 0).select(smaller, 0)):
        scale = group_scale(byte)
        inverse = fn.const(F32, 1.0) / scale
        middle = (fn.const(F32, float(_CODES)) - (low + high) * inverse * 0.5).rint()
        scaled = vector * inverse.splat(LANES)
        for aside in (0.0, -1.0, 1.0):
            zero = (middle + aside).maximum(0.0).minimum(2.0 * _CODES)
            zeros = zero.splat(LANES)
            codes = ((scaled + zeros) * 0.5).rint().maximum(0.0).minimum(float(_CODES))
            error = scaled - fn.fma(codes, fn.const(codes.type, 2.0), -zeros)
            found = [(error * error).sum() * (scale * scale), codes, byte, zero]
            better = found[0].compare("<", best[0]) if best else None
            best = found if better is None else [better.select(a, b) for a, b in zip(found, best, strict=True)]
    _, codes, byte, zero = best
    return codes.to_int(I32), byte, zero.to_int(I32)


def _scale_byte(scale: Value) -> Value:
    """The byte of the smallest scale that is not below this one, int32; or the largest there is."""
    up = (1 << SCALE_SHIFT) - 1
    byte = ((scale.bits(I32) + up) >> SCALE_SHIFT) - (SCALE_BIAS >> SCALE_SHIFT)
    byte = byte.compare(">", 0).select(byte, 0)
    return scale.fn.below(byte, _LAST_SCALE)


def group_scale(byte: Value) -> Value:
    """The scale that a byte (int32, a scalar or lanes) stands for, float32."""
    type_ = vec(F32, byte.lanes) if byte.lanes > 1 else F32
    return ((byte << SCALE_SHIFT) + SCALE_BIAS).bits(type_)


def load_bytes(fn: Function, pointer: Value, *offsets: Value | int, lanes: int = LANES) -> Value:
    """Bytes as int32."""
    return fn.load(vec(I8, lanes), pointer, *offsets).zext(I32)


def unpacked(codes: Value, half: int) -> Value:
    """Twice the codes in the low (0) or the high (1) halves of bytes; int32 lanes of four bytes."""
    return ((codes >> 3) if half else (codes << 1)) & 0x1E1E1E1E


def byte_reference(x: npt.NDArray[np.floating], block: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The meaning of 8 bits over the last axis: codes before they are rounded, and scales before they are.

    Scales have the last axis' blocks.
    """
    parts = x.astype(np.float64).reshape(*x.shape[:-1], -1, block)
    amax = np.abs(parts).max(axis=-1)
    scale = np.where(amax < TINY, 0.0, amax / 127)
    return (parts / np.where(scale == 0, np.inf, scale)[..., None]).reshape(x.shape), scale
