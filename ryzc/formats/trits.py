"""The packed layouts of ternary weights that kernels read.

A tile starts with the scales of its rows, float32. Words follow, each of which holds some elements of K of a row, as
codes ``t + 1`` or as trits ``t``:

* ``planes``, 2 bits a weight, tiles of 32 rows as in :mod:`ryzc.formats.lanes`: ``[words][32 lanes][4 bytes]``, 16
  elements a word, element ``4 p + b`` in bits ``2 p`` and ``2 p + 1`` of byte ``b``, as codes. Masked in place, plane
  ``p`` is a dot product's operand times ``4 ** p``.
* ``dense``, 1.6 bits a weight: as ``planes``, but 20 elements a word, byte ``b`` is the number whose digit ``p`` to
  base 3, lowest first, is the code of element ``4 p + b``.
* ``lookup``, 1.6 bits a weight, tiles of 64 rows: ``[words][4 bytes][64 lanes]``, where byte ``b`` is the sum of
  ``t * 3 ** p`` over the same elements as in ``dense``, -121 to 121, as magnitude with the sign in bit 7. So a register
  holds a byte of 64 rows, all of which are looked up in one table, and a table needs the magnitudes only.

Elements past K are zeros. Rows past ``N`` in the last tile have scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ryzc.formats.lanes import TILE
from ryzc.formats.weight_format import F32, I8, U8, TernaryFormat

WORD: Final = 4
"""Bytes of a word."""


@dataclass(frozen=True)
class Layout:
    """A layout of ternary weights.

    Attributes:
        name: as above.
        rows: of a tile.
        base, digits: of the numbers that bytes hold.
        for_tables: whether bytes are magnitudes with signs, and lie beside the same byte of the other rows, not beside
            the other bytes of their word.
    """

    name: str
    rows: int
    base: int
    digits: int
    for_tables: bool = False

    @property
    def elements(self) -> int:
        """Elements of K in a word."""
        return WORD * self.digits

    @property
    def scale_bytes(self) -> int:
        """Bytes before the words of a tile."""
        return 4 * self.rows

    @property
    def word_bytes(self) -> int:
        """Bytes of a word of all rows."""
        return WORD * self.rows

    def words(self, k: int) -> int:
        """Words of a row of ``k`` elements."""
        return -(-k // self.elements)

    def tile_bytes(self, k: int) -> int:
        """Bytes of a tile of ``k`` columns."""
        return self.scale_bytes + self.words(k) * self.word_bytes

    def tiles(self, n: int) -> int:
        """Tiles of ``n`` rows."""
        return -(-n // self.rows)

    def bytes_of(self, trits: I8) -> U8:
        """``int8 [..., digits, 4]`` to words ``uint8 [..., 4]``."""
        powers = (self.base ** np.arange(self.digits)).astype(np.uint8)[:, None]
        if self.for_tables:
            numbers: I8 = (trits * powers.view(np.int8)).sum(axis=-2, dtype=np.int8)
            signs: U8 = numbers.view(np.uint8) & np.uint8(128)
            return np.abs(numbers).view(np.uint8) | signs
        numbers_: U8 = ((trits + np.int8(1)).view(np.uint8) * powers).sum(axis=-2, dtype=np.uint8)
        return numbers_

    def trits_of(self, words: U8) -> I8:
        """The exact inverse of :meth:`bytes_of`."""
        numbers = words.astype(np.int16)
        if self.for_tables:
            magnitudes = numbers & 127
            numbers = np.where(numbers > 127, -magnitudes, magnitudes) + np.int16(self.base**self.digits // 2)
        powers = (self.base ** np.arange(self.digits)).astype(np.int16)[:, None]
        return (numbers[..., None, :] // powers % np.int16(self.base)).astype(np.int8) - np.int8(1)


LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        Layout("planes", TILE, 4, 4),
        Layout("dense", TILE, 3, 5),
        Layout("lookup", 2 * TILE, 3, 5, for_tables=True),
    )
}
_CHUNK = 1 << 18
USUAL: Final = "planes"
"""The layout that every instruction set reads, which weights take where nobody asks or measures."""


def pack(fmt: TernaryFormat, stored: U8, layout: str) -> U8:
    """Stored rows ``uint8 [N, row_bytes]`` to packed tiles ``uint8 [tiles, tile_bytes]`` of a layout."""
    to, n, k = LAYOUTS[layout], len(stored), fmt.columns(stored.shape[1])
    packed = np.empty((to.tiles(n), to.tile_bytes(k)), np.uint8)
    step = max(1, _CHUNK // (to.rows * k))
    for start in range(0, len(packed), step):
        some = packed[start : start + step]
        rows = stored[start * to.rows : (start + len(some)) * to.rows]
        trits = np.zeros((len(some) * to.rows, to.words(k) * to.elements), np.int8)
        scales = np.zeros(len(trits), np.float32)
        trits[: len(rows), :k], scales[: len(rows)] = fmt.parse(rows)
        words = to.bytes_of(trits.reshape(len(some), to.rows, -1, to.digits, WORD))
        some[:, : to.scale_bytes] = scales.view(np.uint8).reshape(len(some), -1)
        order = (0, 2, 3, 1) if to.for_tables else (0, 2, 1, 3)
        some[:, to.scale_bytes :] = words.transpose(order).reshape(len(some), -1)
    return packed


def unpack(fmt: TernaryFormat, packed: U8, n: int, k: int, layout: str) -> U8:
    """The exact inverse of :func:`pack` for the first ``n`` rows of ``k`` columns."""
    of = LAYOUTS[layout]
    scales: F32 = np.ascontiguousarray(packed[:, : of.scale_bytes]).view(np.float32).reshape(-1)[:n]
    tiles = packed[:, of.scale_bytes :]
    if of.for_tables:
        words = tiles.reshape(len(packed), -1, WORD, of.rows).transpose(0, 3, 1, 2)
    else:
        words = tiles.reshape(len(packed), -1, of.rows, WORD).transpose(0, 2, 1, 3)
    trits = of.trits_of(words.reshape(len(packed) * of.rows, -1, WORD)[:n])
    return fmt.unparse(np.ascontiguousarray(trits.reshape(n, -1)[:, :k]), scales)
