"""TQ1_0: blocks of 256 ternary weights, five to a byte, under a float16 scale (1.6875 bits a weight).

Stored block, 54 bytes: 48 bytes of five weights, 4 bytes of four, ``d`` f16. Five codes around 1 are the digits of a
number in base 3, the first the highest; a byte is that number times 256/243, rounded up, so that each multiplication
by 3 carries the next digit out of the byte. Four codes leave the last digit 0. Within 32 bytes (then 16, then the last
4) come the first digits of all, then the second ones. Source: the GGUF specification of GGML_TYPE_TQ1_0.

Thirteen values of a byte are no such number; they parse like the digits that they carry out, and would be unparsed
otherwise. The fourth code of two bits never comes out of :meth:`parse` and must not be given to :meth:`unparse`.
"""

from __future__ import annotations

import numpy as np

from ryzc.formats import bits
from ryzc.formats.weight_format import F32, U8, AffineFormat, Codes

_RUNS = ((32, 5), (16, 5), (4, 4))
"""Bytes of a run, and the digits that each of them holds."""


class _TQ1_0(AffineFormat):
    def parse(self, stored: U8) -> Codes:
        *runs, d = bits.cut(stored, (*(size for size, _ in _RUNS), 2))
        parts = [_digits(run, count) for run, (_, count) in zip(runs, _RUNS, strict=True)]
        return Codes(q=np.concatenate(parts, axis=2).reshape(len(stored), -1), d=bits.from_half(d))

    def unparse(self, codes: Codes) -> U8:
        q = codes.q.reshape(len(codes.q), -1, 256)
        parts = np.split(q, np.cumsum([size * count for size, count in _RUNS])[:-1], axis=2)
        runs = [_bytes(part, count) for part, (_, count) in zip(parts, _RUNS, strict=True)]
        return bits.join([*runs, bits.to_half(codes.d)])

    def quantize(self, weights: F32) -> U8:
        """See :func:`ryzc.formats.bits.ternary_codes`."""
        q, d = bits.ternary_codes(self.blocks(weights), self.name)
        return self.unparse(Codes(q=q.reshape(weights.shape), d=d))


def _digits(run: U8, count: int) -> U8:
    """The first ``count`` digits of bytes ``[N, blocks, size]``: ``[N, blocks, count * size]``."""
    powers = np.uint8(3) ** np.arange(count, dtype=np.uint8)[:, None]
    left = run[:, :, None, :] * powers  # in a byte: what was carried out before is gone
    digits = (left.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).astype(np.uint8)
    return digits.reshape(*run.shape[:2], -1)


def _bytes(digits: U8, count: int) -> U8:
    """The inverse of :func:`_digits`."""
    places = np.uint16(3) ** np.arange(4, 4 - count, -1, dtype=np.uint16)[:, None]
    numbers = (digits.reshape(*digits.shape[:2], count, -1) * places).sum(axis=2, dtype=np.uint16)
    packed: U8 = ((numbers * np.uint32(256) + np.uint32(242)) // np.uint32(243)).astype(np.uint8)
    return packed


FORMAT = _TQ1_0(name="tq1_0", block=256, block_bytes=54, planes=(2,), zero=1)
