"""Attention over int8 keys and values: sums over products are exact integers.

Queries come transformed as keys and values were, see :mod:`.hadamard`, and are quantized per head. Of each
page, in ascending order:

    score   = sum of q code * key code, times the key's scale
    best'   = max(best, scores), over the slots that the row sees
    rescale   by 2 ** (q scale * (best - best')) what was summed so far, where that is not one
    chance  = 2 ** (q scale * (score - best')), 0 for slots that the row does not see
    total   = total + chance
    weight  = chance * the value's scale
    code    = weight in 0 .. 127, where 127 is the page's largest, so that many small weights survive
    sum     = sum + (sum of code * value code) * (largest weight / 127)

A slot that a row does not see has code 0: whatever lies there, it adds nothing to an integer sum. Seven bits a
code, because two products by a signed byte must not overflow 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ryzc.codegen.isa import Dot, Isa
from ryzc.codegen.vector import F32, I8, I32, Value, vec
from ryzc.templates.kernels.activations import TINY
from ryzc.templates.kernels.attention_rows import LANES, LOWEST, VECTOR, VECTOR_BYTES, Rows, row_maxima, tile
from ryzc.templates.kernels.hadamard import hadamard
from ryzc.templates.kernels.pages import Pages
from ryzc.templates.kernels.quantize_head import quantize_head
from ryzc.templates.kernels.scalar_math import exp2

QUAD = 4
LARGEST = 127
_ROUND = 1.5 * 2.0**23
"""Added to a small number, it leaves the nearest integer in the lowest bits."""


class Int8Rows(Rows):
    """Rows over a cache of int8."""

    def __init__(self, isa: Isa, pages: Pages, tokens: int, group: int, window: int) -> None:
        super().__init__(isa, pages, tokens, group, window)
        fn = self.fn
        self.parts = LANES // isa.lanes
        self.register = vec(I32, isa.lanes)
        self.query_codes = fn.stack(I8, self.count * pages.head_dim)
        self.query_scales = fn.stack(F32, LANES)
        self.query_starts = fn.stack(I32, LANES)
        self.codes = fn.stack(I8, self.count * pages.page_tokens)
        self.inverses = fn.stack(F32, LANES)
        self.steps = fn.stack(F32, LANES)

    def read(self, q: Value, stride: int, scale: float) -> None:
        fn, head_dim = self.fn, self.pages.head_dim
        self.start()
        fn.store(fn.const(VECTOR, 0.0), self.query_scales, align=64)
        for row, at in self.places(stride):
            total = fn.const(I32, 0)
            codes, step = quantize_head(fn, fn.at(q, at), head_dim)
            for i, code in enumerate(codes):
                fn.store(code.to_int(I8), self.query_codes, row * head_dim + i * LANES, align=16)
                total = total + code.sum()
            # Codes of keys are stored with 128 added, unless the instruction set takes that off itself.
            start = fn.const(I32, 0) if self.isa.signed_bytes else total * -128
            fn.store(start, self.query_starts, 4 * row, align=4)
            fn.store(step * (scale * math.log2(math.e)), self.query_scales, 4 * row, align=4)

    def write(self, out: Value, stride: int) -> None:
        super().write(out, stride)
        with self.fn.loop(0, self.tokens) as token, self.fn.loop(0, self.group) as head:
            hadamard(self.fn, self.fn.at(out, token.index * stride, head.index * self.head_bytes), self.pages.head_dim)

    def page(self, slot: Value, best: Value, keys: Value, next_keys: Value) -> Value:
        fn, pages = self.fn, self.pages
        values = fn.at(keys, pages.half_bytes)
        visible = [self.visible(slot + token) for token in range(self.tokens)]
        key_scales, value_scales = (
            [fn.load(VECTOR, pages.scales(half), 4 * v, align=4) for v in range(0, pages.page_tokens, LANES)]
            for half in (keys, values)
        )
        dots = self._dots(keys, next_keys)
        scores = [
            [
                mask.select(dot.to_float() * scale, LOWEST)
                for mask, dot, scale in zip(visible[row // self.group], dots[row], key_scales, strict=True)
            ]
            for row in range(self.count)
        ]
        new = best.maximum(row_maxima(scores))
        fn.store(new, self.best, align=64)
        self.rescale(exp2(fn, (best - new) * fn.load(VECTOR, self.query_scales, align=64)))
        weights = []
        for row in range(self.count):
            highest, query_scale = (self.of_row(vector, row) for vector in (self.best, self.query_scales))
            total = fn.load(VECTOR, self.totals, row * VECTOR_BYTES, align=64)
            found = []
            for mask, score, scale in zip(visible[row // self.group], scores[row], value_scales, strict=True):
                chance = exp2(fn, (score - highest) * query_scale)
                total = total + mask.select(chance, 0.0)
                found.append(mask.select(chance * scale, 0.0))
            fn.store(total, self.totals, row * VECTOR_BYTES, align=64)
            weights.append(found)
        self._quantize(weights)
        self._values(values)
        return new

    def _dots(self, keys: Value, next_keys: Value) -> list[list[Value]]:
        """``sum over d of q code * key code``, ``int32 [row][vector of keys]``."""
        vectors = self.pages.page_tokens // LANES
        height, width = tile(self.isa, self.count, vectors)
        dots: list[list[Value]] = [[] for _ in range(self.count)]
        for v in range(0, vectors, width):
            for row in range(0, self.count, height):
                rows = range(row, min(row + height, self.count))
                prefetched = next_keys if row == v == 0 else None
                for r, found in zip(rows, self._dot_tile(keys, rows, range(v, v + width), prefetched), strict=True):
                    dots[r] += found
        return dots

    def _dot_tile(self, keys: Value, rows: range, vectors: range, next_keys: Value | None) -> list[list[Value]]:
        fn, pages = self.fn, self.pages
        quad_bytes, registers = QUAD * pages.page_tokens, len(vectors) * self.parts
        starts = [fn.load(I32, self.query_starts, 4 * row, align=4).splat(self.isa.lanes) for row in rows]
        carried = [start for start in starts for _ in range(registers)]
        with fn.loop(0, pages.head_dim // QUAD, 1, carried) as quad:
            row_of_quads = fn.at(keys, quad.index * quad_bytes, vectors.start * VECTOR_BYTES)
            if next_keys is not None:
                for half in (0, pages.half_bytes):
                    self.prefetch(fn.at(next_keys, half, quad.index * quad_bytes), quad_bytes)
            codes = [fn.load(self.register, row_of_quads, i * 4 * self.isa.lanes, align=4) for i in range(registers)]
            sums = iter(quad.values)
            quad.values = []
            for row in rows:
                query = fn.load(I32, self.query_codes, quad.index << 2, row * pages.head_dim, align=4)
                splat = query.splat(self.isa.lanes)
                quad.values += [self._dot_bytes(next(sums), code, splat) for code in codes]
        return self._joined(quad.results, len(vectors))

    def _dot_bytes(self, total: Value, codes: Value, x: Value) -> Value:
        return self.isa.total(self.isa.add(Dot(total), codes, x, 255))

    def _quantize(self, weights: Sequence[Sequence[Value]]) -> None:
        """Codes of a page's weights, and each row's step between codes."""
        fn = self.fn
        largest = row_maxima(weights).maximum(TINY)
        fn.store(fn.const(VECTOR, float(LARGEST)) / largest, self.inverses, align=64)
        fn.store(largest * (1 / LARGEST), self.steps, align=64)
        for row, found in enumerate(weights):
            inverse = self.of_row(self.inverses, row)
            for v, weight in enumerate(found):
                rounded = fn.fma(weight, inverse, fn.const(VECTOR, _ROUND))
                code = rounded.bits(vec(I32, LANES)).to_int(I8)
                fn.store(code, self.codes, row * self.pages.page_tokens + v * LANES, align=16)

    def _values(self, values: Value) -> None:
        """``sum = sum + (sum of code * value code) * step``, some of D at a time."""
        fn, pages = self.fn, self.pages
        height, width = tile(self.isa, self.count, pages.head_dim // LANES)
        registers = width * self.parts
        for row in range(0, self.count, height):
            rows = range(row, min(row + height, self.count))
            steps = [self.of_row(self.steps, r) for r in rows]
            with fn.loop(0, pages.head_dim, width * LANES) as d:
                zeros = [fn.const(self.register, 0)] * (len(rows) * registers)
                with fn.loop(0, pages.page_tokens // QUAD, 1, zeros) as quad:
                    at = fn.at(values, quad.index * (QUAD * pages.head_dim), d.index << 2)
                    found = [fn.load(self.register, at, i * 4 * self.isa.lanes, align=4) for i in range(registers)]
                    sums = iter(quad.values)
                    quad.values = []
                    for r in rows:
                        codes = fn.load(I32, self.codes, quad.index << 2, r * pages.page_tokens, align=4)
                        splat = codes.splat(self.isa.lanes)
                        quad.values += [self.isa.dot(next(sums), splat, value) for value in found]
                for r, step, dots in zip(rows, steps, self._joined(quad.results, width), strict=True):
                    for c, dot in enumerate(dots):
                        cell = r * self.head_bytes + c * VECTOR_BYTES
                        old = fn.load(VECTOR, self.sums, d.index << 2, cell, align=64)
                        fn.store(fn.fma(dot.to_float(), step, old), self.sums, d.index << 2, cell, align=64)

    def _joined(self, registers: Sequence[Value], vectors: int) -> list[list[Value]]:
        """Registers of the instruction set as vectors of 16, ``[row][vectors]``."""
        joined = list(registers)
        if self.parts == 2:
            pairs = zip(registers[::2], registers[1::2], strict=True)
            joined = [low.shuffle(range(LANES), high) for low, high in pairs]
        return [joined[i : i + vectors] for i in range(0, len(joined), vectors)]
