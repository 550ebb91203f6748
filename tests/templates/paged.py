"""A paged KV cache for tests: one layer of several, its pages scattered, everything unused poisoned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ryzc.kv_formats import GROUP, KV_FORMATS, SCALE_BIAS, SCALE_SHIFT, block, key_bytes, value_bytes

Array = npt.NDArray[Any]
PAGE_TOKENS = 32
LAYERS, LAYER = 3, 1
"""Layers in a page, and the one that tests use."""
SLOTS = np.arange(PAGE_TOKENS)[:, None]


class Cache:
    """``sequences`` of ``context`` tokens over a pool with two spare pages, all NaN at first.

    Attributes:
        pool: the bytes of all pages, ``uint8 [pages, page_bytes]``.
        table: ``int32 [sequences, pages of one + 1]``; the last column is no page at all.
    """

    page_tokens = PAGE_TOKENS

    def __init__(
        self, rng: np.random.Generator, sequences: int, context: int, kv_heads: int, head_dim: int, dtype: str
    ) -> None:
        self.sequences, self.context, self.kv_heads, self.head_dim = sequences, context, kv_heads, head_dim
        self.numpy_dtype = np.dtype({"f16": np.float16, "f32": np.float32}.get(dtype, np.uint8))
        per_sequence = -(-context // PAGE_TOKENS)
        self.key_region, self.value_region = (PAGE_TOKENS * f(dtype, head_dim) for f in (key_bytes, value_bytes))
        self.layer_bytes = kv_heads * (self.key_region + self.value_region)
        self.page_bytes = -(-LAYERS * self.layer_bytes // 64) * 64
        pages = sequences * per_sequence + 2
        self.pool = np.full((pages, self.page_bytes), 0xFF, np.uint8)
        self.table = np.full((sequences, per_sequence + 1), -(1 << 30), np.int32)
        self.table[:, :-1] = rng.permutation(pages)[: sequences * per_sequence].reshape(sequences, -1)

    def layer(self) -> Array:
        """What the kernel gets: the pool from this layer's place in the first page on."""
        return self.pool.reshape(-1)[LAYER * self.layer_bytes :]

    def _views(self, pool: Array) -> tuple[Array, Array]:
        """Keys ``[pages, Hk, D, slots]`` and values ``[pages, Hk, slots, D]`` of the layer."""
        layer = pool[:, LAYER * self.layer_bytes : (LAYER + 1) * self.layer_bytes].view(self.numpy_dtype)
        heads = layer.reshape(len(pool), self.kv_heads, 2, -1)
        shape = (len(pool), self.kv_heads)
        keys, values = heads[:, :, 0], heads[:, :, 1]
        return (
            keys.reshape(*shape, self.head_dim, PAGE_TOKENS),
            values.reshape(*shape, PAGE_TOKENS, self.head_dim),
        )

    def _place(self, sequences: Array, positions: Array) -> tuple[Array, Array]:
        return self.table[sequences, positions // PAGE_TOKENS], positions % PAGE_TOKENS

    def read_from(self, pool: Array, sequences: Array, positions: Array) -> tuple[Array, Array]:
        """Keys and values ``[T, Hk, D]`` of some tokens in a copy of the pool."""
        keys, values = self._views(pool)
        page, slot = self._place(sequences, positions)
        return keys[page, :, :, slot], values[page, :, slot, :]

    def read(self, sequences: Array, positions: Array) -> tuple[Array, Array]:
        """Keys and values ``[T, Hk, D]`` of some tokens."""
        return self.read_from(self.pool, sequences, positions)

    def write(self, sequences: Array, positions: Array, k: Array, v: Array) -> None:
        """Store keys and values ``[T, Hk, D]``."""
        keys, values = self._views(self.pool)
        page, slot = self._place(sequences, positions)
        keys[page, :, :, slot] = k
        values[page, :, slot, :] = v

    def restore(self, pool: Array, sequences: Array, positions: Array) -> None:
        """Bring some tokens' slots back to what they are in a copy of the pool, byte by byte."""
        page, slot = self._place(sequences, positions)
        (keys, values), (old_keys, old_values) = self._views(self.pool), self._views(pool)
        keys[page, :, :, slot] = old_keys[page, :, :, slot]
        values[page, :, slot, :] = old_values[page, :, slot, :]

    def poison(self, kept: Array, filler: int) -> None:
        """Fill every byte that belongs to none of the tokens ``[sequence, position]`` of ``kept``."""
        sequences, positions = kept.T
        k, v = (a.copy() for a in self.read(sequences, positions))
        self.pool[...] = filler
        self.write(sequences, positions, k, v)


@dataclass(frozen=True)
class Codes:
    """Keys or values of some tokens: element = ``signed * scale``, where one scale is for ``D / blocks`` elements.

    Attributes:
        signed: ``float64 [T, Hk, D]``, whole numbers.
        scale: ``float64 [T, Hk, blocks]``.
    """

    signed: Array
    scale: Array

    @property
    def step(self) -> Array:
        """The scale of each element, ``[T, Hk, D]``."""
        return np.repeat(self.scale, self.signed.shape[2] // self.scale.shape[2], axis=2)

    @property
    def floats(self) -> Array:
        """What the codes stand for."""
        found: Array = self.signed * self.step
        return found


class CodeCache(Cache):
    """A cache of codes; read and written as the floats that they stand for.

    What belongs to a token is gathered from where the layout has it: ``[bytes]``, first a key's codes, scales and
    zero points, then a value's.
    """

    def __init__(
        self, rng: np.random.Generator, sequences: int, context: int, kv_heads: int, head_dim: int, dtype: str
    ) -> None:
        super().__init__(rng, sequences, context, kv_heads, head_dim, dtype)
        format_ = KV_FORMATS[dtype]
        self.bits = format_.key_bits, format_.value_bits
        wide = block(head_dim) if format_.transformed else head_dim, head_dim
        self.blocks = [head_dim // (GROUP if b == 4 else size) for b, size in zip(self.bits, wide, strict=True)]
        self.offsets = 128 if self.bits[0] == 8 else 0, 0
        keys, values = self._key_places(), self._value_places()
        self.places = np.concatenate([keys, self.key_region + values], axis=1)
        self.key_size = keys.shape[1]
        assert np.array_equal(np.sort(self.places.reshape(-1)), np.arange(self.key_region + self.value_region))

    def _key_places(self) -> Array:
        """Where a slot's bytes lie in the region of a head's keys, ``[slots, bytes of a key]``."""
        bits, blocks = self.bits[0], self.blocks[0]
        row, rows, slot = np.arange(self.head_dim * bits // 8), self.head_dim * bits // 8, SLOTS
        codes = (row // 4 * PAGE_TOKENS + slot) * 4 + row % 4
        if bits >= 8:
            return np.concatenate([codes, self._wide_scales(rows, blocks)], axis=1)
        scales = (rows + np.arange(2 * blocks)) * PAGE_TOKENS + slot  # and zero points
        return np.concatenate([codes, scales], axis=1)

    def _value_places(self) -> Array:
        """The same of the region of a head's values."""
        bits, blocks = self.bits[1], self.blocks[1]
        rows, slot = self.head_dim * bits // 8, SLOTS
        if bits == 16:
            row = np.arange(rows)
            codes = (slot // 2 * self.head_dim + row // 2) * 4 + slot % 2 * 2 + row % 2
            return np.concatenate([codes, self._wide_scales(rows, blocks)], axis=1)
        codes = (slot // 4 * rows + np.arange(rows)) * 4 + slot % 4
        if bits == 8:
            return np.concatenate([codes, self._wide_scales(rows, blocks)], axis=1)
        scales = (rows + np.arange(blocks)) * PAGE_TOKENS + slot
        zeros = (rows + blocks) * PAGE_TOKENS + (slot // 4 * blocks + np.arange(blocks)) * 4 + slot % 4
        return np.concatenate([codes, scales, zeros], axis=1)

    def _wide_scales(self, rows: int, blocks: int) -> Array:
        byte = np.arange(2 * blocks)
        place: Array = rows * PAGE_TOKENS + 2 * (byte // 2 * PAGE_TOKENS + SLOTS) + byte % 2
        return place

    def _cells(self, sequences: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Indices into a pool's heads of the bytes of some tokens, ``[T, Hk, bytes]``."""
        page, slot = self._place(sequences, positions)
        return page[:, None, None], np.arange(self.kv_heads)[:, None], self.places[slot][:, None]

    def _heads(self, pool: Array) -> Array:
        layer: Array = pool[:, LAYER * self.layer_bytes : (LAYER + 1) * self.layer_bytes]
        return layer.reshape(len(pool), self.kv_heads, -1)

    def codes_from(self, pool: Array, sequences: Array, positions: Array) -> tuple[Codes, Codes]:
        """Keys and values of some tokens."""
        raw = self._heads(pool)[self._cells(sequences, positions)]
        keys, values = raw[..., : self.key_size], raw[..., self.key_size :]
        key_offset, value_offset = self.offsets
        return _decoded(keys, self.bits[0], self.head_dim, key_offset), _decoded(
            values, self.bits[1], self.head_dim, value_offset
        )

    def read_from(self, pool: Array, sequences: Array, positions: Array) -> tuple[Array, Array]:
        k, v = self.codes_from(pool, sequences, positions)
        return k.floats, v.floats

    def write(self, sequences: Array, positions: Array, k: Array, v: Array) -> None:
        """Store codes near by; what they were is not read back to the bit."""
        raw = [
            _encoded(x, bits, blocks, offset)
            for x, bits, blocks, offset in zip((k, v), self.bits, self.blocks, self.offsets, strict=True)
        ]
        self._heads(self.pool)[self._cells(sequences, positions)] = np.concatenate(raw, axis=2)

    def restore(self, pool: Array, sequences: Array, positions: Array) -> None:
        cells = self._cells(sequences, positions)
        self._heads(self.pool)[cells] = self._heads(pool)[cells]

    def poison(self, kept: Array, filler: int) -> None:
        before = self.pool.copy()
        self.pool[...] = filler
        self.restore(before, *kept.T)


def _decoded(raw: Array, bits: int, head_dim: int, offset: int) -> Codes:
    rows = head_dim * bits // 8
    codes, rest = raw[..., :rows], np.ascontiguousarray(raw[..., rows:])
    if bits >= 8:
        signed = codes.astype(np.int64) - offset if offset else codes.view(np.int8)
        if bits == 16:
            signed = np.ascontiguousarray(codes).view(np.int16)
        scale = (rest.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return Codes(signed.astype(np.float64), scale.astype(np.float64))
    blocks = head_dim // GROUP
    # Bytes hold element i of 32 in the low half, i + 16 in the high half.
    pairs = codes.reshape(*codes.shape[:-1], -1, GROUP)
    unpacked = np.stack([pairs & 15, pairs >> 4], axis=-2).reshape(*codes.shape[:-1], blocks, GROUP).astype(np.float64)
    scale = ((rest[..., :blocks].astype(np.uint32) << SCALE_SHIFT) + SCALE_BIAS).astype(np.uint32).view(np.float32)
    signed = 2 * unpacked - rest[..., blocks:, None].astype(np.float64)
    return Codes(signed.reshape(*codes.shape[:-1], head_dim), scale.astype(np.float64))


def _encoded(x: Array, bits: int, blocks: int, offset: int) -> Array:
    """Bytes of keys or values ``[T, Hk, D]``: scales that are large enough, and the nearest codes."""
    parts = x.reshape(*x.shape[:-1], blocks, -1)
    if bits == 16:
        scale = (np.linalg.norm(parts, axis=-1) / 32300).astype(np.float32).view(np.uint32) >> 16
        codes = np.rint(parts / (scale << 16).view(np.float32)[..., None]).reshape(x.shape).astype(np.int16)
        return np.concatenate([codes.view(np.uint8), scale.astype(np.uint16).view(np.uint8)], axis=-1)
    if bits == 8:
        scale = (np.abs(parts).max(axis=-1) / 126).astype(np.float32).view(np.uint32) >> 16
        step = (scale << 16).view(np.float32)
        codes = np.rint(parts / np.maximum(step, 1e-30)[..., None]).clip(-127, 127) + offset
        wide = scale.astype(np.uint16).view(np.uint8)
        return np.concatenate([codes.reshape(x.shape).astype(np.int16).astype(np.uint8), wide], axis=-1)
    high, low = parts.max(axis=-1).clip(0), parts.min(axis=-1).clip(None, 0)
    byte = (((high - low) / 29).astype(np.float32).view(np.int32) - SCALE_BIAS >> SCALE_SHIFT).clip(-1, 254) + 1
    step = ((byte << SCALE_SHIFT) + SCALE_BIAS).astype(np.int32).view(np.float32)
    zero = np.rint(15 - (high + low) / step / 2).clip(0, 30)
    codes = np.rint((parts / step[..., None] + zero[..., None]) / 2).clip(0, 15).astype(np.uint8)
    pairs = codes.reshape(*x.shape[:-1], -1, 2, GROUP)
    packed = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(*x.shape[:-1], -1)
    return np.concatenate([packed, byte.astype(np.uint8), zero.astype(np.uint8)], axis=-1)


def cache_of(
    rng: np.random.Generator, sequences: int, context: int, kv_heads: int, head_dim: int, dtype: str
) -> Cache | CodeCache:
    """A cache of any format."""
    make = CodeCache if KV_FORMATS[dtype].coded else Cache
    return make(rng, sequences, context, kv_heads, head_dim, dtype)
