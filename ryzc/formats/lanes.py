"""The packed layout that kernels read: rows in vector lanes, one sequential stream of bytes.

A *tile* is 32 rows. Element ``[row, k]`` of every format sits in the 32-bit lane ``row % 32``, so
a kernel computes 32 dot products side by side and never sums across lanes. One layout serves every
vector width: a 512-bit register holds 16 of the lanes, a 256-bit one 8.

An affine tile is a run of blocks, each

    d        32 x f16
    m        32 x f16, where the format has minima
    factors  s and t packed into 32-bit words, ``[words][32]``, where the format has sub-scales
    groups   block / 32 times: for each bit plane of width b, ``[b vectors][32 lanes][4 bytes]``

Byte ``i`` of a lane's word belongs to element ``4 * j + i`` of the 32, where operand ``j`` of a
plane of width ``b`` is vector ``j % b`` shifted right by ``b * (j // b)``.

A float tile is ``[K][32 rows]`` of its elements. Rows past ``N`` in the last tile are those whose stored
bytes are all zero, and so is their meaning.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ryzc.formats.weight_format import U8, AffineFormat, Codes, FloatFormat, WeightFormat

TILE = 32
"""Rows of a tile."""
STEP = 32
"""Elements of K that one group of operands covers."""
OPERANDS = STEP // 4
"""Operands (four bytes a lane) in a step."""
_CHUNK = 1 << 18
"""Elements that are packed at a time."""


def factor_words(fmt: AffineFormat) -> int:
    """32-bit words a lane that hold the sub-scales of one block."""
    groups = fmt.block // fmt.group
    return -(-groups * (fmt.scale_bits + fmt.min_bits) // 32)


def block_bytes(fmt: AffineFormat) -> int:
    """Bytes of one block of a tile."""
    halves = 1 + (fmt.min_sign != 0)
    return TILE * (2 * halves + 4 * factor_words(fmt) + fmt.block // 8 * sum(fmt.planes))


def tile_bytes(fmt: WeightFormat, k: int) -> int:
    """Bytes of a tile of ``k`` columns."""
    if isinstance(fmt, AffineFormat):
        return k // fmt.block * block_bytes(fmt)
    return TILE * k * fmt.block_bytes


def pack(fmt: WeightFormat, stored: U8) -> U8:
    """Stored rows ``uint8 [N, row_bytes]`` to packed tiles ``uint8 [ceil(N/32), tile_bytes]``."""
    n = stored.shape[0]
    k = fmt.columns(stored.shape[1])
    packed = np.empty((-(-n // TILE), tile_bytes(fmt, k)), np.uint8)
    pack_some = _pack_floats if isinstance(fmt, FloatFormat) else _pack_affine
    for tiles in _chunks(len(packed), k):
        rows = stored[tiles.start * TILE : tiles.stop * TILE]
        pad = -len(rows) % TILE
        if pad:
            rows = np.concatenate([rows, np.zeros((pad, rows.shape[1]), np.uint8)])
        packed[tiles] = pack_some(fmt, rows)
    return packed


def unpack(fmt: WeightFormat, packed: U8, n: int) -> U8:
    """The exact inverse of :func:`pack` for the first ``n`` rows."""
    block, size = (fmt.block, block_bytes(fmt)) if isinstance(fmt, AffineFormat) else (1, TILE * fmt.block_bytes)
    k = packed.shape[1] // size * block
    stored = np.empty((n, fmt.row_bytes(k)), np.uint8)
    unpack_some = _unpack_floats if isinstance(fmt, FloatFormat) else _unpack_affine
    for tiles in _chunks(len(packed), k):
        rows = stored[tiles.start * TILE : tiles.stop * TILE]
        rows[:] = unpack_some(fmt, packed[tiles])[: len(rows)]
    return stored


def _chunks(tiles: int, k: int) -> Iterator[slice]:
    """Ranges of tiles small enough that the temporary copies stay in cache."""
    step = max(1, _CHUNK // (TILE * k))
    return (slice(start, min(start + step, tiles)) for start in range(0, tiles, step))


def _pack_floats(fmt: WeightFormat, stored: U8) -> U8:
    cells = stored.reshape(-1, TILE, stored.shape[1] // fmt.block_bytes, fmt.block_bytes)
    return _words(cells, fmt.block_bytes).transpose(0, 2, 1).copy().view(np.uint8).reshape(len(cells), -1)


def _unpack_floats(fmt: WeightFormat, packed: U8) -> U8:
    cells = packed.reshape(len(packed), -1, TILE, fmt.block_bytes)
    return _words(cells, fmt.block_bytes).transpose(0, 2, 1).copy().view(np.uint8).reshape(len(packed) * TILE, -1)


def _words(cells: U8, size: int) -> npt.NDArray[np.unsignedinteger]:
    """``[..., size]`` bytes as one number each, which transposes faster than bytes do."""
    words: npt.NDArray[np.unsignedinteger] = np.ascontiguousarray(cells).view(f"u{size}")
    return words[..., 0]


def _pack_affine(fmt: WeightFormat, stored: U8) -> U8:
    assert isinstance(fmt, AffineFormat)
    codes = fmt.parse(stored)
    tiles, blocks = len(stored) // TILE, codes.q.shape[1] // fmt.block
    parts = [_halves(codes.d, tiles)]
    if codes.m is not None:
        parts.append(_halves(codes.m, tiles))
    if factor_words(fmt):
        words = _pack_factors(fmt, codes).reshape(tiles, TILE, blocks, -1)
        parts.append(words.transpose(0, 2, 3, 1).copy().view(np.uint8).reshape(tiles, blocks, -1))
    parts.append(_pack_planes(fmt, codes.q.reshape(tiles, TILE, blocks, fmt.block)))
    return np.concatenate(parts, axis=2).reshape(tiles, -1)


def _unpack_affine(fmt: WeightFormat, packed: U8) -> U8:
    assert isinstance(fmt, AffineFormat)
    tiles = len(packed)
    blocks = packed.reshape(tiles, -1, block_bytes(fmt))
    d, rest = _unhalves(blocks)
    m = None
    if fmt.min_sign:
        m, rest = _unhalves(rest)
    s = t = None
    count = factor_words(fmt)
    if count:
        words = np.ascontiguousarray(rest[:, :, : 4 * TILE * count]).view(np.uint32)
        rest = rest[:, :, 4 * TILE * count :]
        words = words.reshape(tiles, -1, count, TILE).transpose(0, 3, 1, 2).reshape(tiles * TILE, -1, count)
        s, t = _unpack_factors(fmt, words)
    return fmt.unparse(Codes(q=_unpack_planes(fmt, rest), d=d, s=s, m=m, t=t))


def _halves(values: npt.NDArray[np.float16], tiles: int) -> U8:
    lanes = values.reshape(tiles, TILE, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(lanes).view(np.uint8).reshape(tiles, -1, 2 * TILE)


def _unhalves(blocks: U8) -> tuple[npt.NDArray[np.float16], U8]:
    lanes = np.ascontiguousarray(blocks[:, :, : 2 * TILE]).view(np.float16)
    return np.ascontiguousarray(lanes.transpose(0, 2, 1)).reshape(-1, blocks.shape[1]), blocks[:, :, 2 * TILE :]


def _pack_planes(fmt: AffineFormat, q: U8) -> U8:
    """Codes ``[tiles, 32, blocks, block]`` to ``[tiles, blocks, bytes]``; four codes are handled as one word."""
    tiles, _, blocks, _ = q.shape
    words = np.ascontiguousarray(q).view(np.uint32).reshape(tiles, TILE, -1, OPERANDS)
    words = words.transpose(0, 2, 3, 1).copy()
    if fmt.planes == (8,):
        return words.view(np.uint8).reshape(tiles, blocks, -1)
    vectors = np.zeros((tiles, words.shape[1], sum(fmt.planes), TILE), np.uint32)
    for low, width in _planes(fmt):
        plane = words >> np.uint32(low) & _each_byte(width)
        for shift, operands in _turns(width):
            vectors[:, :, low : low + width] |= plane[:, :, operands] << shift
    return vectors.view(np.uint8).reshape(tiles, blocks, -1)


def _unpack_planes(fmt: AffineFormat, packed: U8) -> U8:
    """The inverse of :func:`_pack_planes`, as ``[tiles * 32, K]``."""
    tiles = packed.shape[0]
    vectors = np.ascontiguousarray(packed).view(np.uint32).reshape(tiles, -1, sum(fmt.planes), TILE)
    words = np.zeros((tiles, vectors.shape[1], OPERANDS, TILE), np.uint32)
    for low, width in _planes(fmt):
        for shift, operands in _turns(width):
            words[:, :, operands] |= (vectors[:, :, low : low + width] >> shift & _each_byte(width)) << np.uint32(low)
    return words.transpose(0, 3, 1, 2).copy().view(np.uint8).reshape(tiles * TILE, -1)


def _planes(fmt: AffineFormat) -> Iterator[tuple[int, int]]:
    """The planes' lowest bit of a code, which is also their first vector, and their width."""
    low = 0
    for width in fmt.planes:
        yield low, width
        low += width


