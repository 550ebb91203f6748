"""Attention of some rows over the pages of a sequence: the math of :mod:`.attention`.

A row is one query, a head of a token; rows stand ``[token][head]`` for consecutive tokens of a sequence
and the heads that share a KV head. Of each page, in ascending order:

    score   = sum over d of q[d] * key[d], over 16 keys a vector, q scaled to make exp(score) a power of two
    best'   = max(best, scores), over the slots that the row sees
    scale   = 2 ** (best - best'), which rescales what was summed so far, where it is not one
    chance  = 2 ** (score - best')
    total   = total + chance, 16 sums a row
    sum     = sum + chance * value, slot by slot

and at the end ``sum / total``. A slot that a row does not see is never read as a value and counts nothing
as a key, whatever lies there. Every row goes through the same operations in any company.
Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I16, I32, Value, vec
from ryzc.templates.kernels.pages import Pages
from ryzc.templates.kernels.scalar_math import exp2

LANES = 16
VECTOR = vec(F32, LANES)
VECTOR_BYTES = 4 * LANES
MOST = 12
"""Rows that go through a page together: with two vectors of keys or values each their sums fill the registers."""
LOWEST = -1e30
"""Below any score, and finite: the first page's rescaling must not be infinity minus infinity."""


def tile(isa: Isa, rows: int, vectors: int) -> tuple[int, int]:
    """Rows and vectors of keys or values that meet at a time: their sums fit the registers beside what is loaded."""
    sums, shared = (24, 2) if isa.registers == 32 else (6, 1)
    height = min(rows, sums // shared)
    return height, max(w for w in range(1, sums // height + 1) if vectors % w == 0)


class Rows:
    """The queries of ``tokens`` consecutive tokens and ``group`` heads of one KV head, with their state.

    :meth:`read` them, :meth:`attend`, :meth:`write` the results.
    """

    def __init__(self, isa: Isa, pages: Pages, tokens: int, group: int, window: int) -> None:
        self.fn = fn = pages.fn
        self.isa, self.pages, self.tokens, self.group, self.window = isa, pages, tokens, group, window
        self.count = tokens * group
        self.head_bytes = 4 * pages.head_dim
        self.chance_bytes = 4 * pages.page_tokens
        self.queries = fn.stack(F32, self.count * pages.head_dim)
        self.sums = fn.stack(F32, self.count * pages.head_dim)
        self.chances = fn.stack(F32, self.count * pages.page_tokens)
        self.totals = fn.stack(F32, self.count * LANES)
        self.best = fn.stack(F32, LANES)
        self.scale = fn.stack(F32, LANES)

    def read(self, q: Value, stride: int, scale: float) -> None:
        """Take queries ``[tokens][group][D]``, the tokens ``stride`` bytes apart, and start from nothing."""
        fn = self.fn
        zero = fn.const(VECTOR, 0.0)
        for row, at in self._places(stride):
            with fn.loop(0, self.head_bytes, VECTOR_BYTES) as d:
                query = fn.load(VECTOR, q, at, d.index, align=4) * (scale * math.log2(math.e))
                fn.store(query, self.queries, row * self.head_bytes, d.index, align=64)
                fn.store(zero, self.sums, row * self.head_bytes, d.index, align=64)
            fn.store(zero, self.totals, row * VECTOR_BYTES, align=64)

    def attend(self, table: Value, kv_head: Value, position: Value) -> None:
        """Go through the pages that the rows see; ``position`` is the first token's."""
        fn, size = self.fn, self.pages.page_tokens
        last = (position + (self.tokens - 1)) // size
        with fn.loop(self._oldest(position) // size, last + 1, 1, [fn.const(VECTOR, LOWEST)]) as page:
            after = page.index + 1
            following = after.compare("<=", last).select(after, last)
            keys, next_keys = (self.pages.keys(table, p, kv_head) for p in (page.index, following))
            page.values = [self._page(position - page.index * size, page.values[0], keys, next_keys)]

    def write(self, out: Value, stride: int) -> None:
        """Results ``[tokens][group][D]``, the tokens ``stride`` bytes apart."""
        fn = self.fn
        for row, at in self._places(stride):
            total = fn.load(VECTOR, self.totals, row * VECTOR_BYTES, align=64)
            inverse = (fn.const(F32, 1.0) / total.sum()).splat(LANES)
            with fn.loop(0, self.head_bytes, VECTOR_BYTES) as d:
                value = fn.load(VECTOR, self.sums, row * self.head_bytes, d.index, align=64)
                fn.store(value * inverse, out, at, d.index, align=4)

    def _places(self, stride: int) -> list[tuple[int, int]]:
        """Rows and where they lie in the batch."""
        return [
            (token * self.group + head, token * stride + head * self.head_bytes)
            for token in range(self.tokens)
            for head in range(self.group)
        ]

    def _oldest(self, position: Value) -> Value:
        """The first position that a query sees."""
        if not self.window:
            return self.fn.i64(0)
        oldest = position - (self.window - 1)
        return oldest.compare(">", 0).select(oldest, 0)

    def _page(self, slot: Value, best: Value, keys: Value, next_keys: Value) -> Value:
        """Take in a page; the first token sits at ``slot`` counted from its start. Returns the largest scores."""
        fn = self.fn
        scores = self._scores(keys, next_keys)
        visible = [self._visible(slot + token) for token in range(self.tokens)]
        for row in range(self.count):
            seen = visible[row // self.group]
            scores[row] = [m.select(s, LOWEST) for m, s in zip(seen, scores[row], strict=True)]
        new = best.maximum(_row_maxima(scores))
        scale = exp2(fn, best - new)
        fn.store(new, self.best, align=64)
        fn.store(scale, self.scale, align=64)
        with fn.when(scale.compare("!=", 1.0).bits(I16).compare("!=", 0)):
            self._rescale()
        for row in range(self.count):
            seen = visible[row // self.group]
            highest = fn.load(F32, self.best, 4 * row, align=4).splat(LANES)
            total = fn.load(VECTOR, self.totals, row * VECTOR_BYTES, align=64)
            for v, (mask, score) in enumerate(zip(seen, scores[row], strict=True)):
                chance = mask.select(exp2(fn, score - highest), 0.0)
                total = total + chance
                fn.store(chance, self.chances, row * self.chance_bytes + v * VECTOR_BYTES, align=64)
            fn.store(total, self.totals, row * VECTOR_BYTES, align=64)
        self._values(slot, keys, next_keys)
        return new

    def _visible(self, slot: Value) -> list[Value]:
        """Which keys of a page's vectors a query at a slot (counted from this page's start) sees."""
        fn, lanes = self.fn, vec(I32, LANES)
        query = slot.to_int(I32).splat(LANES)
        masks = []
        for first in range(0, self.pages.page_tokens, LANES):
            back = query - fn.const(lanes, [first + i for i in range(LANES)])
            mask = back.compare(">=", 0)
            masks.append(mask & back.compare("<", self.window) if self.window else mask)
        return masks

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
                self._prefetch(fn.at(next_keys, at), stride)
            k = [pages.load(keys, LANES, at, v * LANES * pages.size) for v in vectors]
            sums = iter(d.values)
            d.values = []
            for row in rows:
                query = fn.load(F32, self.queries, d.index << 2, row * self.head_bytes, align=4).splat(LANES)
                d.values += [fn.fma(query, key, next(sums)) for key in k]
        return [d.results[i : i + len(vectors)] for i in range(0, len(zeros), len(vectors))]

    def _rescale(self) -> None:
        """Bring what was summed to the new largest scores."""
        fn = self.fn
        for row in range(self.count):
            scale = fn.load(F32, self.scale, 4 * row, align=4).splat(LANES)
            total = fn.load(VECTOR, self.totals, row * VECTOR_BYTES, align=64)
            fn.store(total * scale, self.totals, row * VECTOR_BYTES, align=64)
            with fn.loop(0, self.head_bytes, VECTOR_BYTES) as d:
                value = fn.load(VECTOR, self.sums, row * self.head_bytes, d.index, align=64)
                fn.store(value * scale, self.sums, row * self.head_bytes, d.index, align=64)

    def _values(self, slot: Value, keys: Value, next_keys: Value) -> None:
        """Add the values of the slots that all rows see together, those before and after it token by token."""
        fn, size = self.fn, self.pages.page_tokens
        values, next_values = (fn.at(k, self.pages.half_bytes) for k in (keys, next_keys))
        start, _ = self._slots(slot + (self.tokens - 1))
        _, stop = self._slots(slot)
        stop = stop.compare(">", start).select(stop, start)
        if self.tokens > 1 and self.window:
            with fn.loop(0, start.compare(">", 0).select(fn.i64(self.tokens), 0)) as token:
                first, end = self._slots(slot + token.index)
                self._add(values, (first, end.compare("<", start).select(end, start)), token.index, self.group)
        self._add(values, (start, stop), fn.i64(0), self.count, next_values)
        if self.tokens > 1:
            with fn.loop(0, stop.compare("<", size).select(fn.i64(self.tokens), 0)) as token:
                _, end = self._slots(slot + token.index)
                self._add(values, (stop, end), token.index, self.group)

    def _slots(self, slot: Value) -> tuple[Value, Value]:
        """The range of a page's slots that a query at a slot sees, both ends within the page."""

        def within(at: Value) -> Value:
            at = at.compare(">", 0).select(at, 0)
            return at.compare("<", self.pages.page_tokens).select(at, self.pages.page_tokens)

        return within(slot - (self.window - 1)) if self.window else self.fn.i64(0), within(slot + 1)

    def _add(
        self, values: Value, slots: tuple[Value, Value], token: Value, count: int, next_values: Value | None = None
    ) -> None:
        """``sum = sum + chance * value`` over a range of slots, for ``count`` rows from a token's first on."""
        fn, pages = self.fn, self.pages
        height, width = tile(self.isa, count, pages.head_dim // LANES)
        row_bytes = pages.head_dim * pages.size
        first_sums = fn.at(self.sums, token * (self.group * self.head_bytes))
        first_chances = fn.at(self.chances, token * (self.group * self.chance_bytes))
        for row in range(0, count, height):
            rows = range(row, min(row + height, count))
            with fn.loop(0, pages.head_dim, width * LANES) as d:
                cells = [(r * self.head_bytes + c * VECTOR_BYTES) for r in rows for c in range(width)]
                sums = [fn.load(VECTOR, first_sums, d.index << 2, cell, align=64) for cell in cells]
                with fn.loop(*slots, 1, sums) as slot:
                    at = fn.at(values, slot.index * row_bytes, d.index * pages.size)
                    if next_values is not None and row == 0:
                        ahead = fn.at(next_values, slot.index * row_bytes, d.index * pages.size)
                        self._prefetch(ahead, width * LANES * pages.size)
                    v = [pages.load(at, LANES, c * LANES * pages.size) for c in range(width)]
                    before = iter(slot.values)
                    slot.values = []
                    for r in rows:
                        chance = fn.load(F32, first_chances, slot.index << 2, r * self.chance_bytes, align=4)
                        slot.values += [fn.fma(chance.splat(LANES), value, next(before)) for value in v]
                for cell, result in zip(cells, slot.results, strict=True):
                    fn.store(result, first_sums, d.index << 2, cell, align=64)

    def _prefetch(self, where: Value, size: int) -> None:
        """Ask for lines of the next page while this one is at work: no CPU foresees where it lies."""
        for line in range(0, size, 64):
            self.fn.prefetch(where, line, level=2)


def _row_maxima(rows: Sequence[Sequence[Value]]) -> Value:
    """The largest element of each of up to 16 rows, row ``r``'s in lane ``r``; lanes without a row repeat others.

    Halves of two rows' vectors side by side, then quarters of four, until each lane holds one row.
    """
    found = []
    for first, *others in rows:
        largest = first
        for other in others:
            largest = largest.maximum(other)
        found.append(largest)
    part = LANES
    while part > 1:
        half = part // 2
        low = [i for start in range(0, 2 * LANES, part) for i in range(start, start + half)]
        found = [
            a.shuffle(low, b).maximum(a.shuffle([i + half for i in low], b))
            for a, b in zip(found[::2], [*found[1::2], *found[-1:]], strict=False)
        ]
        part = half
    return found[0]
