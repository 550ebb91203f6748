"""Quantized activations as kernels pass them on: int8 codes and one record per block of 32.

``codes`` is ``int8 [tokens, K]`` in ``-127 .. 127``. ``records`` is ``[tokens, K / 32]`` of 16 bytes:

    offset 0   f32   scale: a code counts ``code * scale``
    offset 4   i32   ``ORIGIN_BITS`` minus the sum of the block's codes times ``unit``
    offset 8   i32   ``ORIGIN_BITS`` minus the sum of its first 16 codes times ``unit``
    offset 12  f32   scale * sum of the block's codes

A token's codes and its records each take an odd number of cache lines, see :func:`row_bytes`.

The sums undo the offset of unsigned weight codes and carry the weights' minima. ``unit`` is a power of two
that divides the zero points of all formats that read the records: where it is the zero point itself, an
integer sum starts from the record as it is.

Integer sums count from ``ORIGIN_BITS``, the bits of the float ``ORIGIN``. Around it neighbouring floats differ by one,
so the bits of such a sum are at once the float ``ORIGIN + sum``, and a kernel needs no conversion.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ryzc.codegen.vector import LINE

BLOCK: Final = 32
RECORD_BYTES: Final = 16
SCALE, START, START_FIRST, SCALED_SUM = 0, 4, 8, 12
ORIGIN: Final = 1.5 * 2.0**23
ORIGIN_BITS: Final = 0x4B400000
"""``ORIGIN`` as float32. Sums between -2**22 and 2**22 may be added; those of a block stay below ``32 * 255 * 127``."""
TINY: Final = 2.0**-100
"""Blocks whose largest magnitude is below this count as zero: 127 / amax must not overflow."""


def code_bytes(columns: int) -> int:
    """Bytes from a token's codes to the next one's."""
    return row_bytes(columns)


def record_bytes(columns: int) -> int:
    """Bytes from a token's records to the next one's."""
    return row_bytes(columns // BLOCK * RECORD_BYTES)


def row_bytes(nbytes: int) -> int:
    """Bytes that a row takes which holds so many: an odd number of cache lines.

    A tile of tokens reads the same column of many rows at once. Rows whose distance is a multiple of a power of two
    would have their lines in the same few places of a cache, and push each other out.
    """
    return (-(-nbytes // LINE) | 1) * LINE


def rows(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Codes or records ``[T, ...]`` as they lie in memory, ``uint8 [T, row_bytes]``; what fills a row up is 0."""
    flat = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    return np.pad(flat, ((0, 0), (0, row_bytes(flat.shape[1]) - flat.shape[1])))


def quantize(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """The meaning: ``float32 [T, K]`` to codes ``int8 [T, K]`` and scales ``float32 [T, K/32]``.

    Per block: ``scale = amax / 127`` and ``code = round_half_even(x * (127 / amax))``, in float32.
    """
    blocks = x.astype(np.float32).reshape(x.shape[0], -1, BLOCK)
    amax = np.abs(blocks).max(axis=2)
    zero = amax < TINY
    safe = np.where(zero, np.float32(1), amax)
    inverse = np.where(zero, np.float32(0), np.float32(127) / safe)
    codes = np.rint(blocks * inverse[:, :, None]).astype(np.int8)
    scales = np.where(zero, np.float32(0), amax / np.float32(127))
    return codes.reshape(x.shape), scales.astype(np.float32)


def records(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], unit: int = 1) -> npt.NDArray[np.uint8]:
    """The records of quantized activations, ``uint8 [T, K/32, 16]``."""
    blocks = codes.reshape(*scales.shape, BLOCK).astype(np.int32)
    sums = blocks.sum(axis=2, dtype=np.int32)
    first = blocks[:, :, :16].sum(axis=2, dtype=np.int32)
    starts = [ORIGIN_BITS - part * unit for part in (sums, first)]
    words = [scales.view(np.int32), *starts, (scales * sums.astype(np.float32)).view(np.int32)]
    return np.ascontiguousarray(np.stack(words, axis=2).astype(np.int32)).view(np.uint8)