def _turns(width: int) -> Iterator[tuple[np.uint32, slice]]:
    """Shifts of a plane's vectors, and the operands that they bring to the lowest bits."""
    return ((np.uint32(first), slice(first, first + width)) for first in range(0, OPERANDS, width))


def _each_byte(width: int) -> np.uint32:
    """A mask of the low ``width`` bits of each byte of a word."""
    return np.uint32(((1 << width) - 1) * 0x01010101)


def _pack_factors(fmt: AffineFormat, codes: Codes) -> npt.NDArray[np.uint32]:
    """Sub-scales of a block, ``s`` first and then ``t``, as ``uint32 [N, blocks, words]``.

    Widths 4 and 8 fill words from the low bits. Width 6 puts values ``5 i .. 5 i + 4`` into the low
    30 bits of word ``i``; the sixteenth value's bits lie in the words' top two bits, low bits first.
    """
    assert codes.s is not None
    values = _by_block(fmt, codes.s.astype(np.int16) + fmt.scale_zero)
    if codes.t is not None:
        values = np.concatenate([values, _by_block(fmt, codes.t)], axis=2)
    words = np.zeros((*values.shape[:2], factor_words(fmt)), np.uint32)
    unsigned = (values & (1 << fmt.scale_bits) - 1).astype(np.uint32)
    for i in range(unsigned.shape[2]):
        for word, shift, low, width in factor_pieces(fmt, i):
            words[:, :, word] |= (unsigned[:, :, i] >> np.uint32(low) & np.uint32((1 << width) - 1)) << np.uint32(shift)
    return words


