"""I2_S, the ternary tensors of bitnet.cpp's GGUF files, as rows of the format ``ternary``.

A tensor is one run of two-bit codes ``t + 1``, rows of any length one after another, and 32 bytes that begin with its
only scale, float32. Each 128 weights are 32 bytes: weight ``j`` lies in byte ``j % 32`` at bit ``6 - 2 * (j // 32)``.
Source: microsoft/BitNet, ``src/ggml-bitnet-mad.cpp``, as it runs on x86; files are made there and say nothing of it.
(Its build for ARM has groups of 64, which nothing in a file tells from these.)
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ryzc import formats

GROUP: Final = 128
"""Weights that are stored together."""
TRAILER: Final = 32
"""Bytes behind the codes."""
_CHUNK: Final = 1 << 18
"""Bytes rearranged at a time."""


def to_ternary(raw: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """``uint8 [*shape[:-1], row_bytes]`` of the format ``ternary``.

    Args:
        raw: the tensor's bytes, a quarter of its elements and :data:`TRAILER` more.
        shape: rows first; all elements are a multiple of :data:`GROUP`, and rows are whole blocks of ``ternary``.

    Raises:
        ValueError: a code or the scale is none that an encoder writes.
    """
    codes = raw[:-TRAILER]
    scale = float(raw[-TRAILER : 4 - TRAILER].view("<f4")[0])
    if not np.isfinite(scale):
        raise ValueError(f"its scale is {scale}")
    fmt = formats.get("ternary")
    rows = np.empty((codes.size * 4 // shape[-1], fmt.row_bytes(shape[-1])), np.uint8)
    rows[:, : fmt.header_bytes] = np.array([scale], "<f4").view(np.uint8)
    packed = np.empty_like(codes)
    for start in range(0, codes.size, _CHUNK):
        part = codes[start : start + _CHUNK]
        if (part & part >> np.uint8(1) & np.uint8(0b01010101)).any():
            raise ValueError("it holds a code that is no ternary weight")
        packed[start : start + _CHUNK] = _rearranged(part)
    rows[:, fmt.header_bytes :] = packed.reshape(len(rows), -1)
    return rows.reshape(*shape[:-1], -1)


def _rearranged(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Groups of 128 to four neighbours a byte, the first in the lowest bits."""
    words = codes.view("<u4").reshape(-1, 1, 8)  # of 32 bytes: eight times four, and a quarter of the 128 in each
    fields = words >> np.arange(6, -1, -2, dtype=np.uint32)[:, None] & np.uint32(0x03030303)
    fields |= fields >> np.uint32(6)
    fields |= fields >> np.uint32(12)
    return fields.astype(np.uint8).reshape(-1)
