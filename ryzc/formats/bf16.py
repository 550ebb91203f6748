"""BF16: the upper half of an IEEE 754 float32, little-endian."""

from __future__ import annotations

import numpy as np

from ryzc.errors import UnsupportedError
from ryzc.formats.weight_format import F32, U8, FloatFormat


class _BF16(FloatFormat):
    def decode(self, stored: U8) -> F32:
        halves = np.ascontiguousarray(stored).view(np.uint16).astype(np.uint32)
        return (halves << np.uint32(16)).view(np.float32)

    def quantize(self, weights: F32) -> U8:
        """Round to nearest, ties to even; a value past the range is an error and never an infinity."""
        words = np.ascontiguousarray(weights, np.float32).view(np.uint32)
        # The largest word below the infinity's rounds up to it at most, so nothing wraps.
        halves = (words + (np.uint32(0x7FFF) + (words >> 16 & 1)) >> 16).astype(np.uint16)
        if not (np.isfinite(weights) & (halves & 0x7F80 != 0x7F80)).all():
            raise UnsupportedError(
                f"{self.name}: the weights hold values that are not finite or too large for bfloat16",
                hint="keep these weights in f32",
            )
        return halves.view(np.uint8)


FORMAT = _BF16(name="bf16", block=1, block_bytes=2)
