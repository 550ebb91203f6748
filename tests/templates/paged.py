"""A paged KV cache for tests: one layer of several, its pages scattered, everything unused poisoned."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ryzc.bundle.plan import kv_vector_bytes

Array = npt.NDArray[Any]
PAGE_TOKENS = 32
LAYERS, LAYER = 3, 1
"""Layers in a page, and the one that tests use."""


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
        self.numpy_dtype = np.dtype({"f16": np.float16, "f32": np.float32, "int8": np.int8}[dtype])
        per_sequence = -(-context // PAGE_TOKENS)
        self.layer_bytes = kv_heads * 2 * PAGE_TOKENS * kv_vector_bytes(dtype, head_dim)
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


class Int8Cache(Cache):
    """A cache of int8 codes with a scale for a head of a token; read and written as the floats that they stand for."""

    def __init__(self, rng: np.random.Generator, sequences: int, context: int, kv_heads: int, head_dim: int) -> None:
        super().__init__(rng, sequences, context, kv_heads, head_dim, "int8")

    def _halves(self, pool: Array) -> list[tuple[Array, Array]]:
        """Codes as they lie in memory, ``uint8 [pages, Hk, bytes]``, and scales; of keys and of values."""
        layer = pool[:, LAYER * self.layer_bytes : (LAYER + 1) * self.layer_bytes]
        heads = layer.reshape(len(pool), self.kv_heads, 2, -1)
        codes = self.head_dim * PAGE_TOKENS
        return [(heads[:, :, i, :codes], heads[:, :, i, codes:].view(np.float32)) for i in range(2)]

    def _codes(self, pool: Array) -> tuple[Array, Array]:
        """Keys ``uint8 [pages, Hk, D/4, slots, 4]`` and values ``int8 [pages, Hk, slots/4, D, 4]``: views."""
        (keys, _), (values, _) = self._halves(pool)
        shape, quads = (len(pool), self.kv_heads), self.head_dim // 4
        return (
            keys.reshape(*shape, quads, PAGE_TOKENS, 4),
            values.view(np.int8).reshape(*shape, PAGE_TOKENS // 4, self.head_dim, 4),
        )

    def codes_from(self, pool: Array, sequences: Array, positions: Array) -> list[tuple[Array, Array]]:
        """Codes ``int64 [T, Hk, D]`` and scales ``[T, Hk]`` of keys and of values."""
        keys, values = self._codes(pool)
        page, slot = self._place(sequences, positions)
        (_, k_scales), (_, v_scales) = self._halves(pool)
        k = keys[page, :, :, slot].reshape(len(page), self.kv_heads, -1).astype(np.int64) - 128
        v = values[page, :, slot // 4, :, slot % 4].astype(np.int64)
        return [(k, k_scales[page, :, slot]), (v, v_scales[page, :, slot])]

    def read_from(self, pool: Array, sequences: Array, positions: Array) -> tuple[Array, Array]:
        k, v = (c * s.astype(np.float64)[..., None] for c, s in self.codes_from(pool, sequences, positions))
        return k, v

    def write(self, sequences: Array, positions: Array, k: Array, v: Array) -> None:
        """Store the nearest codes; what was read is stored again as it was."""
        keys, values = self._codes(self.pool)
        (_, k_scales), (_, v_scales) = self._halves(self.pool)
        page, slot = self._place(sequences, positions)
        for scales, x in ((k_scales, k), (v_scales, v)):
            scales[page, :, slot] = np.abs(x).max(axis=-1) / 127
        k_codes, v_codes = (
            np.rint(x / np.maximum(scales[page, :, slot], 1e-30)[..., None])
            for scales, x in ((k_scales, k), (v_scales, v))
        )
        keys[page, :, :, slot] = (k_codes + 128).reshape(len(page), self.kv_heads, -1, 4)
        values[page, :, slot // 4, :, slot % 4] = v_codes

    def restore(self, pool: Array, sequences: Array, positions: Array) -> None:
        page, slot = self._place(sequences, positions)
        (keys, values), (old_keys, old_values) = self._codes(self.pool), self._codes(pool)
        keys[page, :, :, slot] = old_keys[page, :, :, slot]
        values[page, :, slot // 4, :, slot % 4] = old_values[page, :, slot // 4, :, slot % 4]
        for (_, scales), (_, old) in zip(self._halves(self.pool), self._halves(pool), strict=True):
            scales[page, :, slot] = old[page, :, slot]


def cache_of(
    rng: np.random.Generator, sequences: int, context: int, kv_heads: int, head_dim: int, dtype: str
) -> Cache | Int8Cache:
    """A cache of any dtype."""
    if dtype == "int8":
        return Int8Cache(rng, sequences, context, kv_heads, head_dim)
    return Cache(rng, sequences, context, kv_heads, head_dim, dtype)
