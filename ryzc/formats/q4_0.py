"""Q4_0: blocks of 32 four-bit codes around 8 and a float16 scale (4.5 bits a weight).

Stored block, 18 bytes: ``d`` f16, 16 bytes whose low nibbles are elements 0-15 and whose high
nibbles are elements 16-31. Source: the GGUF specification of GGML_TYPE_Q4_0.
"""

from __future__ import annotations

import numpy as np

from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q4_0(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        n = stored.shape[0]
        blocks = stored.reshape(n, -1, 18)
        nibbles = blocks[:, :, 2:]
        q = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
        d = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
        return Codes(q=q.reshape(n, -1), d=d)

    def unparse(self, codes: Codes) -> U8:
        n = codes.q.shape[0]
        q = codes.q.reshape(n, -1, 2, 16)
        d = np.ascontiguousarray(codes.d)[:, :, None].view(np.uint8)
        return np.concatenate([d, q[:, :, 0] | q[:, :, 1] << 4], axis=2).reshape(n, -1)


FORMAT = _Q4_0(name="q4_0", block=32, block_bytes=18, planes=(4,), zero=8)
