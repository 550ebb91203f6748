"""Q4_0: blocks of 32 four-bit codes around 8 and a float16 scale (4.5 bits a weight).

Stored block, 18 bytes: ``d`` f16, 16 bytes whose low nibbles are elements 0-15 and whose high
nibbles are elements 16-31. Source: the GGUF specification of GGML_TYPE_Q4_0.
"""

from __future__ import annotations

import numpy as np

from ryzc.formats import bits
from ryzc.formats.weight_format import F32, U8, AffineFormat, Codes


class _Q4_0(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        d, nibbles = bits.cut(stored, (2, 16))
        return Codes(q=bits.spread(nibbles, 4, 16).reshape(len(stored), -1), d=bits.from_half(d))

    def unparse(self, codes: Codes) -> U8:
        q = codes.q.reshape(len(codes.q), -1, 32)
        return bits.join([bits.to_half(codes.d), bits.gather(q, 4, 16)])

    def quantize(self, weights: F32) -> U8:
        """The element of largest magnitude becomes code 0, so that its value is exact but for ``d``'s rounding."""
        blocks = self.blocks(weights)
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
        scales = largest / np.float32(-8)
        d = bits.round_to_half(scales[:, :, 0], self.name)
        q = blocks * bits.reciprocal(scales) + np.float32(8.5)
        return self.unparse(Codes(q=q.astype(np.uint8).clip(0, 15).reshape(weights.shape), d=d))


FORMAT = _Q4_0(name="q4_0", block=32, block_bytes=18, planes=(4,), zero=8)
