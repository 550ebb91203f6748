"""The packed layouts of ternary weights that kernels read; tiles of 32 rows as in :mod:`ryzc.formats.lanes`.

A tile starts with the 32 scales, float32. Then ``[words][32 lanes][4 bytes]``, where a word holds some elements
of K of its row, as codes ``t + 1``:

* ``planes``, 2 bits a weight: 16 elements a word, element ``4 p + b`` in bits ``2 p`` and ``2 p + 1`` of byte ``b``.
  Masked in place, plane ``p`` is a dot product's operand times ``4 ** p``.
* ``dense``, 1.6 bits a weight: 20 elements a word, byte ``b`` is the number whose digit ``p`` to base 3, lowest
  first, is element ``4 p + b``. Elements past K are zeros, as digits.

Rows past ``N`` in the last tile have scale 0.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ryzc.formats.lanes import TILE
from ryzc.formats.weight_format import F32, U8, TernaryFormat

LAYOUTS: Final = ("planes", "dense")
SCALE_BYTES: Final = 4 * TILE
WORD_BYTES: Final = 4 * TILE
ELEMENTS: Final = {"planes": 16, "dense": 20}
"""Elements of K in a word."""
_BASE: Final = {"planes": 4, "dense": 3}
_CHUNK = 1 << 18


def words(layout: str, k: int) -> int:
    """Words of a row of ``k`` elements."""
    return -(-k // ELEMENTS[layout])


def tile_bytes(layout: str, k: int) -> int:
    """Bytes of a tile of ``k`` columns."""
    return SCALE_BYTES + words(layout, k) * WORD_BYTES


def pack(fmt: TernaryFormat, stored: U8, layout: str) -> U8:
    """Stored rows ``uint8 [N, row_bytes]`` to packed tiles ``uint8 [ceil(N / 32), tile_bytes]``."""
    n, k = len(stored), fmt.columns(stored.shape[1])
    packed = np.empty((-(-n // TILE), tile_bytes(layout, k)), np.uint8)
    weights = (_BASE[layout] ** np.arange(ELEMENTS[layout] // 4)).astype(np.uint8)[:, None]
    step = max(1, _CHUNK // (TILE * k))
    for start in range(0, len(packed), step):
        some = packed[start : start + step]
        codes = np.zeros((len(some) * TILE, words(layout, k) * ELEMENTS[layout]), np.uint8)
        scales = np.zeros(len(codes), np.float32)
        rows = stored[start * TILE : (start + len(some)) * TILE]
        trits, scales[: len(rows)] = fmt.parse(rows)
        codes[: len(rows), :k] = trits + np.int8(1)
        bytes_ = (codes.reshape(len(codes), -1, len(weights), 4) * weights).sum(axis=2, dtype=np.uint8)
        lanes = bytes_.view(np.uint32)[..., 0].reshape(len(some), TILE, -1).transpose(0, 2, 1)
        some[:, :SCALE_BYTES] = scales.view(np.uint8).reshape(len(some), -1)
        some[:, SCALE_BYTES:] = np.ascontiguousarray(lanes).view(np.uint8).reshape(len(some), -1)
    return packed


def unpack(fmt: TernaryFormat, packed: U8, n: int, k: int, layout: str) -> U8:
    """The exact inverse of :func:`pack` for the first ``n`` rows of ``k`` columns."""
    scales: F32 = np.ascontiguousarray(packed[:, :SCALE_BYTES]).view(np.float32).reshape(-1)[:n]
    lanes: npt.NDArray[np.uint32] = np.ascontiguousarray(packed[:, SCALE_BYTES:]).view(np.uint32)
    rows = lanes.reshape(len(packed), -1, TILE).transpose(0, 2, 1).reshape(len(packed) * TILE, -1)[:n]
    bytes_ = np.ascontiguousarray(rows)[..., None].view(np.uint8)
    base = _BASE[layout]
    powers = (base ** np.arange(ELEMENTS[layout] // 4)).astype(np.uint8)[:, None]
    codes = (bytes_[:, :, None, :] // powers % np.uint8(base)).reshape(n, -1)[:, :k]
    return fmt.unparse(codes.astype(np.int8) - np.int8(1), scales)
