"""Fields of stored blocks: halves, and bit fields of runs of bytes. What the format files share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc.errors import UnsupportedError
from ryzc.formats.weight_format import F32, U8

F16: TypeAlias = npt.NDArray[np.float16]
I8: TypeAlias = npt.NDArray[np.int8]


def cut(stored: U8, sizes: Sequence[int]) -> list[U8]:
    """Rows ``[N, row_bytes]`` of blocks to the blocks' fields in order, each ``[N, blocks, size]``."""
    blocks = stored.reshape(stored.shape[0], -1, sum(sizes))
    return np.split(blocks, np.cumsum(sizes)[:-1], axis=2)


def join(fields: Sequence[U8]) -> U8:
    """The inverse of :func:`cut`."""
    return np.concatenate(fields, axis=2).reshape(fields[0].shape[0], -1)


def from_half(field: U8) -> F16:
    """``[N, blocks, 2]`` bytes to ``float16 [N, blocks]``, bits kept."""
    return np.ascontiguousarray(field).view(np.float16)[:, :, 0]


def to_half(values: F16) -> U8:
    """The inverse of :func:`from_half`."""
    return np.ascontiguousarray(values)[:, :, None].view(np.uint8)


def spread(field: U8, width: int, span: int) -> U8:
    """Bit fields of runs of ``span`` bytes: ``[N, blocks, bytes]`` to ``[N, blocks, 8 / width * bytes]``.

    A run gives the low ``width`` bits of all its bytes first, then the next bits of all its bytes.
    """
    runs = field.reshape(*field.shape[:2], -1, 1, span)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    fields = runs >> shifts
    fields &= np.uint8((1 << width) - 1)
    return fields.reshape(*field.shape[:2], -1)


def gather(values: U8, width: int, span: int, *, low: int = 0) -> U8:
    """The inverse of :func:`spread`, of the ``width`` bits of each value from bit ``low`` up."""
    runs = values.reshape(*values.shape[:2], -1, 8 // width, span)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    fields = runs >> np.uint8(low)
    fields &= np.uint8((1 << width) - 1)
    fields <<= shifts
    packed: U8 = np.bitwise_or.reduce(fields, axis=3)
    return packed.reshape(*values.shape[:2], -1)


def add(values: U8, high: U8, shift: int) -> U8:
    """``values | high << shift``, which must fit into a byte."""
    return values | high << np.uint8(shift)


def six_bit_pairs(packed: U8) -> tuple[I8, I8]:
    """The eight scales and eight minima of Q4_K and Q5_K: ``[N, blocks, 12]`` to two ``int8 [N, blocks * 8]``.

    Bytes 0-3 and 4-7 hold the first four scales and minima in their low six bits. Byte ``8 + i`` holds
    the low nibbles of scale and minimum ``4 + i``, whose upper bits are the top bits of bytes ``i`` and ``4 + i``.
    """
    low6, top = packed[:, :, :8] & np.uint8(63), packed[:, :, :8] >> np.uint8(6)
    last = add(spread(packed[:, :, 8:], 4, 4), top, 4)
    scales = np.concatenate([low6[:, :, :4], last[:, :, :4]], axis=2)
    minima = np.concatenate([low6[:, :, 4:], last[:, :, 4:]], axis=2)
    return to_factors(scales), to_factors(minima)


def from_six_bit_pairs(scales: I8, minima: I8) -> U8:
    """The inverse of :func:`six_bit_pairs`."""
    s, t = from_factors(scales, 8), from_factors(minima, 8)
    first = np.concatenate([s[:, :, :4], t[:, :, :4]], axis=2)
    last = np.concatenate([s[:, :, 4:], t[:, :, 4:]], axis=2)
    return np.concatenate([add(first, last >> np.uint8(4), 6), gather(last, 4, 4)], axis=2)


def to_factors(values: U8) -> I8:
    """``[N, blocks, groups]`` of a block's sub-scales to ``int8 [N, K / group]``."""
    return np.ascontiguousarray(values).view(np.int8).reshape(values.shape[0], -1)


def from_factors(values: I8, groups: int) -> U8:
    """The inverse of :func:`to_factors`."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(values.shape[0], -1, groups)


def round_to_half(values: F32, what: str) -> F16:
    """Round to the nearest ``float16``.

    Raises:
        UnsupportedError: where a value is not finite, or too large.
    """
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise UnsupportedError(
            f"{what}: the weights hold values that are not finite or too large for float16",
            hint="keep these weights in bf16 or f32",
        )
    return halves


def reciprocal(scales: F32) -> F32:
    """``1 / scale``, and 0 where that is not finite: such a scale is 0 as float16, whatever the codes."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def ternary_codes(blocks: F32, what: str) -> tuple[U8, F16]:
    """Blocks ``[N, blocks, size]`` to codes 0, 1, 2 of the same shape and ``float16 [N, blocks]`` scales.

    The scale is the largest magnitude of a block; what is half of it or more becomes one whole, as in llama.cpp.

    Raises:
        UnsupportedError: where a value is not finite, or too large for float16.
    """
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    d = round_to_half(largest[:, :, 0], what)
    shares = blocks * reciprocal(largest)
    q = np.uint8(1) + (shares >= np.float32(0.5)).astype(np.uint8) - (shares <= np.float32(-0.5)).astype(np.uint8)
    return q, d
