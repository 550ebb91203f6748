"""Attention over float keys and values: of each page, in ascending order,

    score   = sum over d of q[d] * key[d], over 16 keys a vector, q scaled to make exp(score) a power of two
    best'   = max(best, scores), over the slots that the row sees
    scale   = 2 ** (best - best'), which rescales what was summed so far, where it is not one
    chance  = 2 ** (score - best')
    total   = total + chance
    sum     = sum + chance * value, slot by slot

A slot that a row does not see is never read as a value and counts nothing as a key, whatever lies there.
"""

from __future__ import annotations

import math

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, Value
from ryzc.templates.kernels.attention_rows import LANES, VECTOR, VECTOR_BYTES, PageRows, Turn, tile
from ryzc.templates.kernels.pages import Pages


class FloatRows(PageRows):
    """Rows over a cache of f16 or f32."""

    def __init__(self, isa: Isa, pages: Pages, tokens: int, group: int, window: int) -> None:
        super().__init__(isa, pages, tokens, group, window)
        self.weight_bytes = 4 * pages.page_tokens
        self.queries = self.fn.stack(F32, self.count * pages.head_dim)
        self.weights = self.fn.stack(F32, self.count * pages.page_tokens)

    def read(self, q: Value, stride: int, scale: float) -> None:
        fn = self.fn
        self.start()
        for row, at in self.places(stride):
            with fn.loop(0, self.head_bytes, VECTOR_BYTES) as d:
                query = fn.load(VECTOR, q, at, d.index, align=4) * (scale * math.log2(math.e))
                fn.store(query, self.queries, row * self.head_bytes, d.index, align=64)

    def page(self, slot: Value, best: Value, turn: Turn) -> Value:
        fn, keys, next_keys = self.fn, turn.keys, turn.next_keys
        scores = self._scores(keys, next_keys)
        visible = [self.visible(slot + token) for token in range(self.tokens)]
        scores = self.masked(scores, visible)
        new = self.rise(best, scores)
        for row, found in enumerate(scores):
            for v, chance in enumerate(self.chances(row, found, visible[row // self.group])):
                fn.store(chance, self.weights, row * self.weight_bytes + v * VECTOR_BYTES, align=64)
        self._values(slot, keys, next_keys)
        return new

    def _scores(self, keys: Value, next_keys: Value) -> list[list[Value]]:
        """``sum over d of q[d] * key[d]``, ``[row][vector of keys]``."""
        vectors = self.pages.page_tokens // LANES
        height, width = tile(self.isa, self.count, vectors)
        scores: list[list[Value]] = [[] for _ in range(self.count)]
        for v in range(0, vectors, width):
            for row in range(0, self.count, height):
                rows = range(row, min(row + height, self.count))
                prefetched = next_keys if row == v == 0 else None
                for r, found in zip(rows, self._score_tile(keys, rows, range(v, v + width), prefetched), strict=True):
                    scores[r] += found
        return scores

    def _score_tile(self, keys: Value, rows: range, vectors: range, next_keys: Value | None) -> list[list[Value]]:
        fn, pages = self.fn, self.pages
        stride = pages.page_tokens * pages.size
        zeros = [fn.const(VECTOR, 0.0)] * (len(rows) * len(vectors))
        with fn.loop(0, pages.head_dim, 1, zeros) as d:
            at = d.index * stride
            if next_keys is not None:
                self.prefetch(fn.at(next_keys, at), stride)
            k = [pages.load(keys, LANES, at, v * LANES * pages.size) for v in vectors]
            queries = fn.at(self.queries, d.index << 2)
            sums = iter(d.values)
            d.values = []
            for row in rows:
                query = fn.load(F32, queries, row * self.head_bytes, align=4).splat(LANES)
                d.values += [fn.fma(query, key, next(sums)) for key in k]
        return [d.results[i : i + len(vectors)] for i in range(0, len(zeros), len(vectors))]

    def _values(self, slot: Value, keys: Value, next_keys: Value) -> None:
        """Add the values of the slots that all rows see together, those before and after it token by token."""
        fn, size = self.fn, self.pages.page_tokens
        values, next_values = (fn.at(k, self.pages.key_region) for k in (keys, next_keys))
        start, _ = self._slots(slot + (self.tokens - 1))
        _, stop = self._slots(slot)
        stop = stop.compare(">", start).select(stop, start)
        if self.tokens > 1 and self.window:
            with fn.loop(0, start.compare(">", 0).select(fn.i64(self.tokens), 0)) as token:
                first, end = self._slots(slot + token.index)
                self._add(values, (first, fn.below(end, start)), token.index, self.group)
        self._add(values, (start, stop), fn.i64(0), self.count, next_values)
        if self.tokens > 1:
            with fn.loop(0, stop.compare("<", size).select(fn.i64(self.tokens), 0)) as token:
                _, end = self._slots(slot + token.index)
                self._add(values, (stop, end), token.index, self.group)

    def _slots(self, slot: Value) -> tuple[Value, Value]:
        """The range of a page's slots that a query at a slot sees, both ends within the page."""

        def within(at: Value) -> Value:
            at = at.compare(">", 0).select(at, 0)
            return self.fn.below(at, self.pages.page_tokens)

        return within(slot - (self.window - 1)) if self.window else self.fn.i64(0), within(slot + 1)

    def _add(
        self, values: Value, slots: tuple[Value, Value], token: Value, count: int, next_values: Value | None = None
    ) -> None:
        """``sum = sum + chance * value`` over a range of slots, for ``count`` rows from a token's first on."""
        fn, pages = self.fn, self.pages
        height, width = tile(self.isa, count, pages.head_dim // LANES)
        row_bytes = pages.head_dim * pages.size
        first_sums = fn.at(self.sums, token * (self.group * self.head_bytes))
        first_chances = fn.at(self.weights, token * (self.group * self.weight_bytes))
        for row in range(0, count, height):
            rows = range(row, min(row + height, count))
            with fn.loop(0, pages.head_dim, width * LANES) as d:
                cells = [(r * self.head_bytes + c * VECTOR_BYTES) for r in rows for c in range(width)]
                sums = [fn.load(VECTOR, first_sums, d.index << 2, cell, align=64) for cell in cells]
                with fn.loop(*slots, 1, sums) as slot:
                    at = fn.at(values, slot.index * row_bytes, d.index * pages.size)
                    if next_values is not None and row == 0:
                        ahead = fn.at(next_values, slot.index * row_bytes, d.index * pages.size)
                        self.prefetch(ahead, width * LANES * pages.size)
                    v = [pages.load(at, LANES, c * LANES * pages.size) for c in range(width)]
                    chances = fn.at(first_chances, slot.index << 2)
                    before = iter(slot.values)
                    slot.values = []
                    for r in rows:
                        chance = fn.load(F32, chances, r * self.weight_bytes, align=4).splat(LANES)
                        slot.values += [fn.fma(chance, value, next(before)) for value in v]
                for cell, result in zip(cells, slot.results, strict=True):
                    fn.store(result, first_sums, d.index << 2, cell, align=64)
