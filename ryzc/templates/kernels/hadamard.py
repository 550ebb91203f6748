"""The Hadamard transform of a head: what is large in one element becomes small in all of them.

``y[i] = sum over j of (-1) ** popcount(i & j) * x[j] / sqrt(n)`` within blocks of ``n`` elements, a power of two.
It is orthogonal and its own inverse: products of two transformed heads are those of the heads, while a block without
outliers loses far less in few bits. Blocks are small, because what is large in a head then spoils its own block only:
over whole heads of 256 elements keys of 8 bits cost Gemma 3 four times as much.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ryzc.codegen.vector import F32, Function, Value, vec

LANES = 16


def hadamard(fn: Function, x: Value, head_dim: int, size: int) -> None:
    """Transform ``float32 [head_dim]`` in place, in blocks of ``size``, a multiple of 16 that divides ``head_dim``."""
    kind = vec(F32, LANES)
    vectors = [fn.load(kind, x, 4 * i, align=4) for i in range(0, head_dim, LANES)]
    apart = 1
    while apart < LANES:
        sign = fn.const(kind, [-1.0 if i & apart else 1.0 for i in range(LANES)])
        partner = [i ^ apart for i in range(LANES)]
        vectors = [fn.fma(v, sign, v.shuffle(partner)) for v in vectors]
        apart *= 2
    while apart < size:
        step = apart // LANES
        vectors = [vectors[i ^ step] - v if i & step else v + vectors[i ^ step] for i, v in enumerate(vectors)]
        apart *= 2
    for i, v in enumerate(vectors):
        fn.store(v * size**-0.5, x, 4 * LANES * i, align=4)


def reference(x: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float64]:
    """The meaning, over the last axis."""
    index = np.arange(size)
    odd = np.vectorize(lambda i: i.bit_count() % 2)(index[:, None] & index)
    parts = x.astype(np.float64).reshape(*x.shape[:-1], -1, size)
    y: npt.NDArray[np.float64] = (parts @ ((1 - 2.0 * odd) / np.sqrt(size))).reshape(x.shape)
    return y
