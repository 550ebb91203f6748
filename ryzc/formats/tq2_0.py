"""TQ2_0: blocks of 256 ternary weights in two bits each under a float16 scale (2.0625 bits a weight).

Stored block, 66 bytes: 64 bytes of codes around 1, ordered as in Q2_K, and ``d`` f16. The fourth code, which means
``2 d``, is never written. Source: the GGUF specification of GGML_TYPE_TQ2_0.
"""

from __future__ import annotations

from ryzc.formats import bits
from ryzc.formats.weight_format import F32, U8, AffineFormat, Codes


class _TQ2_0(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        codes, d = bits.cut(stored, (64, 2))
        return Codes(q=bits.spread(codes, 2, 32).reshape(len(stored), -1), d=bits.from_half(d))

    def unparse(self, codes: Codes) -> U8:
        q = codes.q.reshape(len(codes.q), -1, 256)
        return bits.join([bits.gather(q, 2, 32), bits.to_half(codes.d)])

    def quantize(self, weights: F32) -> U8:
        """See :func:`ryzc.formats.bits.ternary_codes`."""
        q, d = bits.ternary_codes(self.blocks(weights), self.name)
        return self.unparse(Codes(q=q.reshape(weights.shape), d=d))


FORMAT = _TQ2_0(name="tq2_0", block=256, block_bytes=66, planes=(2,), zero=1)
