"""Q6_K: blocks of 256 six-bit codes around 32 in groups of 16 with signed bytes as scales (6.5625 bits a weight).

Stored block, 210 bytes: 128 bytes of nibbles, 64 bytes of upper bits, 16 signed bytes of scales, ``d``
f16. Each half of 128 elements has 64 bytes of nibbles, low ones its elements 0-63 and high ones 64-127,
and 32 bytes of upper bits: the lowest two its elements 0-31, the next two 32-63, and so on.
Source: the GGUF specification of GGML_TYPE_Q6_K.
"""

from __future__ import annotations

from ryzc.formats import bits
from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q6_K(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        nibbles, high, factors, d = bits.cut(stored, (128, 64, 16, 2))
        q = bits.add(bits.spread(nibbles, 4, 64), bits.spread(high, 2, 32), 4)
        return Codes(q=q.reshape(len(stored), -1), d=bits.from_half(d), s=bits.to_factors(factors))

    def unparse(self, codes: Codes) -> U8:
        assert codes.s is not None
        q = codes.q.reshape(len(codes.q), -1, 256)
        factors = bits.from_factors(codes.s, 16)
        return bits.join([bits.gather(q, 4, 64), bits.gather(q, 2, 32, low=4), factors, bits.to_half(codes.d)])


FORMAT = _Q6_K(name="q6_k", block=256, block_bytes=210, group=16, planes=(4, 2), zero=32, scale_bits=8)
