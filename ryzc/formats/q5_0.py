"""Q5_0: blocks of 32 five-bit codes around 16 and a float16 scale (5.5 bits a weight).

Stored block, 22 bytes: ``d`` f16, 4 bytes whose bit ``i`` (low first) is the fifth bit of element
``i``, 16 bytes whose low nibbles are elements 0-15 and whose high nibbles are elements 16-31.
Source: the GGUF specification of GGML_TYPE_Q5_0.
"""

from __future__ import annotations

from ryzc.formats import bits
from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q5_0(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        d, high, nibbles = bits.cut(stored, (2, 4, 16))
        q = bits.add(bits.spread(nibbles, 4, 16), bits.spread(high, 1, 1), 4)
        return Codes(q=q.reshape(len(stored), -1), d=bits.from_half(d))

    def unparse(self, codes: Codes) -> U8:
        q = codes.q.reshape(len(codes.q), -1, 32)
        return bits.join([bits.to_half(codes.d), bits.gather(q, 1, 1, low=4), bits.gather(q, 4, 16)])


FORMAT = _Q5_0(name="q5_0", block=32, block_bytes=22, planes=(4, 1), zero=16)
