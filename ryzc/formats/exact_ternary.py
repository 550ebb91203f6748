"""Matrices of other formats that are ternary as they stand, and their way into the format ``ternary``.

A row is ternary where all its weights are ``-a``, 0 or ``a`` for one ``a``: so are rows of TQ1_0 and TQ2_0 whose blocks
share a scale, and floats that a converter has rounded. Nothing is rounded here. Work goes by chunks of rows, so that it
takes little memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ryzc import formats
from ryzc.formats.weight_format import F32, U8, AffineFormat, FloatFormat, TernaryFormat

_CHUNK = 1 << 22
"""Elements taken apart at a time."""
_TRITS = ("tq1_0", "tq2_0")


def row_scales(format_: str, stored: U8) -> F32 | None:
    """``a`` of each row: ``float32 [N]`` of stored ``uint8 [N, row_bytes]``; ``None`` where a row has no such number.

    Rows of zeros have what the other rows share, or 0 where these differ: equal weights shall be equal bytes in
    whatever format they come.
    """
    fmt = formats.get(format_)
    if format_ not in _TRITS and not isinstance(fmt, FloatFormat):
        return None
    scales = np.empty(len(stored), np.float32)
    for rows in _chunks(fmt, stored):
        found = _of_trits(fmt, stored[rows]) if isinstance(fmt, AffineFormat) else _of_floats(fmt.decode(stored[rows]))
        if found is None:
            return None
        scales[rows] = found
    different = np.unique(scales[scales != 0])
    return np.full_like(scales, different[0]) if len(different) == 1 else scales


def convert(format_: str, stored: U8, scales: F32) -> U8:
    """Stored rows of ``format_`` as stored rows of ``ternary``, of the same meaning.

    Args:
        scales: what :func:`row_scales` gave.
    """
    fmt, ternary = formats.get(format_), formats.get("ternary")
    assert isinstance(ternary, TernaryFormat)
    k = fmt.columns(stored.shape[1])
    result = np.empty((len(stored), ternary.row_bytes(k)), np.uint8)
    for rows in _chunks(fmt, stored):
        if isinstance(fmt, AffineFormat):
            codes = fmt.parse(stored[rows])
            trits = codes.q.view(np.int8) - np.int8(1)
            trits *= np.repeat(codes.d != 0, fmt.block, axis=1)
        else:
            trits = np.sign(fmt.decode(stored[rows])).astype(np.int8)
        result[rows] = ternary.unparse(trits, scales[rows])
    return result


def _chunks(fmt: formats.WeightFormat, stored: U8) -> Iterator[slice]:
    step = max(1, _CHUNK // fmt.columns(stored.shape[1]))
    return (slice(start, start + step) for start in range(0, len(stored), step))


def _of_trits(fmt: AffineFormat, stored: U8) -> F32 | None:
    """By the blocks' scales; blocks whose scale is 0 hold zeros, whatever their codes."""
    codes = fmt.parse(stored)
    d = codes.d.astype(np.float32)
    scales = np.take_along_axis(d, np.abs(d).argmax(axis=1, keepdims=True), axis=1)
    if not np.isfinite(d).all() or not ((d == scales) | (d == 0)).all() or (codes.q > 2).any():
        return None
    return scales[:, 0]


def _of_floats(weights: F32) -> F32 | None:
    size = np.abs(weights)
    scales: F32 = size.max(axis=1, keepdims=True)
    if not np.isfinite(scales).all() or not ((size == scales) | (size == 0)).all():
        return None
    return scales[:, 0]
