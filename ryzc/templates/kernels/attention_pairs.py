"""Attention over keys and values kept as codes of 16 bits: products go in pairs to exact integer sums.

Such a product takes half the time of one of floats, and nothing has to be converted. A query has codes and one scale,
as its keys do. Of each page, in ascending order:

    score   = (sum of q code * key code) * key scale, over 16 keys a vector
    best'   = max(best, the largest score * q scale), over the slots that the row sees
    rescale   by 2 ** (best - best') what was summed so far, where that is not one
    chance  = 2 ** fma(score, q scale, -best'), 0 for slots that the row does not see
    total   = total + chance
    weight  = chance * the value's scale
    code    = weight in units of which the page's weights together make NORM
    sum     = sum + (sum of code * value code) * unit

No sum leaves 32 bits: one of a key is at most the product of two norms of codes, see :mod:`.head_codes`, one of a page
the sum of its weights' codes times the largest of a value. A slot that a row does not see has code 0: whatever lies
there, it adds nothing to an integer sum.
"""

from __future__ import annotations

import math

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I16, I32, Value, vec
from ryzc.kv_formats import NORM
from ryzc.templates.kernels.activations import ORIGIN, TINY
from ryzc.templates.kernels.attention_rows import (
    LANES,
    LEAST,
    VECTOR,
    VECTOR_BYTES,
    Rows,
    Turn,
    fold_rows,
    joined,
    tile,
)
from ryzc.templates.kernels.head_codes import load_bfloat16, wide_codes
from ryzc.templates.kernels.pages import Pages