def _unpack_factors(
    fmt: AffineFormat, words: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8] | None]:
    groups = fmt.block // fmt.group
    total = groups * (2 if fmt.min_bits else 1)
    values = np.zeros((*words.shape[:2], total), np.uint32)
    for i in range(total):
        for word, shift, low, width in factor_pieces(fmt, i):
            values[:, :, i] |= (words[:, :, word] >> np.uint32(shift) & np.uint32((1 << width) - 1)) << np.uint32(low)
    signed = values.astype(np.uint8).view(np.int8) if fmt.scale_bits == 8 else values.astype(np.int8)
    s = (signed[:, :, :groups] - np.int8(fmt.scale_zero)).reshape(words.shape[0], -1)
    t = signed[:, :, groups:].reshape(words.shape[0], -1) if fmt.min_bits else None
    return s, t


def factor_pieces(fmt: AffineFormat, i: int) -> list[tuple[int, int, int, int]]:
    """Where sub-scale value ``i`` of a block lies: pieces of ``(word, shift, low bit, width)``."""
    if fmt.scale_bits != 6:
        per_word = 32 // fmt.scale_bits
        return [(i // per_word, fmt.scale_bits * (i % per_word), 0, fmt.scale_bits)]
    if i < 15:
        return [(i // 5, 6 * (i % 5), 0, 6)]
    return [(word, 30, 2 * word, 2) for word in range(3)]


def _by_block(fmt: AffineFormat, values: npt.NDArray[np.integer]) -> npt.NDArray[np.int16]:
    return values.astype(np.int16).reshape(values.shape[0], -1, fmt.block // fmt.group)
