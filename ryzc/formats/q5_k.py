"""Q5_K: blocks of 256 five-bit codes in groups of 32 with six-bit scales and minima (5.5 bits a weight).

Stored block, 176 bytes: ``d`` f16, ``m`` f16, 12 bytes of scales and minima
(:func:`ryzc.formats.bits.six_bit_pairs`), 32 bytes whose bit ``g`` is the fifth bit of the elements of
group ``g``, 128 bytes of nibbles ordered as in Q4_K. Source: the GGUF specification of GGML_TYPE_Q5_K.
"""

from __future__ import annotations

from ryzc.formats import bits
from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q5_K(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        d, m, factors, high, nibbles = bits.cut(stored, (2, 2, 12, 32, 128))
        s, t = bits.six_bit_pairs(factors)
        q = bits.add(bits.spread(nibbles, 4, 32), bits.spread(high, 1, 32), 4)
        return Codes(q=q.reshape(len(stored), -1), d=bits.from_half(d), s=s, m=bits.from_half(m), t=t)

    def unparse(self, codes: Codes) -> U8:
        assert codes.s is not None
        assert codes.m is not None
        assert codes.t is not None
        q = codes.q.reshape(len(codes.q), -1, 256)
        head = [bits.to_half(codes.d), bits.to_half(codes.m), bits.from_six_bit_pairs(codes.s, codes.t)]
        return bits.join([*head, bits.gather(q, 1, 32, low=4), bits.gather(q, 4, 32)])


FORMAT = _Q5_K(name="q5_k", block=256, block_bytes=176, planes=(4, 1), scale_bits=6, min_sign=-1, min_bits=6)
