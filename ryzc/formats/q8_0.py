"""Q8_0: blocks of 32 signed bytes under one float16 scale (8.5 bits a weight).

Stored block, 34 bytes: ``d`` f16, 32 signed bytes. Source: the GGUF specification of GGML_TYPE_Q8_0.
"""

from __future__ import annotations

import numpy as np

from ryzc.formats import bits
from ryzc.formats.weight_format import F32, U8, AffineFormat, Codes

_SIGN = np.uint8(0x80)


class _Q8_0(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        d, q = bits.cut(stored, (2, 32))
        return Codes(q=(q ^ _SIGN).reshape(len(stored), -1), d=bits.from_half(d))

    def unparse(self, codes: Codes) -> U8:
        q = codes.q.reshape(len(codes.q), -1, 32)
        return bits.join([bits.to_half(codes.d), q ^ _SIGN])

    def quantize(self, weights: F32) -> U8:
        """The largest magnitude becomes 127; halves round away from zero."""
        blocks = self.blocks(weights)
        scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
        d = bits.round_to_half(scales[:, :, 0], self.name)
        scaled = blocks * bits.reciprocal(scales)
        magnitude = np.abs(scaled)
        whole = np.floor(magnitude)
        whole += magnitude - whole >= np.float32(0.5)
        q = np.copysign(whole, scaled).astype(np.int8).view(np.uint8)
        return self.unparse(Codes(q=(q ^ _SIGN).reshape(weights.shape), d=d))


FORMAT = _Q8_0(name="q8_0", block=32, block_bytes=34, planes=(8,), zero=128)
