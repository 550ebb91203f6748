"""Q2_K: blocks of 256 two-bit codes in groups of 16 with four-bit scales and minima (2.625 bits a weight).

Stored block, 84 bytes: 16 bytes, one a group, whose low nibble is the scale and whose high nibble is
the minimum; 64 bytes of codes; ``d`` f16; ``m`` f16. Each half of 128 elements has 32 bytes of codes:
their lowest two bits are its elements 0-31, the next two bits elements 32-63, and so on.
Source: the GGUF specification of GGML_TYPE_Q2_K.
"""

from __future__ import annotations

from ryzc.formats import bits
from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q2_K(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        factors, q, d, m = bits.cut(stored, (16, 64, 2, 2))
        factors = bits.spread(factors, 4, 16)
        return Codes(
            q=bits.spread(q, 2, 32).reshape(len(stored), -1),
            d=bits.from_half(d),
            s=bits.to_factors(factors[:, :, :16]),
            m=bits.from_half(m),
            t=bits.to_factors(factors[:, :, 16:]),
        )

    def unparse(self, codes: Codes) -> U8:
        assert codes.s is not None
        assert codes.m is not None
        assert codes.t is not None
        s, t = bits.from_factors(codes.s, 16), bits.from_factors(codes.t, 16)
        q = bits.gather(codes.q.reshape(len(codes.q), -1, 256), 2, 32)
        return bits.join([bits.add(s, t, 4), q, bits.to_half(codes.d), bits.to_half(codes.m)])


FORMAT = _Q2_K(name="q2_k", block=256, block_bytes=84, group=16, planes=(2,), scale_bits=4, min_sign=-1, min_bits=4)
