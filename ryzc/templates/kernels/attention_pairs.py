"""Attention over keys and values kept as codes of 16 bits: products go in pairs to exact integer sums.

Such a product takes half the time of one of floats, and nothing has to be converted. A query has codes and one scale,
as its keys do. Pages are taken in by stretches of :data:`STRETCH`, in ascending order, so that what takes a row from
its scores to the codes of its weights, a long chain of waiting, is done for several pages at a time:

    score   = (sum of q code * key code) * key scale, over 16 keys a vector
    best'   = max(best, the stretch's largest score * q scale), over the slots that the row sees
    rescale   by 2 ** (best - best') what was summed so far, where that is not one

and then of each page:

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
from functools import reduce

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I16, I32, Value, vec
from ryzc.kv_formats import NORM
from ryzc.templates.kernels.activations import ORIGIN, TINY
from ryzc.templates.kernels.attention_rows import (
    LANES,
    LEAST,
    LOWEST,
    VECTOR,
    VECTOR_BYTES,
    Rows,
    fold_rows,
    joined,
    tile,
)
from ryzc.templates.kernels.head_codes import NORM_TINY, load_bfloat16
from ryzc.templates.kernels.pages import Pages

STRETCH = 4
"""Pages that are taken in together: those whose numbers in their sequence have the same quotient by it."""
UNROLLED = 2
"""Pairs that a turn of the loops of products adds: what else a turn takes falls on twice as many."""


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
        self.row_bytes = 4 * pages.page_tokens
        self.scores = fn.stack(F32, STRETCH * self.count * pages.page_tokens)
        self.of_rows = fn.stack(F32, self.count * LANES)
        self.codes = fn.stack(I16, STRETCH * self.count * pages.page_tokens)
        self.inverses = fn.stack(F32, STRETCH * LANES)
        self.steps = fn.stack(F32, STRETCH * LANES)

    def read(self, q: Value, stride: int, scale: float) -> None:
        fn, head_dim = self.fn, self.pages.head_dim
        self.start()
        squares = []
        for _, at in self.places(stride):
            vectors = [fn.load(VECTOR, q, at, 4 * d, align=4) for d in range(0, head_dim, LANES)]
            total = vectors[0] * vectors[0]
            for vector in vectors[1:]:
                total = fn.fma(vector, vector, total)
            squares.append([total])
        norms = fold_rows(squares, Value.__add__).sqrt()
        none, zero = norms.compare("<", NORM_TINY), fn.const(VECTOR, 0.0)  # a NaN is not nothing, and stays one
        unit = norms * (scale * math.log2(math.e) / NORM)
        fn.store(none.select(zero, unit), self.query_scales, align=64)
        fn.store(none.select(zero, fn.const(VECTOR, float(NORM)) / norms), self.inverses, align=64)
        with fn.loop(0, self.tokens) as token:
            for head in range(self.group):
                row = token.index * self.group + head
                inverse = self.of_row(self.inverses, row)
                for d in range(0, head_dim, LANES):
                    vector = fn.load(VECTOR, q, token.index * stride, head * self.head_bytes + 4 * d, align=4)
                    code = (vector * inverse).nearest().to_int(I16)
                    fn.store(code, self.queries, row * self.query_bytes, 2 * d, align=2 * LANES)

    def attend(self, table: Value, kv_head: Value, position: Value) -> None:
        fn, pages = self.fn, self.pages
        size, last = pages.page_tokens, position + (self.tokens - 1)
        oldest, newest = self._oldest(position) // size, last // size
        with fn.loop(oldest // STRETCH, newest // STRETCH + 1, 1, [fn.const(VECTOR, LOWEST)]) as stretch:
            start = stretch.index * STRETCH
            first = start.compare("<", oldest).select(oldest, start)
            stop = fn.below(start + (STRETCH - 1), newest) + 1
            for row in range(self.count):
                fn.store(fn.const(VECTOR, LOWEST), self.of_rows, row * VECTOR_BYTES, align=64)
            with fn.loop(first, stop) as page:
                self._score(page.index - start, pages.keys(table, page.index, kv_head), position - page.index * size)
            best = self.rise(stretch.values[0], self._of_rows(), fn.load(VECTOR, self.query_scales, align=64))
            stretch.values = [best]
            with fn.loop(first, stop) as page:
                values = fn.at(pages.keys(table, page.index, kv_head), pages.key_region)
                self._weigh(page.index - start, values, position - page.index * size)
            with fn.loop(first, stop) as page:
                self._quantize(page.index - start)
            with fn.loop(first, stop) as page:
                values = fn.at(pages.keys(table, page.index, kv_head), pages.key_region)
                after = page.index + STRETCH
                same = pages.keys(table, fn.below(after, newest), kv_head)
                other = pages.keys(table, oldest + (page.index - first), kv_head + 1)
                self._add(page.index - start, values, after.compare("<=", newest).select(same, other))

    def _of_rows(self) -> list[list[Value]]:
        """A vector of each row."""
        return [[self.fn.load(VECTOR, self.of_rows, row * VECTOR_BYTES, align=64)] for row in range(self.count)]

    def _page_of(self, memory: Value, place: Value) -> Value:
        """Where in memory for rows of 32 bits a slot those of a page of the stretch lie."""
        return self.fn.at(memory, place * (self.count * self.row_bytes))

    # --- keys -------------------------------------------------------------------------------

    def _score(self, place: Value, keys: Value, slot: Value) -> None:
        """Scores of a page in units of the queries' scales, those that a row's token does not see below all others.

        The first token sits at ``slot`` counted from the page's start.
        """
        fn, pages = self.fn, self.pages
        visible = [self.visible(slot + token) for token in range(self.tokens)]
        vectors = pages.page_tokens // LANES
        height, width = tile(self.isa, self.count, vectors)
        scores = self._page_of(self.scores, place)
        for v in range(0, vectors, width):
            steps = [load_bfloat16(fn, pages.key_scales(keys), 2 * LANES * i) for i in range(v, v + width)]
            for row in range(0, self.count, height):
                rows = range(row, min(row + height, self.count))
                asked = fn.at(keys, pages.key_region) if row == v == 0 else None
                for r, found in zip(rows, self._score_tile(keys, rows, range(v, v + width), asked), strict=True):
                    highest = fn.load(VECTOR, self.of_rows, r * VECTOR_BYTES, align=64)
                    for i, dot, step in zip(range(v, v + width), found, steps, strict=True):
                        score = visible[r // self.group][i].select(dot.to_float() * step, LOWEST)
                        fn.store(score, scores, r * self.row_bytes + i * VECTOR_BYTES, align=64)
                        highest = highest.larger(score)
                    fn.store(highest, self.of_rows, r * VECTOR_BYTES, align=64)

    def _score_tile(self, keys: Value, rows: range, vectors: range, asked: Value | None) -> list[list[Value]]:
        """Sums of products, ``[row][vector of keys]``; as many bytes are ``asked`` for as are read."""
        fn, pages = self.fn, self.pages
        stride, count = 4 * pages.page_tokens, len(vectors) * self.parts
        zeros = [fn.const(self.register, 0)] * (len(rows) * count)
        with fn.loop(0, pages.head_dim // 2, UNROLLED, zeros) as pair:
            for i in range(UNROLLED):
                at = (pair.index + i) * stride
                if asked is not None:
                    self.prefetch(fn.at(asked, at), stride)
                k = self._registers(fn.at(keys, at, vectors.start * VECTOR_BYTES), count)
                queries = fn.at(self.queries, (pair.index + i) << 2)
                pair.values = self._products(queries, self.query_bytes, rows, k, pair.values)
        return self._by_row(pair.results, len(rows))

    # --- values -----------------------------------------------------------------------------

    def _weigh(self, place: Value, values: Value, slot: Value) -> None:
        """What the codes of a page's values count, in place of the scores, and what makes codes of it."""
        fn, size = self.fn, self.pages.page_tokens
        steps = [load_bfloat16(fn, self.pages.value_scales(values), 2 * first) for first in range(0, size, LANES)]
        scores = self._page_of(self.scores, place)
        with fn.loop(0, self.tokens) as token:
            visible = self.visible(slot + token.index)
            seen_steps = [mask.select(step, 0.0) for mask, step in zip(visible, steps, strict=True)]
            for head in range(self.group):
                row = token.index * self.group + head
                cells = [(scores, row * self.row_bytes, v * VECTOR_BYTES) for v in range(len(steps))]
                found = [fn.load(VECTOR, *cell, align=64) for cell in cells]
                chances = self.chances(row, found, visible, LEAST, self.of_row(self.query_scales, row))
                weights = [chance * step for chance, step in zip(chances, seen_steps, strict=True)]
                for weight, cell in zip(weights, cells, strict=True):
                    fn.store(weight, *cell, align=64)
                fn.store(reduce(Value.__add__, weights), self.of_rows, row * VECTOR_BYTES, align=64)
        together = fn.const(VECTOR, TINY).larger(fold_rows(self._of_rows(), Value.__add__))  # a NaN stays one
        fn.store(fn.const(VECTOR, float(NORM)) / together, self.inverses, place * VECTOR_BYTES, align=64)
        fn.store(together * (1 / NORM), self.steps, place * VECTOR_BYTES, align=64)

    def _quantize(self, place: Value) -> None:
        """Codes of a page's weights."""
        fn = self.fn
        page, inverses = self._page_of(self.scores, place), fn.at(self.inverses, place * VECTOR_BYTES)
        codes = fn.at(self.codes, place * (self.count * self.code_bytes))
        for row in range(self.count):
            inverse = self.of_row(inverses, row)
            for v in range(self.pages.page_tokens // LANES):
                weight = fn.load(VECTOR, page, row * self.row_bytes + v * VECTOR_BYTES, align=64)
                # Around ORIGIN neighbouring floats differ by one: its lowest bits are the nearest integer.
                code = fn.fma(weight, inverse, fn.const(VECTOR, ORIGIN)).bits(vec(I32, LANES)).to_int(I16)
                fn.store(code, codes, row * self.code_bytes + 2 * LANES * v, align=2 * LANES)

    def _add(self, place: Value, values: Value, asked: Value) -> None:
        """``sum = sum + (sum of code * value code) * step``, some of D at a time."""
        fn, pages = self.fn, self.pages
        height, width = tile(self.isa, self.count, pages.head_dim // LANES)
        codes = fn.at(self.codes, place * (self.count * self.code_bytes))
        steps = fn.at(self.steps, place * VECTOR_BYTES)
        for row in range(0, self.count, height):
            rows = range(row, min(row + height, self.count))
            with fn.loop(0, pages.head_dim, width * LANES) as d:
                zeros = [fn.const(self.register, 0)] * (len(rows) * width * self.parts)
                with fn.loop(0, pages.page_tokens // 2, UNROLLED, zeros) as pair:
                    for i in range(UNROLLED):
                        offsets = (pair.index + i) * (4 * pages.head_dim), d.index << 2
                        if row == 0:
                            self.prefetch(fn.at(asked, *offsets), width * VECTOR_BYTES)
                        v = self._registers(fn.at(values, *offsets), width * self.parts)
                        at = fn.at(codes, (pair.index + i) << 2)
                        pair.values = self._products(at, self.code_bytes, rows, v, pair.values)
                for r, dots in zip(rows, self._by_row(pair.results, len(rows)), strict=True):
                    step = self.of_row(steps, r)
                    for c, dot in enumerate(dots):
                        cell = r * self.head_bytes + c * VECTOR_BYTES
                        old = fn.load(VECTOR, self.sums, d.index << 2, cell, align=64)
                        fn.store(fn.fma(dot.to_float(), step, old), self.sums, d.index << 2, cell, align=64)

    def _registers(self, pointer: Value, count: int) -> list[Value]:
        size = 4 * self.isa.lanes
        return [self.fn.load(self.register, pointer, i * size, align=4) for i in range(count)]

    def _products(self, at: Value, row_bytes: int, rows: range, shared: list[Value], sums: list[Value]) -> list[Value]:
        """``sums`` ``[row][register]``, and each row's pair times what is shared; pairs lie ``row_bytes`` apart."""
        before, after = iter(sums), []
        for row in rows:
            pair = self.fn.load(I32, at, row * row_bytes, align=4).splat(self.isa.lanes)
            after += [self.isa.add_pairs(next(before), register, pair) for register in shared]
        return after

    def _by_row(self, registers: list[Value], rows: int) -> list[list[Value]]:
        """Registers of the instruction set, ``[row][register]``, as vectors of 16, ``[row][vector]``."""
        vectors = joined(registers)
        count = len(vectors) // rows
        return [vectors[i : i + count] for i in range(0, len(vectors), count)]
