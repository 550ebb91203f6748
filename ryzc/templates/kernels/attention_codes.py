"""Attention over keys and values kept as codes: sums over products are exact integers.

Queries come transformed as keys and values were, see :mod:`.hadamard`, and are quantized in blocks of 8 bits, see
:mod:`.head_codes`. A block of a key has one scale, or two groups with a scale each. Of each page, in ascending order:

    score   = block by block, and in it group by group: + (sum of q code * key code) * key scale * q scale
    best'   = max(best, scores), over the slots that the row sees
    rescale   by 2 ** (best - best') what was summed so far, where that is not one
    chance  = 2 ** (score - best'), 0 for slots that the row does not see
    total   = total + chance
    of each group of a value, or of the whole of it where it has one scale:
    weight  = chance * the value's scale
    code    = weight in 0 .. 127, where 127 is the page's largest, so that many small weights survive
    sum     = sum + (sum of code * value code) * (largest weight / 127)

A slot that a row does not see has code 0: whatever lies there, it adds nothing to an integer sum. Seven bits a
code, because two products by a signed byte must not overflow 16 bits. Codes of 4 bits are taken apart in registers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ryzc.codegen.isa import Dot, Isa
from ryzc.codegen.vector import F32, I8, I32, Value, vec
from ryzc.templates.kernels.activations import TINY
from ryzc.templates.kernels.attention_rows import LANES, LOWEST, VECTOR, VECTOR_BYTES, Rows, row_maxima, tile
from ryzc.templates.kernels.hadamard import hadamard
from ryzc.templates.kernels.head_codes import byte_codes, group_scale, load_bfloat16, load_bytes, unpacked
from ryzc.templates.kernels.pages import Pages
from ryzc.templates.kernels.scalar_math import exp2

QUAD = 4
LARGEST = 127
_ROUND = 1.5 * 2.0**23
"""Added to a small number, it leaves the nearest integer in the lowest bits."""
_LEAST = -64.0
"""Chances are at least 2 to this power: times a scale they stay normal numbers, with which CPUs are fast."""
_TOP = {8: 255, 4: 30}
"""The largest code of a key, by its bits."""


class CodeRows(Rows):
    """Rows over a cache of codes."""

    def __init__(self, isa: Isa, pages: Pages, tokens: int, group: int, window: int) -> None:
        super().__init__(isa, pages, tokens, group, window)
        fn, head_dim, slots = self.fn, pages.head_dim, pages.page_tokens
        self.parts = LANES // isa.lanes
        self.register = vec(I32, isa.lanes)
        self.blocks = head_dim // pages.block
        self.key_groups = self.blocks if pages.key_bits == 8 else pages.groups
        self.value_groups = 1 if pages.value_bits == 8 else pages.groups
        self.query_codes = fn.stack(I8, self.count * head_dim)
        self.query_scales = fn.stack(F32, self.count * self.blocks)
        self.query_sums = fn.stack(I32, self.count * self.key_groups)
        self.scores = fn.stack(F32, self.count * slots)
        self.codes = fn.stack(I8, self.count * self.value_groups * slots)
        self.inverses = fn.stack(F32, LANES)
        self.steps = fn.stack(F32, self.value_groups * LANES)

    def read(self, q: Value, stride: int, scale: float) -> None:
        fn, head_dim = self.fn, self.pages.head_dim
        self.start()
        per_group = head_dim // self.key_groups // LANES
        for row, at in self.places(stride):
            codes, scales = byte_codes(fn, fn.at(q, at), head_dim, self.pages.block)
            for i, code in enumerate(codes):
                fn.store(code.to_int(I8), self.query_codes, row * head_dim + i * LANES, align=16)
            for g in range(self.key_groups):
                first, *others = codes[g * per_group : (g + 1) * per_group]
                total = sum(others, first).sum()
                fn.store(total, self.query_sums, 4 * (row * self.key_groups + g), align=4)
            for b, step in enumerate(scales):
                base2 = step * (scale * math.log2(math.e))
                fn.store(base2, self.query_scales, 4 * (row * self.blocks + b), align=4)

    def write(self, out: Value, stride: int) -> None:
        super().write(out, stride)
        with self.fn.loop(0, self.tokens) as token, self.fn.loop(0, self.group) as head:
            place = self.fn.at(out, token.index * stride, head.index * self.head_bytes)
            hadamard(self.fn, place, self.pages.head_dim, self.pages.block)

    def page(self, slot: Value, best: Value, keys: Value, next_keys: Value) -> Value:
        fn, pages = self.fn, self.pages
        values = fn.at(keys, pages.key_region)
        visible = [self.visible(slot + token) for token in range(self.tokens)]
        self._score(keys, next_keys)
        scores = [
            [mask.select(score, LOWEST) for mask, score in zip(visible[row // self.group], found, strict=True)]
            for row, found in enumerate(self._page_of(self.scores))
        ]
        new = best.maximum(row_maxima(scores))
        fn.store(new, self.best, align=64)
        self.rescale(exp2(fn, best - new))
        for row, found in enumerate(scores):
            highest = self.of_row(self.best, row)
            total = fn.load(VECTOR, self.totals, row * VECTOR_BYTES, align=64)
            for v, (mask, score) in enumerate(zip(visible[row // self.group], found, strict=True)):
                chance = mask.select(exp2(fn, score - highest, _LEAST), 0.0)
                total = total + chance
                fn.store(chance, self.scores, row * 4 * pages.page_tokens + v * VECTOR_BYTES, align=64)
            fn.store(total, self.totals, row * VECTOR_BYTES, align=64)
        self._quantize(values, visible)
        if pages.value_bits == 8:
            self._add_bytes(values)
        else:
            self._add_nibbles(values)
        return new

    def _page_of(self, vectors: Value) -> list[list[Value]]:
        """What stands for each row and slot in memory, ``[row][vector of slots]``."""
        row_bytes = 4 * self.pages.page_tokens
        return [
            [self.fn.load(VECTOR, vectors, row * row_bytes + v, align=64) for v in range(0, row_bytes, VECTOR_BYTES)]
            for row in range(self.count)
        ]

    # --- keys -------------------------------------------------------------------------------

    def _score(self, keys: Value, next_keys: Value) -> None:
        """Scores of a page, block by block."""
        fn, pages = self.fn, self.pages
        vectors = pages.page_tokens // LANES
        height, width = tile(self.isa, self.count, vectors)
        for row in range(self.count):
            for v in range(vectors):
                zero = fn.const(VECTOR, 0.0)
                fn.store(zero, self.scores, row * 4 * pages.page_tokens + v * VECTOR_BYTES, align=64)
        add = self._add_byte_keys if pages.key_bits == 8 else self._add_nibble_keys
        ahead = -(-pages.head_region // self.blocks // 64) * 64
        with fn.loop(0, self.blocks) as block:
            self.prefetch(fn.at(next_keys, block.index * ahead), ahead)
            for v in range(0, vectors, width):
                for row in range(0, self.count, height):
                    rows = range(row, min(row + height, self.count))
                    add(keys, block.index, rows, range(v, v + width))

    def _add_byte_keys(self, keys: Value, block: Value, rows: range, vectors: range) -> None:
        fn, pages = self.fn, self.pages
        row_bytes = QUAD * pages.page_tokens
        first = fn.at(keys, block * (pages.block // QUAD * row_bytes), vectors.start * VECTOR_BYTES)
        # Codes of keys are stored with 128 added, unless the instruction set takes that off itself.
        starts = {
            row: fn.const(I32, 0) if self.isa.signed_bytes else self._query_sum(row, block) * -128 for row in rows
        }
        quads = [self._registers(first, i * row_bytes, len(vectors)) for i in range(pages.block // QUAD)]
        sums = {row: [starts[row].splat(self.isa.lanes)] * (len(vectors) * self.parts) for row in rows}
        scales = fn.at(pages.key_scales(keys), block * (2 * pages.page_tokens))
        steps = [load_bfloat16(fn, scales, 2 * v * LANES) for v in vectors]
        self._add_group(self._dots(rows, quads, block * pages.block, sums), block, vectors, steps)

    def _add_nibble_keys(self, keys: Value, block: Value, rows: range, vectors: range) -> None:
        fn, pages = self.fn, self.pages
        row_bytes = QUAD * pages.page_tokens
        packed = pages.block // QUAD // 2
        first = fn.at(keys, block * (packed * row_bytes), vectors.start * VECTOR_BYTES)
        both = [
            [unpacked(register) for register in self._registers(first, i * row_bytes, len(vectors))]
            for i in range(packed)
        ]
        for half in range(2):
            group = block * 2 + half
            at = group * pages.page_tokens
            zeros = [
                load_bytes(fn, pages.key_zeros(keys), at, lane, lanes=self.isa.lanes)
                for lane in range(vectors.start * LANES, vectors.stop * LANES, self.isa.lanes)
            ]
            sums = {}
            for row in rows:
                total = (-self._query_sum(row, group)).splat(self.isa.lanes)
                sums[row] = [zero * total for zero in zeros]
            quads = [[pair[half] for pair in registers] for registers in both]
            steps = [group_scale(load_bytes(fn, pages.key_scales(keys), at, v * LANES)) for v in vectors]
            start = block * pages.block + half * (packed * QUAD)
            self._add_group(self._dots(rows, quads, start, sums), block, vectors, steps)

    def _query_sum(self, row: int, group: Value) -> Value:
        return self.fn.load(I32, self.query_sums, group << 2, 4 * row * self.key_groups, align=4)

    def _registers(self, pointer: Value, offset: int, vectors: int) -> list[Value]:
        size = 4 * self.isa.lanes
        return [self.fn.load(self.register, pointer, offset + i * size, align=4) for i in range(vectors * self.parts)]

    def _dots(
        self, rows: range, quads: Sequence[Sequence[Value]], element: Value, starts: dict[int, list[Value]]
    ) -> dict[int, list[Value]]:
        """``start + sum of q code * key code`` over quads of elements, in vectors of 16 keys, by row."""
        fn, head_dim, found = self.fn, self.pages.head_dim, {}
        top = _TOP[self.pages.key_bits]
        sums = {row: [Dot(start) for start in starts[row]] for row in rows}
        for i, registers in enumerate(quads):
            for row in rows:
                query = fn.load(I32, self.query_codes, element, row * head_dim + QUAD * i, align=4)
                splat = query.splat(self.isa.lanes)
                sums[row] = [self.isa.add(s, code, splat, top) for s, code in zip(sums[row], registers, strict=True)]
        for row in rows:
            found[row] = self._joined([self.isa.total(s) for s in sums[row]])
        return found

    def _add_group(self, dots: dict[int, list[Value]], block: Value, vectors: range, steps: Sequence[Value]) -> None:
        """``score = score + dot * key scale * q scale``."""
        fn = self.fn
        for row, found in dots.items():
            step = fn.load(F32, self.query_scales, block << 2, 4 * row * self.blocks, align=4).splat(LANES)
            for v, dot, key_step in zip(vectors, found, steps, strict=True):
                cell = row * 4 * self.pages.page_tokens + v * VECTOR_BYTES
                old = fn.load(VECTOR, self.scores, cell, align=64)
                fn.store(fn.fma(dot.to_float() * key_step, step, old), self.scores, cell, align=64)

    # --- values -----------------------------------------------------------------------------

    def _quantize(self, values: Value, visible: Sequence[Sequence[Value]]) -> None:
        """Codes of a page's weights, and the step between a row's codes, group by group."""
        fn, pages = self.fn, self.pages
        vectors, slots = range(0, pages.page_tokens, LANES), pages.page_tokens
        scales = pages.value_scales(values)
        with fn.loop(0, self.value_groups) as group:
            if pages.value_bits == 8:
                steps = [load_bfloat16(fn, scales, 2 * v) for v in vectors]
            else:
                steps = [group_scale(load_bytes(fn, scales, group.index * slots, v)) for v in vectors]
            weights = [
                [
                    mask.select(chance * step, 0.0)
                    for mask, chance, step in zip(visible[row // self.group], chances, steps, strict=True)
                ]
                for row, chances in enumerate(self._page_of(self.scores))
            ]
            largest = row_maxima(weights).maximum(TINY)
            fn.store(fn.const(VECTOR, float(LARGEST)) / largest, self.inverses, align=64)
            fn.store(largest * (1 / LARGEST), self.steps, group.index * VECTOR_BYTES, align=64)
            for row, found in enumerate(weights):
                inverse = self.of_row(self.inverses, row)
                for v, weight in zip(vectors, found, strict=True):
                    rounded = fn.fma(weight, inverse, fn.const(VECTOR, _ROUND))
                    code = rounded.bits(vec(I32, LANES)).to_int(I8)
                    fn.store(code, self.codes, group.index * slots, row * self.value_groups * slots + v, align=16)

    def _add_bytes(self, values: Value) -> None:
        """``sum = sum + (sum of code * value code) * step``, some of D at a time."""
        fn, pages = self.fn, self.pages
        height, width = tile(self.isa, self.count, pages.head_dim // LANES)
        for row in range(0, self.count, height):
            rows = range(row, min(row + height, self.count))
            steps = {r: [self.of_row(self.steps, r)] * width for r in rows}
            with fn.loop(0, pages.head_dim, width * LANES) as d:
                zeros = [fn.const(self.register, 0)] * (len(rows) * width * self.parts)
                with fn.loop(0, pages.page_tokens // QUAD, 1, zeros) as quad:
                    at = fn.at(values, quad.index * (QUAD * pages.head_dim), d.index << 2)
                    registers = self._registers(at, 0, width)
                    sums = iter(quad.values)
                    quad.values = []
                    for r in rows:
                        codes = fn.load(I32, self.codes, quad.index << 2, r * pages.page_tokens, align=4)
                        splat = codes.splat(self.isa.lanes)
                        quad.values += [self.isa.dot(next(sums), splat, value) for value in registers]
                self._add(d.index, rows, steps, quad.results, width)

    def _add_nibbles(self, values: Value) -> None:
        """The same for a block of two groups at a time, each with its weights; zero points come off in bytes."""
        fn, pages = self.fn, self.pages
        slots = pages.page_tokens
        height = min(self.count, 12 if self.isa.registers == 32 else 2)
        for row in range(0, self.count, height):
            rows = range(row, min(row + height, self.count))
            with fn.loop(0, pages.groups, 2) as group:
                zeros = [fn.const(self.register, 0)] * (len(rows) * 2 * self.parts)
                with fn.loop(0, slots // QUAD, 1, zeros) as quad:
                    at = fn.at(values, quad.index * (2 * pages.head_dim), group.index << 5)
                    pairs = [unpacked(register) for register in self._registers(at, 0, 1)]
                    zero_at = fn.at(pages.value_zeros(values), quad.index * (4 * pages.groups), group.index << 2)
                    halves = []
                    for half in range(2):
                        zero = fn.load(I32, zero_at, 4 * half, align=1).splat(self.isa.lanes)
                        halves.append([self._bytes_less(pair[half], zero) for pair in pairs])
                    sums = iter(quad.values)
                    quad.values = []
                    for r in rows:
                        for half, registers in enumerate(halves):
                            place = fn.at(self.codes, group.index * slots, quad.index << 2)
                            codes = fn.load(I32, place, (r * self.value_groups + half) * slots, align=4)
                            splat = codes.splat(self.isa.lanes)
                            quad.values += [self.isa.dot(next(sums), splat, value) for value in registers]
                places = [fn.at(self.steps, (group.index + half) * VECTOR_BYTES) for half in range(2)]
                steps = {r: [self.of_row(place, r) for place in places] for r in rows}
                self._add(group.index << 4, rows, steps, quad.results, 2)

    def _bytes_less(self, codes: Value, zero: Value) -> Value:
        """Lanes of four bytes, each less its zero point."""
        quads = vec(I8, 4 * self.isa.lanes)
        return (codes.bits(quads) - zero.bits(quads)).bits(codes.type)

    def _add(
        self, element: Value, rows: range, steps: dict[int, list[Value]], registers: Sequence[Value], width: int
    ) -> None:
        """Add sums of products, ``[row][register]``, to what was summed for the elements from one on."""
        fn, size = self.fn, width * self.parts
        for i, r in enumerate(rows):
            dots = self._joined(registers[i * size : (i + 1) * size])
            for c, (dot, step) in enumerate(zip(dots, steps[r], strict=True)):
                cell = r * self.head_bytes + c * VECTOR_BYTES
                old = fn.load(VECTOR, self.sums, element << 2, cell, align=64)
                fn.store(fn.fma(dot.to_float(), step, old), self.sums, element << 2, cell, align=64)

    def _joined(self, registers: Sequence[Value]) -> list[Value]:
        """Registers of the instruction set as vectors of 16."""
        if self.parts == 1:
            return list(registers)
        pairs = zip(registers[::2], registers[1::2], strict=True)
        return [low.shuffle(range(LANES), high) for low, high in pairs]
