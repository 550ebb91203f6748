"""Q5_1: blocks of 32 five-bit codes, a float16 scale and a float16 minimum (6 bits a weight).

Stored block, 24 bytes: ``d`` f16, ``m`` f16, 4 bytes whose bit ``i`` (low first) is the fifth bit of
element ``i``, 16 bytes whose low nibbles are elements 0-15 and whose high nibbles are elements 16-31.
Source: the GGUF specification of GGML_TYPE_Q5_1.
"""

from __future__ import annotations

from ryzc.formats import bits
from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q5_1(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        d, m, high, nibbles = bits.cut(stored, (2, 2, 4, 16))
        q = bits.add(bits.spread(nibbles, 4, 16), bits.spread(high, 1, 1), 4)
        return Codes(q=q.reshape(len(stored), -1), d=bits.from_half(d), m=bits.from_half(m))

    def unparse(self, codes: Codes) -> U8:
        assert codes.m is not None
        q = codes.q.reshape(len(codes.q), -1, 32)
        halves = [bits.to_half(codes.d), bits.to_half(codes.m)]
        return bits.join([*halves, bits.gather(q, 1, 1, low=4), bits.gather(q, 4, 16)])


FORMAT = _Q5_1(name="q5_1", block=32, block_bytes=24, planes=(4, 1), min_sign=1)
