"""BitNet weights as transformers packs them, as rows of the format ``ternary``.

Four rows share bytes: of a matrix of ``N`` rows, byte ``[r, k]`` of ``uint8 [N / 4, K]`` holds the weight of row
``r + i * N / 4`` as ``t + 1`` in bits ``2 i`` and ``2 i + 1``. Source: transformers, ``integrations/bitnet.py``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ryzc import formats

_CHUNK = 1 << 18
"""Bytes rearranged at a time."""


def to_ternary(packed: npt.NDArray[np.uint8], scale: float) -> npt.NDArray[np.uint8]:
    """``uint8 [N, row_bytes]`` of the format ``ternary``.

    Args:
        packed: ``uint8 [N / 4, K]``, ``K`` a multiple of that format's block.
        scale: what each weight of -1, 0 or 1 is multiplied by, float32.

    Raises:
        ValueError: there is a code that is no weight, or the scale is not finite.
    """
    if not np.isfinite(np.float32(scale)):
        raise ValueError(f"its scale is {scale}")
    quarter, k = packed.shape
    fmt = formats.get("ternary")
    rows = np.empty((4, quarter, fmt.row_bytes(k)), np.uint8)
    rows[:, :, : fmt.header_bytes] = np.array([scale], "<f4").view(np.uint8)
    step = max(1, _CHUNK // k)
    for start in range(0, quarter, step):
        part = np.ascontiguousarray(packed[start : start + step])
        if (part & part >> np.uint8(1) & np.uint8(0b01010101)).any():
            raise ValueError("it holds a code that is no ternary weight")
        fields = part.view("<u4") >> np.arange(0, 8, 2, dtype=np.uint32)[:, None, None] & np.uint32(0x03030303)
        fields |= fields >> np.uint32(6)
        fields |= fields >> np.uint32(12)
        rows[:, start : start + step, fmt.header_bytes :] = fields.astype(np.uint8)
    return rows.reshape(4 * quarter, -1)
