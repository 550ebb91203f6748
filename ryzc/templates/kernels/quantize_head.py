"""Quantizing a head of a query, key or value: one scale, codes in -127 .. 127."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ryzc.codegen.vector import F32, I32, Function, Value, vec
from ryzc.templates.kernels.activations import TINY

LANES = 16


def quantize_head(fn: Function, x: Value, head_dim: int) -> tuple[list[Value], Value]:
    """Codes, int32 in vectors of 16, of ``float32 [head_dim]``, and the head's scale."""
    vectors = [fn.load(vec(F32, LANES), x, 4 * d, align=4) for d in range(0, head_dim, LANES)]
    largest = vectors[0].abs()
    for vector in vectors[1:]:
        largest = largest.maximum(vector.abs())
    amax = largest.max()
    counts = amax.compare(">=", TINY)
    inverse = counts.select(fn.const(F32, 127.0) / amax, 0.0).splat(LANES)
    scale = counts.select(amax / 127.0, 0.0)
    return [(vector * inverse).rint().to_int(I32) for vector in vectors], scale


def reference(x: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The meaning over the last axis: codes before they are rounded, and scales."""
    amax = np.abs(x.astype(np.float64)).max(axis=-1)
    scale = np.where(amax < TINY, 0.0, amax / 127)
    return x / np.where(scale == 0, np.inf, scale)[..., None], scale
