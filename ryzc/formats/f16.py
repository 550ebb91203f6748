"""F16: IEEE 754 float16, little-endian."""

from __future__ import annotations

import numpy as np

from ryzc.formats import bits
from ryzc.formats.weight_format import F32, U8, FloatFormat


class _F16(FloatFormat):
    def decode(self, stored: U8) -> F32:
        return np.ascontiguousarray(stored).view(np.float16).astype(np.float32)

    def quantize(self, weights: F32) -> U8:
        """Round to nearest, ties to even; a value past the range is an error and never an infinity."""
        return np.ascontiguousarray(bits.round_to_half(weights, self.name)).view(np.uint8)


FORMAT = _F16(name="f16", block=1, block_bytes=2)
