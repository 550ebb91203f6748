"""Root-mean-square norm of one row: what the norm kernels share.

``y = x * (1 / sqrt(mean(x * x) + epsilon)) * weight``, in float32, squares summed in up to four times 16 lanes, then
these together, then by halving. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ryzc.codegen.vector import F32, Function, Value, vec

LANES = 16
ROW = vec(F32, LANES)


def factor(fn: Function, x: Value, columns: int, epsilon: float) -> Value:
    """``1 / sqrt(mean(x * x) + epsilon)`` of the ``columns`` floats at ``x``, a scalar."""
    chains = max(n for n in (4, 2, 1) if columns % (n * LANES) == 0)  # independent sums hide the latency
    with fn.loop(0, columns, chains * LANES, [fn.const(ROW, 0.0)] * chains) as squares:
        v = [fn.load(ROW, x, squares.index << 2, 4 * LANES * i, align=4) for i in range(chains)]
        squares.values = [fn.fma(a, a, total) for a, total in zip(v, squares.values, strict=True)]
    total = squares.results[0]
    for other in squares.results[1:]:
        total = total + other
    mean = total.sum() / float(columns)
    return fn.const(F32, 1.0) / (mean + epsilon).sqrt()


def normed(fn: Function, x: Value, weight: Value, at: Value, scale: Value) -> Value:
    """Sixteen normed elements from byte offset ``at`` on."""
    return fn.load(ROW, x, at, align=4) * scale.splat(LANES) * fn.load(ROW, weight, at, align=4)


def reference(x: npt.NDArray[np.float32], weight: npt.NDArray[np.float32], epsilon: float) -> npt.NDArray[np.float64]:
    """The meaning, ``[T, K]`` in float64."""
    wide = x.astype(np.float64)
    y: npt.NDArray[np.float64] = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + epsilon) * weight
    return y
