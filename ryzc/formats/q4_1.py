"""Q4_1: blocks of 32 four-bit codes, a float16 scale and a float16 minimum (5 bits a weight).

Stored block, 20 bytes: ``d`` f16, ``m`` f16, 16 bytes whose low nibbles are elements 0-15 and whose
high nibbles are elements 16-31. Source: the GGUF specification of GGML_TYPE_Q4_1.
"""

from __future__ import annotations

import numpy as np

from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q4_1(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        n = stored.shape[0]
        blocks = stored.reshape(n, -1, 20)
        nibbles = blocks[:, :, 4:]
        q = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
        scales = np.ascontiguousarray(blocks[:, :, :4]).view(np.float16)
        return Codes(q=q.reshape(n, -1), d=scales[:, :, 0].copy(), m=scales[:, :, 1].copy())

    def unparse(self, codes: Codes) -> U8:
        n = codes.q.shape[0]
        q = codes.q.reshape(n, -1, 2, 16)
        assert codes.m is not None
        scales = np.stack([codes.d, codes.m], axis=2).view(np.uint8)
        return np.concatenate([scales, q[:, :, 0] | q[:, :, 1] << 4], axis=2).reshape(n, -1)


FORMAT = _Q4_1(name="q4_1", block=32, block_bytes=20, planes=(4,), min_sign=1)
