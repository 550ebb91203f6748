"""Gumbel noise from a counter, in numpy: a number for every (seed, position, id).

It is the meaning of :mod:`ryzc.templates.kernels.gumbel`, which says where it comes from.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

U32: TypeAlias = npt.NDArray[np.uint32]

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def key(seed: int, position: int) -> int:
    """The key of a row, 64 bits."""
    state = _mix64((seed + _GOLDEN) & _WORD)
    return _mix64((state + position * _GOLDEN) & _WORD)


def _mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MIX1) & _WORD
    x = ((x ^ (x >> 27)) * _MIX2) & _WORD
    return x ^ (x >> 31)


def bits(seed: int, position: int, ids: npt.NDArray[np.integer[Any]]) -> U32:
    """31 random bits for each id."""
    row = key(seed, position)
    x: U32 = ids.astype(np.uint32) ^ np.uint32(row & 0xFFFFFFFF)
    x = _mixed(x, 17) * np.uint32(0xED5AD4BB)
    x = _mixed(x, 11) * np.uint32(0xAC4C1B51) ^ np.uint32(row >> 32)
    x = _mixed(x, 15) * np.uint32(0x31848BAB)
    return np.right_shift(_mixed(x, 14), np.uint32(1))


def _mixed(x: U32, shift: int) -> U32:
    return x ^ np.right_shift(x, np.uint32(shift))


def uniform(seed: int, position: int, ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """A number between 0 and 1, exclusive, for each id."""
    return (bits(seed, position, ids).astype(np.float64) + 0.5) / 2.0**31


def gumbel(seed: int, position: int, ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """The noise of each id."""
    noise: npt.NDArray[np.float64] = -np.log(-np.log1p(-uniform(seed, position, ids)))
    return noise
