"""Q3_K: blocks of 256 three-bit codes around 4 in groups of 16 with six-bit scales around 32 (3.4375 bits a weight).

Stored block, 110 bytes: 32 bytes whose bit ``g`` is the third bit of elements ``32 g`` to ``32 g + 31``;
64 bytes of the codes' lower two bits, ordered as in Q2_K; 12 bytes of scales; ``d`` f16. The low
nibbles of bytes 0-7 of the scales belong to groups 0-7, their high nibbles to groups 8-15; bytes 8-11
hold the upper two bits of groups 0-3, 4-7, 8-11 and 12-15 from their lowest bits up.
Source: the GGUF specification of GGML_TYPE_Q3_K.
"""

from __future__ import annotations

import numpy as np

from ryzc.formats import bits
from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q3_K(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        high, low, factors, d = bits.cut(stored, (32, 64, 12, 2))
        q = bits.add(bits.spread(low, 2, 32), bits.spread(high, 1, 32), 2)
        s = bits.add(bits.spread(factors[:, :, :8], 4, 8), bits.spread(factors[:, :, 8:], 2, 4), 4)
        return Codes(
            q=q.reshape(len(stored), -1),
            d=bits.from_half(d),
            s=bits.to_factors(s) - np.int8(self.scale_zero),
        )

    def unparse(self, codes: Codes) -> U8:
        assert codes.s is not None
        q = codes.q.reshape(len(codes.q), -1, 256)
        s = bits.from_factors(codes.s + np.int8(self.scale_zero), 16)
        factors = [bits.gather(s, 4, 8), bits.gather(s, 2, 4, low=4)]
        return bits.join([bits.gather(q, 1, 32, low=2), bits.gather(q, 2, 32), *factors, bits.to_half(codes.d)])


FORMAT = _Q3_K(name="q3_k", block=256, block_bytes=110, group=16, planes=(2, 1), zero=4, scale_bits=6, scale_zero=32)