class PairRows(Rows):
    """Rows over a cache of 16-bit codes."""

    def __init__(self, isa: Isa, pages: Pages, tokens: int, group: int, window: int) -> None:
        super().__init__(isa, pages, tokens, group, window)
        fn = self.fn
        self.parts = LANES // isa.lanes
        self.register = vec(I32, isa.lanes)
        self.query_bytes, self.code_bytes = 2 * pages.head_dim, 2 * pages.page_tokens
        self.queries = fn.stack(I16, self.count * pages.head_dim)
        self.query_scales = fn.stack(F32, LANES)
        self.codes = fn.stack(I16, self.count * pages.page_tokens)
        self.inverses = fn.stack(F32, LANES)
        self.steps = fn.stack(F32, LANES)

    def read(self, q: Value, stride: int, scale: float) -> None:
        fn, head_dim = self.fn, self.pages.head_dim
        self.start()
        fn.store(fn.const(VECTOR, 0.0), self.query_scales, align=64)
        for row, at in self.places(stride):
            codes, step = wide_codes(fn, fn.at(q, at), head_dim, kept=False)
            for i, code in enumerate(codes):
                fn.store(code.to_int(I16), self.queries, row * self.query_bytes + 2 * LANES * i, align=2 * LANES)
            fn.store(step * (scale * math.log2(math.e)), self.query_scales, 4 * row, align=4)

    def page(self, slot: Value, best: Value, turn: Turn) -> Value:
        fn, pages = self.fn, self.pages
        values, next_values = (fn.at(keys, pages.key_region) for keys in (turn.keys, turn.next_keys))
        visible = [self.visible(slot + token) for token in range(self.tokens)]
        scores = self.masked(self._scores(turn.keys, turn.next_keys), visible)
        new = self.rise(best, scores, fn.load(VECTOR, self.query_scales, align=64))
        self._quantize(self._weights(scores, visible, values))
        self._add(values, next_values)
        return new

    # --- keys -------------------------------------------------------------------------------

    def _scores(self, keys: Value, next_keys: Value) -> list[list[Value]]:
        """Scores of a page in units of the queries' scales, ``[row][vector of keys]``."""
        fn, pages = self.fn, self.pages
        vectors = pages.page_tokens // LANES
        height, width = tile(self.isa, self.count, vectors)
        scores: list[list[Value]] = [[] for _ in range(self.count)]
        for v in range(0, vectors, width):
            steps = [load_bfloat16(fn, pages.key_scales(keys), 2 * LANES * i) for i in range(v, v + width)]
            for row in range(0, self.count, height):
                rows = range(row, min(row + height, self.count))
                sums = self._score_tile(keys, rows, range(v, v + width), next_keys if row == v == 0 else None)
                for r, found in zip(rows, sums, strict=True):
                    scores[r] += [dot.to_float() * k for dot, k in zip(found, steps, strict=True)]
        return scores

    def _score_tile(self, keys: Value, rows: range, vectors: range, next_keys: Value | None) -> list[list[Value]]:
        """Sums of products, ``[row][vector of keys]``."""
        fn, pages = self.fn, self.pages
        stride, count = 4 * pages.page_tokens, len(vectors) * self.parts
        zeros = [fn.const(self.register, 0)] * (len(rows) * count)
        with fn.loop(0, pages.head_dim // 2, 1, zeros) as pair:
            at = pair.index * stride
            if next_keys is not None:
                self.prefetch(fn.at(next_keys, at), stride)
            k = self._registers(fn.at(keys, at, vectors.start * VECTOR_BYTES), count)
            pair.values = self._products(fn.at(self.queries, pair.index << 2), self.query_bytes, rows, k, pair.values)
        return self._by_row(pair.results, len(rows))

    # --- values -----------------------------------------------------------------------------

    def _weights(self, scores: list[list[Value]], visible: list[list[Value]], values: Value) -> list[list[Value]]:
        """What the codes of a page's values count, ``[row][vector of slots]``; chances are added to the totals."""
        fn, pages, weights = self.fn, self.pages, []
        scales = pages.value_scales(values)
        steps = [load_bfloat16(fn, scales, 2 * slot) for slot in range(0, pages.page_tokens, LANES)]
        seen_steps = [[mask.select(step, 0.0) for mask, step in zip(seen, steps, strict=True)] for seen in visible]
        for row, found in enumerate(scores):
            chances = self.chances(row, found, visible, LEAST, self.of_row(self.query_scales, row))
            weights.append([chance * step for chance, step in zip(chances, seen_steps[row // self.group], strict=True)])
        return weights

    def _quantize(self, weights: list[list[Value]]) -> None:
        """Codes of a page's weights, and the step between a row's codes."""
        fn = self.fn
        together = fn.const(VECTOR, TINY).larger(fold_rows(weights, Value.__add__))  # a NaN stays one
        fn.store(fn.const(VECTOR, float(NORM)) / together, self.inverses, align=64)
        fn.store(together * (1 / NORM), self.steps, align=64)
        for row, found in enumerate(weights):
            inverse = self.of_row(self.inverses, row)
            for v, weight in enumerate(found):
                # Around ORIGIN neighbouring floats differ by one: its lowest bits are the nearest integer.
                code = fn.fma(weight, inverse, fn.const(VECTOR, ORIGIN)).bits(vec(I32, LANES)).to_int(I16)
                fn.store(code, self.codes, row * self.code_bytes + 2 * LANES * v, align=2 * LANES)

    def _add(self, values: Value, next_values: Value) -> None:
        """``sum = sum + (sum of code * value code) * step``, some of D at a time."""
        fn, pages = self.fn, self.pages
        height, width = tile(self.isa, self.count, pages.head_dim // LANES)
        for row in range(0, self.count, height):
            rows = range(row, min(row + height, self.count))
            with fn.loop(0, pages.head_dim, width * LANES) as d:
                zeros = [fn.const(self.register, 0)] * (len(rows) * width * self.parts)
                with fn.loop(0, pages.page_tokens // 2, 1, zeros) as pair:
                    offsets = pair.index * (4 * pages.head_dim), d.index << 2
                    if row == 0:
                        self.prefetch(fn.at(next_values, *offsets), width * VECTOR_BYTES)
                    v = self._registers(fn.at(values, *offsets), width * self.parts)
                    at = fn.at(self.codes, pair.index << 2)
                    pair.values = self._products(at, self.code_bytes, rows, v, pair.values)
                for r, dots in zip(rows, self._by_row(pair.results, len(rows)), strict=True):
                    step = self.of_row(self.steps, r)
                    for c, dot in enumerate(dots):
                        cell = r * self.head_bytes + c * VECTOR_BYTES
                        old = fn.load(VECTOR, self.sums, d.index << 2, cell, align=64)
                        fn.store(fn.fma(dot.to_float(), step, old), self.sums, d.index << 2, cell, align=64)

    def _registers(self, pointer: Value, count: int) -> list[Value]:
        size = 4 * self.isa.lanes
        return [self.fn.load(self.register, pointer, i * size, align=4) for i in range(count)]

    def _products(self, at: Value, row_bytes: int, rows: range, shared: list[Value], sums: list[Value]) -> list[Value]:
        """``sums`` ``[row][register]``, and each row's pair times what is shared; pairs lie ``row_bytes`` apart."""
        places = self.isa.ways(at, len(shared)) if len(rows) > len(shared) else [at] * len(shared)
        before, after = iter(sums), []
        for row in rows:
            for place, register in zip(places, shared, strict=True):
                pair = self.fn.load(I32, place, row * row_bytes, align=4).splat(self.isa.lanes)
                after.append(self.isa.add_pairs(next(before), register, pair))
        return after

    def _by_row(self, registers: list[Value], rows: int) -> list[list[Value]]:
        """Registers of the instruction set, ``[row][register]``, as vectors of 16, ``[row][vector]``."""
        vectors = joined(registers)
        count = len(vectors) // rows
        return [vectors[i : i + count] for i in range(0, len(vectors), count)]
