"""Q4_1: blocks of 32 four-bit codes, a float16 scale and a float16 minimum (5 bits a weight).

Stored block, 20 bytes: ``d`` f16, ``m`` f16, 16 bytes whose low nibbles are elements 0-15 and whose
high nibbles are elements 16-31. Source: the GGUF specification of GGML_TYPE_Q4_1.
"""

from __future__ import annotations

import numpy as np

from ryzc.formats import bits
from ryzc.formats.weight_format import F32, U8, AffineFormat, Codes


class _Q4_1(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        d, m, nibbles = bits.cut(stored, (2, 2, 16))
        q = bits.spread(nibbles, 4, 16).reshape(len(stored), -1)
        return Codes(q=q, d=bits.from_half(d), m=bits.from_half(m))

    def unparse(self, codes: Codes) -> U8:
        assert codes.m is not None
        q = codes.q.reshape(len(codes.q), -1, 32)
        return bits.join([bits.to_half(codes.d), bits.to_half(codes.m), bits.gather(q, 4, 16)])

    def quantize(self, weights: F32) -> U8:
        """The smallest element becomes code 0 and the largest code 15."""
        blocks = self.blocks(weights)
        smallest = blocks.min(axis=2, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):
            scales = (blocks.max(axis=2, keepdims=True) - smallest) / np.float32(15)
        d = bits.round_to_half(scales[:, :, 0], self.name)
        m = bits.round_to_half(smallest[:, :, 0], self.name)
        q = (blocks - smallest) * bits.reciprocal(scales) + np.float32(0.5)
        return self.unparse(Codes(q=q.astype(np.uint8).clip(0, 15).reshape(weights.shape), d=d, m=m))


FORMAT = _Q4_1(name="q4_1", block=32, block_bytes=20, planes=(4,), min_sign=1)
