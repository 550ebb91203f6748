"""A paged KV cache for tests: one layer of several, its pages scattered, everything unused poisoned."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

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
        self.numpy_dtype = np.dtype({"f16": np.float16, "f32": np.float32}[dtype])
        per_sequence = -(-context // PAGE_TOKENS)
        self.layer_bytes = kv_heads * 2 * head_dim * PAGE_TOKENS * self.numpy_dtype.itemsize
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

    def poison(self, kept: Array, filler: int) -> None:
        """Fill every byte that belongs to none of the tokens ``[sequence, position]`` of ``kept``."""
        sequences, positions = kept.T
        k, v = (a.copy() for a in self.read(sequences, positions))
        self.pool[...] = filler
        self.write(sequences, positions, k, v)
