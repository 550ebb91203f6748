"""The Hadamard transform of a head: what is large in one element becomes small in all of them.

``y[i] = sum over j of (-1) ** popcount(i & j) * x[j] / sqrt(n)`` within blocks of ``n``, the largest power of
two that divides the head. It is orthogonal and its own inverse: products of two transformed heads are those
of the heads, while a head without outliers loses far less in 8 bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ryzc.codegen.vector import F32, Function, Value, vec

LANES = 16


def block(head_dim: int) -> int:
    """Elements that are transformed together."""
    return head_dim & -head_dim


def hadamard(fn: Function, x: Value, head_dim: int) -> None:
    """Transform ``float32 [head_dim]`` in place; ``head_dim`` is a multiple of 16."""
    kind, size = vec(F32, LANES), block(head_dim)
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


def reference(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The meaning, over the last axis."""
    size = block(x.shape[-1])
    index = np.arange(size)
    odd = np.vectorize(lambda i: i.bit_count() % 2)(index[:, None] & index)
    parts = x.astype(np.float64).reshape(*x.shape[:-1], -1, size)
    y: npt.NDArray[np.float64] = (parts @ ((1 - 2.0 * odd) / np.sqrt(size))).reshape(x.shape)
    return y
