"""Quantized activations as kernels pass them on: int8 codes and one record per block of 32.

``codes`` is ``int8 [tokens, K]`` in ``-127 .. 127``. ``records`` is ``[tokens, K / 32]`` of 16 bytes:

    offset 0   f32   scale: a code counts ``code * scale``
    offset 4   i32   ``ORIGIN_BITS`` minus the sum of the block's codes times ``unit``
    offset 8   i32   ``ORIGIN_BITS`` minus the sum of its first 16 codes times ``unit``
    offset 12  f32   scale * sum of the block's codes

The sums undo the offset of unsigned weight codes and carry the weights' minima. ``unit`` is a power of two
that divides the zero points of all formats that read the records: where it is the zero point itself, an
integer sum starts from the record as it is.

Integer sums count from ``ORIGIN_BITS``, the bits of the float ``ORIGIN``. Around it neighbouring floats differ by one,
so the bits of such a sum are at once the float ``ORIGIN + sum``, and a kernel needs no conversion.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

BLOCK: Final = 32
RECORD_BYTES: Final = 16
SCALE, START, START_FIRST, SCALED_SUM = 0, 4, 8, 12
ORIGIN: Final = 1.5 * 2.0**23
ORIGIN_BITS: Final = 0x4B400000
"""``ORIGIN`` as float32. Sums between -2**22 and 2**22 may be added; those of a block stay below ``32 * 255 * 127``."""
TINY: Final = 2.0**-100
"""Blocks whose largest magnitude is below this count as zero: 127 / amax must not overflow."""


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
