"""BF16: the upper half of an IEEE 754 float32, little-endian."""

from __future__ import annotations

import numpy as np

from ryzc.formats.weight_format import F32, U8, FloatFormat


class _BF16(FloatFormat):
    def decode(self, stored: U8) -> F32:
        halves = np.ascontiguousarray(stored).view(np.uint16).astype(np.uint32)
        return (halves << np.uint32(16)).view(np.float32)


FORMAT = _BF16(name="bf16", block=1, block_bytes=2)
