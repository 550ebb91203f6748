"""Weights rounded to a few ternary digits, as ``trit1`` and ``trit2`` keep them, and the scales that lose least."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ryzc.errors import UnsupportedError
from ryzc.formats import bits
from ryzc.formats.weight_format import F32, U8, AffineFormat, Codes

F64 = npt.NDArray[np.float64]
_CHUNK = 1 << 15
"""Elements whose scales are looked for at a time, so that what is sorted stays in cache."""


class TritFormat(AffineFormat):
    """Codes around ``zero`` under a float16 scale a block, which is negative where that serves a lopsided block.

    Stored block: the planes of the codes, low bits first (each ordered as one of Q4_0), and ``d`` f16.
    """

    def parse(self, stored: U8) -> Codes:
        *planes, d = bits.cut(stored, (*self._plane_bytes(), 2))
        q = bits.spread(planes[0], self.planes[0], len(planes[0][0, 0]))
        low = self.planes[0]
        for plane, width in zip(planes[1:], self.planes[1:], strict=True):
            q = bits.add(q, bits.spread(plane, width, plane.shape[2]), low)
            low += width
        return Codes(q=q.reshape(len(stored), -1), d=bits.from_half(d))

    def unparse(self, codes: Codes) -> U8:
        q = codes.q.reshape(len(codes.q), -1, self.block)
        fields, low = [], 0
        for width, size in zip(self.planes, self._plane_bytes(), strict=True):
            fields.append(bits.gather(q, width, size, low=low))
            low += width
        return bits.join([*fields, bits.to_half(codes.d)])

    def quantize(self, weights: F32, importance: F32 | None = None) -> U8:
        """Round so that ``sum(importance * error^2)`` of each block is least.

        Args:
            weights: ``float32 [N, K]``.
            importance: ``float32 [K]``, not negative, such as the mean squares of what the columns are multiplied by;
                1 where there is none.

        Raises:
            UnsupportedError: a weight is not finite, or too large for a scale of float16.
            ValueError: ``K`` is no multiple of ``block``.
        """
        if not np.isfinite(weights).all():
            raise UnsupportedError(
                f"{self.name}: the weights hold values that are not finite", hint="the file may be damaged"
            )
        blocks = self.blocks(weights)
        down, up = self.zero, min(self.zero, (1 << sum(self.planes)) - 1 - self.zero)
        scales = best_scales(blocks, down, up, None if importance is None else importance.reshape(-1, self.block))
        d = bits.round_to_half(scales.astype(np.float32), self.name)
        steps = np.rint(blocks * bits.reciprocal(d.astype(np.float32))[:, :, None]).clip(-down, up)
        return self.unparse(Codes(q=(steps + self.zero).astype(np.uint8).reshape(weights.shape), d=d))

    def _plane_bytes(self) -> list[int]:
        return [self.block * width // 8 for width in self.planes]


def best_scales(blocks: F32, down: int, up: int, importance: F32 | None = None) -> F64:
    """The scale of each block that loses least; exact, by sorting.

    With ``q`` the whole number in ``-down .. up`` nearest to ``w / d``, a scale ``d > 0`` leaves the error
    ``sum(h (w - d q)^2)``. As ``d`` falls, a code moves away from 0 step by step, from ``k - 1`` to ``k`` where
    ``d = |w| / (k - 1/2)``. Between two such places all codes stay, and the best scale for them, which is
    ``sum(h w q) / sum(h q^2)``, saves ``sum(h w q)^2 / sum(h q^2)`` of ``sum(h w^2)``. Over the sorted places both
    sums are running sums, and the place that saves most is the optimum. With one step up and down this is the problem
    that Ternary Weight Networks (arXiv:1605.04711) state, and solve by a threshold of 0.7 mean magnitudes. Scales below
    0 are those of ``-w``.

    Args:
        blocks: ``float32 [N, blocks, size]``, finite.
        down, up: the largest steps below and above 0; the larger is at least 1.
        importance: ``float32 [blocks, size]``, ``h`` of each column, not negative; 1 where there is none.

    Returns:
        ``float64 [N, blocks]``, 0 for a block of zeros, below 0 only where ``down`` and ``up`` differ.
    """
    n, count, size = blocks.shape
    h = np.ones((count, size)) if importance is None else importance.astype(np.float64)
    scales = np.empty((n, count))
    step = max(1, _CHUNK // (count * size))
    for first in range(0, n, step):
        scales[first : first + step] = _some(blocks[first : first + step], h, down, up)
    return scales


def _some(blocks: F32, h: F64, down: int, up: int) -> F64:
    k = np.arange(1, max(down, up) + 1)[:, None]
    w = blocks.astype(np.float64)[:, :, None, :]
    flat = (*blocks.shape[:2], -1)
    places = (np.abs(w) / (k - 0.5)).reshape(flat).astype(np.float32)  # what float32 cannot tell apart may swap
    order = np.argsort(-places, axis=2)
    products, squares = (h[:, None, :] * np.abs(w) * np.ones_like(k)).reshape(flat), h[:, None, :] * (2 * k - 1)
    products = np.take_along_axis(products, order, axis=2)
    squares = np.take_along_axis(np.broadcast_to(squares, (*w.shape[:2], *squares.shape[1:])).reshape(flat), order, 2)
    scales, saved = np.zeros(blocks.shape[:2]), np.zeros(blocks.shape[:2])
    for sign, below, above in ((1, down, up), (-1, up, down))[: 1 + (down != up)]:
        reached = np.ones((), bool)
        if down != up:
            reached = np.take_along_axis((k <= np.where(w > 0, above, below)).reshape(flat), order, axis=2)
        along, norms = (products * reached).cumsum(axis=2), (squares * reached).cumsum(axis=2)
        saving = np.divide(along * along, norms, out=np.zeros_like(along), where=norms > 0)
        best = saving.argmax(axis=2)[:, :, None]
        along, norms, saving = (np.take_along_axis(each, best, axis=2)[:, :, 0] for each in (along, norms, saving))
        better = saving > saved
        scales[better], saved[better] = sign * along[better] / norms[better], saving[better]
    return scales
