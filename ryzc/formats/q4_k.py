"""Q4_K: blocks of 256 four-bit codes in groups of 32 with six-bit scales and minima (4.5 bits a weight).

Stored block, 144 bytes: ``d`` f16, ``m`` f16, 12 bytes of scales and minima
(:func:`ryzc.formats.bits.six_bit_pairs`), 128 bytes of codes, where 32 bytes hold 64 elements: low
nibbles the first 32, high nibbles the others. Source: the GGUF specification of GGML_TYPE_Q4_K.
"""

from __future__ import annotations

from ryzc.formats import bits
from ryzc.formats.weight_format import U8, AffineFormat, Codes


class _Q4_K(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        d, m, factors, nibbles = bits.cut(stored, (2, 2, 12, 128))
        s, t = bits.six_bit_pairs(factors)
        q = bits.spread(nibbles, 4, 32).reshape(len(stored), -1)
        return Codes(q=q, d=bits.from_half(d), s=s, m=bits.from_half(m), t=t)

    def unparse(self, codes: Codes) -> U8:
        assert codes.s is not None
        assert codes.m is not None
        assert codes.t is not None
        q = codes.q.reshape(len(codes.q), -1, 256)
        factors = bits.from_six_bit_pairs(codes.s, codes.t)
        return bits.join([bits.to_half(codes.d), bits.to_half(codes.m), factors, bits.gather(q, 4, 32)])


FORMAT = _Q4_K(name="q4_k", block=256, block_bytes=144, planes=(4,), scale_bits=6, min_sign=-1, min_bits=6)
