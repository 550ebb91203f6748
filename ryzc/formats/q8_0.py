"""Q8_0: blocks of 32 signed bytes under one float16 scale (8.5 bits a weight).

Stored block, 34 bytes: ``d`` f16, 32 signed bytes. Source: the GGUF specification of GGML_TYPE_Q8_0.
"""

from __future__ import annotations

import numpy as np

from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q8_0(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        n = stored.shape[0]
        blocks = stored.reshape(n, -1, 34)
        d = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
        return Codes(q=(blocks[:, :, 2:] ^ 0x80).reshape(n, -1), d=d)

    def unparse(self, codes: Codes) -> U8:
        n = codes.q.shape[0]
        q = codes.q.reshape(n, -1, 32) ^ 0x80
        d = np.ascontiguousarray(codes.d)[:, :, None].view(np.uint8)
        return np.concatenate([d, q], axis=2).reshape(n, -1)


FORMAT = _Q8_0(name="q8_0", block=32, block_bytes=34, planes=(8,), zero=128)
