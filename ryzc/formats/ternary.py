"""Ternary weights as ryzc keeps them, whatever file they come from: two bits a weight, one scale a row.

Stored row: the scale, float32; then four weights a byte, element ``4 i + j`` in bits ``2 j`` and ``2 j + 1`` of
byte ``i`` as ``t + 1``. Formats that files use (TQ1_0, TQ2_0, I2_S, packed checkpoints) become this one where all
of a row's weights share a scale, so that equal weights are equal bytes.
"""

from __future__ import annotations

import numpy as np

from ryzc.errors import UnsupportedError
from ryzc.formats.weight_format import F32, I8, U8, TernaryFormat

_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)


class _Ternary(TernaryFormat):
    def parse(self, stored: U8) -> tuple[I8, F32]:
        codes = stored[:, self.header_bytes :, None] >> _SHIFTS & np.uint8(3)
        scales = np.ascontiguousarray(stored[:, : self.header_bytes]).view(np.float32)[:, 0]
        return (codes.view(np.int8) - np.int8(1)).reshape(len(stored), -1), scales

    def unparse(self, trits: I8, scales: F32) -> U8:
        stored = np.empty((len(trits), self.row_bytes(trits.shape[1])), np.uint8)
        stored[:, : self.header_bytes] = np.ascontiguousarray(scales, np.float32)[:, None].view(np.uint8)
        codes = (trits + np.int8(1)).view(np.uint8).reshape(len(trits), -1, 4) << _SHIFTS
        np.bitwise_or.reduce(codes, axis=2, out=stored[:, self.header_bytes :])
        return stored

    def quantize(self, weights: F32) -> U8:
        """One scale for the whole matrix, the mean magnitude, as BitNet b1.58 has it (arXiv:2402.17764).

        The mean is at least 1e-5 and computed in float32; ``t = clip(round_half_even(w * (1 / scale)), -1, 1)``.
        """
        if not np.isfinite(weights).all():
            raise UnsupportedError(
                f"{self.name}: the weights hold values that are not finite", hint="the file may be damaged"
            )
        scale = np.maximum(np.abs(weights).mean(dtype=np.float32), np.float32(1e-5))
        trits = np.rint(weights * (np.float32(1) / scale)).clip(-1, 1).astype(np.int8)
        return self.unparse(trits, np.full(len(weights), scale, np.float32))


FORMAT = _Ternary(name="ternary", block=32, block_bytes=8, header_bytes=4)
