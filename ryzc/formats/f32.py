"""F32: IEEE 754 float32, little-endian."""

from __future__ import annotations

import numpy as np

from ryzc.formats.weight_format import F32, U8, FloatFormat


class _F32(FloatFormat):
    def decode(self, stored: U8) -> F32:
        return np.ascontiguousarray(stored).view(np.float32)

    def quantize(self, weights: F32) -> U8:
        """The weights themselves."""
        return np.ascontiguousarray(weights, np.float32).view(np.uint8)


FORMAT = _F32(name="f32", block=1, block_bytes=4)
