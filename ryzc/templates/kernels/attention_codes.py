"""Attention over keys and values kept as codes: sums over products are exact integers.

Queries come transformed as keys and values were, see :mod:`.hadamard`, and are quantized by blocks to codes of two
bytes, see :mod:`.head_codes`: beside the rounding of keys, theirs then counts for nothing. A block of a key has one
scale, or two groups with a scale each. Of each page, in ascending order:

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ryzc.codegen.isa import Dot, Isa
from ryzc.codegen.vector import F32, I8, I32, LINE, Value, vec
from ryzc.templates.kernels.activations import TINY
from ryzc.templates.kernels.attention_rows import (
    LANES,
    LEAST,
    VECTOR,
    VECTOR_BYTES,
    PageRows,
    Turn,
    joined,
    row_maxima,
    tile,
)
from ryzc.templates.kernels.hadamard import hadamard
from ryzc.templates.kernels.head_codes import (
    QUERY_BASE,
    group_scale,
    load_bfloat16,
    load_bytes,
    query_codes,
    two_bytes,
    unpacked,
)
from ryzc.templates.kernels.pages import Pages

QUAD = 4
LARGEST = 127
_ROUND = 1.5 * 2.0**23
"""Added to a small number, it leaves the nearest integer in the lowest bits."""
_TOP = {8: 255, 4: 30}
"""The largest code of a key, by its bits."""


@dataclass(frozen=True)
class _Group:
    """Elements of a page's keys that share a scale.

    Attributes:
        block, index: which block and which group of the head.
        element: where in the block it begins.
        quads: how many quads of elements it has.
        load: gives a quad of all keys.
        steps: scales, by vectors of 16 keys.
        zeros: zero points, by registers, where codes have them.
    """

    block: Value
    index: Value
    element: int
    quads: int
    load: Callable[[int], list[Value]]
    steps: list[Value]
    zeros: list[Value] | None


class CodeRows(PageRows):
    """Rows over a cache of codes."""

    def __init__(self, isa: Isa, pages: Pages, tokens: int, group: int, window: int) -> None:
        super().__init__(isa, pages, tokens, group, window)
        fn, head_dim, slots = self.fn, pages.head_dim, pages.page_tokens
        self.parts = LANES // isa.lanes
        self.register = vec(I32, isa.lanes)
        self.blocks = head_dim // pages.block
        self.key_groups = self.blocks if pages.key_bits == 8 else pages.groups
        self.value_groups = 1 if pages.value_bits == 8 else pages.groups
        self.query_bytes = [fn.stack(I8, self.count * head_dim) for _ in range(2)]
        self.query_scales = fn.stack(F32, self.count * self.blocks)
        self.query_starts = fn.stack(I32, self.count * self.key_groups)
        self.scores_bytes = 4 * self.count * slots
        self.scores = fn.stack(F32, 2 * self.count * slots)
        self.codes = fn.stack(I8, self.count * self.value_groups * slots)
        self.inverses = fn.stack(F32, LANES)
        self.steps = fn.stack(F32, self.value_groups * self.count + LANES)

    def read(self, q: Value, stride: int, scale: float) -> None:
        fn, head_dim = self.fn, self.pages.head_dim
        self.start()
        per_group = head_dim // self.key_groups // LANES
        for row, at in self.places(stride):
            codes, scales = query_codes(fn, fn.at(q, at), head_dim, self.pages.block)
            for i, code in enumerate(codes):
                for place, part in zip(self.query_bytes, two_bytes(code), strict=True):
                    fn.store(part.to_int(I8), place, row * head_dim + i * LANES, align=16)
            for g in range(self.key_groups):
                first, *others = codes[g * per_group : (g + 1) * per_group]
                # Codes of 8 bits are stored with 128 added, codes of 4 bits have a zero point.
                start = sum(others, first).sum() * (-128 if self.pages.key_bits == 8 else -1)
                fn.store(start, self.query_starts, 4 * (row * self.key_groups + g), align=4)
            for b, step in enumerate(scales):
                base2 = step * (scale * math.log2(math.e))
                fn.store(base2, self.query_scales, 4 * (row * self.blocks + b), align=4)

    def write(self, out: Value, stride: int) -> None:
        super().write(out, stride)
        with self.fn.loop(0, self.tokens) as token, self.fn.loop(0, self.group) as head:
            place = self.fn.at(out, token.index * stride, head.index * self.head_bytes)
            hadamard(self.fn, place, self.pages.head_dim, self.pages.block)

    def begin(self, first: Value, keys: Value) -> None:
        self._score(keys, keys, self.fn.at(self.scores, (first & 1) * self.scores_bytes))

    def page(self, slot: Value, best: Value, turn: Turn) -> Value:
        """The next page's scores come first: they wait for nothing, and fill the time in which this page's wait.

        Scores lie in two places in turn.
        """
        fn, pages = self.fn, self.pages
        here, there = (fn.at(self.scores, ((turn.index + i) & 1) * self.scores_bytes) for i in range(2))
        with fn.when(turn.more):
            self._score(turn.next_keys, turn.later_keys, there)
        values = fn.at(turn.keys, pages.key_region)
        visible = [self.visible(slot + token) for token in range(self.tokens)]
        scores = self.masked(self._page_of(here), visible)
        new = self.rise(best, scores)
        for row, found in enumerate(scores):
            self._ask(turn.later_keys, 1, fn.i64(row), self.count)
            for v, chance in enumerate(self.chances(row, found, visible[row // self.group], LEAST)):
                fn.store(chance, here, row * 4 * pages.page_tokens + v * VECTOR_BYTES, align=64)
        self._quantize(values, visible, here)
        add = self._add_bytes if pages.value_bits == 8 else self._add_nibbles
        add(values, turn.later_keys)
        return new

    # What the page after the next holds of this head is asked for in thirds: while scores, chances and sums are made.

    def _lines(self, parts: int) -> int:
        """Lines of a third, in so many equal parts."""
        lines = -(-self.pages.head_region // LINE)
        return -(-lines // (3 * parts))

    def _ask(self, later: Value, third: int, part: Value, parts: int, step: tuple[int, int] = (0, 1)) -> None:
        """Ask for one of so many parts of a third, or for the ``i``-th of ``n`` steps of it."""
        lines, (i, n) = self._lines(parts), step
        start, stop = (lines * at // n for at in (i, i + 1))
        place = self.fn.at(later, part * (lines * LINE), (third * self._lines(1) + start) * LINE)
        self.prefetch(place, (stop - start) * LINE)

    def _page_of(self, vectors: Value) -> list[list[Value]]:
        """What stands for each row and slot in memory, ``[row][vector of slots]``."""
        row_bytes = 4 * self.pages.page_tokens
        return [
            [self.fn.load(VECTOR, vectors, row * row_bytes + v, align=64) for v in range(0, row_bytes, VECTOR_BYTES)]
            for row in range(self.count)
        ]

    # --- keys -------------------------------------------------------------------------------

    def _score(self, keys: Value, later: Value, scores: Value) -> None:
        """Scores of a page, block by block, while a part of a later one is asked for."""
        fn, pages = self.fn, self.pages
        vectors = pages.page_tokens // LANES
        height, width = tile(self.isa, self.count, vectors)
        for v in range(0, vectors, width):
            for row in range(0, self.count, height):
                rows, some = range(row, min(row + height, self.count)), range(v, v + width)
                with fn.loop(0, self.blocks, 1, [fn.const(VECTOR, 0.0)] * (len(rows) * width)) as block:
                    for group in self._groups(keys, block.index, some):
                        block.values = self._add_group(group, rows, block.values, later if row == v == 0 else None)
                sums = iter(block.results)
                for cell in (r * 4 * pages.page_tokens + v * VECTOR_BYTES for r in rows for v in some):
                    fn.store(next(sums), scores, cell, align=64)

    def _groups(self, keys: Value, block: Value, vectors: range) -> list[_Group]:
        """What shares a scale in a block of keys: all of it, or two groups."""
        fn, pages = self.fn, self.pages
        row_bytes, quads = QUAD * pages.page_tokens, pages.block // QUAD
        if pages.key_bits == 8:
            first = fn.at(keys, block * (quads * row_bytes), vectors.start * VECTOR_BYTES)
            scales = fn.at(pages.key_scales(keys), block * (2 * pages.page_tokens))
            steps = [load_bfloat16(fn, scales, 2 * v * LANES) for v in vectors]
            return [_Group(block, block, 0, quads, partial(self._registers, first, vectors), steps, None)]
        first = fn.at(keys, block * (quads // 2 * row_bytes), vectors.start * VECTOR_BYTES)
        found = []
        for half in range(2):
            group = block * 2 + half
            at, scales, zeros = group * pages.page_tokens, pages.key_scales(keys), pages.key_zeros(keys)
            lanes = range(vectors.start * LANES, vectors.stop * LANES, self.isa.lanes)
            found.append(
                _Group(
                    block,
                    group,
                    half * (pages.block // 2),
                    quads // 2,
                    partial(self._nibbles, first, vectors, half),
                    [group_scale(load_bytes(fn, scales, at, v * LANES)) for v in vectors],
                    [load_bytes(fn, zeros, at, lane, lanes=self.isa.lanes) for lane in lanes],
                )
            )
        return found

    def _registers(self, pointer: Value, vectors: range, quad: int) -> list[Value]:
        """A quad of elements of the keys in some vectors."""
        size, row_bytes = 4 * self.isa.lanes, QUAD * self.pages.page_tokens
        return [
            self.fn.load(self.register, pointer, quad * row_bytes + i * size, align=4)
            for i in range(len(vectors) * self.parts)
        ]

    def _nibbles(self, pointer: Value, vectors: range, half: int, quad: int) -> list[Value]:
        """The same of packed keys."""
        return [unpacked(register, half) for register in self._registers(pointer, vectors, quad)]

    def _add_group(self, group: _Group, rows: range, scores: Sequence[Value], later: Value | None) -> list[Value]:
        """``score + (sum of q code * key code) * key scale * q scale``, ``[row][vector of keys]``."""
        fn, top = self.fn, _TOP[self.pages.key_bits]
        nothing = [Dot(fn.const(self.register, 0))] * (len(group.steps) * self.parts)
        sums = dict.fromkeys(rows, nothing)
        for part, place in enumerate(self.query_bytes):
            if part:  # what was summed counts 254, and the rest is added to it
                for row in rows:
                    pairs = zip(sums[row], self._starts(group, row), strict=True)
                    sums[row] = [Dot(self.isa.total(dot) * QUERY_BASE + start) for dot, start in pairs]
            for quad in range(group.quads):
                registers = group.load(quad)
                if later is not None and not part:
                    turn = group.element // QUAD + quad, self.pages.block // QUAD
                    self._ask(later, 0, group.block, self.blocks, turn)
                for row in rows:
                    at = row * self.pages.head_dim + group.element + QUAD * quad
                    splat = fn.load(I32, place, group.block * self.pages.block, at, align=4).splat(self.isa.lanes)
                    sums[row] = [
                        self.isa.add(s, code, splat, top) for s, code in zip(sums[row], registers, strict=True)
                    ]
        before, after = iter(scores), []
        for row in rows:
            step = fn.load(F32, self.query_scales, group.block << 2, 4 * row * self.blocks, align=4).splat(LANES)
            dots = joined([self.isa.total(s) for s in sums[row]])
            for dot, key_step in zip(dots, group.steps, strict=True):
                after.append(fn.fma(dot.to_float() * key_step, step, next(before)))
        return after

    def _starts(self, group: _Group, row: int) -> list[Value]:
        """What a row's sums start from, to take off what was added to the codes of keys."""
        registers = len(group.steps) * self.parts
        if group.zeros is None and self.isa.signed_bytes:
            return [self.fn.const(self.register, 0)] * registers
        place = 4 * row * self.key_groups
        start = self.fn.load(I32, self.query_starts, group.index << 2, place, align=4).splat(self.isa.lanes)
        return [start] * registers if group.zeros is None else [zero * start for zero in group.zeros]

    # --- values -----------------------------------------------------------------------------

    def _quantize(self, values: Value, visible: Sequence[Sequence[Value]], chances: Value) -> None:
        """Codes of a page's weights, and the step between a row's codes, some groups at a time.

        As many as make 16 rows: their maxima lie side by side in one vector.
        """
        fn, pages = self.fn, self.pages
        vectors, slots, groups = range(0, pages.page_tokens, LANES), pages.page_tokens, self.value_groups
        together = max(g for g in range(1, groups + 1) if groups % g == 0 and (g == 1 or g * self.count <= LANES))
        rows = self._page_of(chances)
        with fn.loop(0, groups, together) as first:
            weights = []
            for g in range(together):
                steps = [self._value_steps(values, first.index + g, v) for v in vectors]
                for row, found in enumerate(rows):
                    cells = zip(visible[row // self.group], found, steps, strict=True)
                    weights.append([mask.select(chance * step, 0.0) for mask, chance, step in cells])
            largest = row_maxima(weights).maximum(TINY)
            fn.store(fn.const(VECTOR, float(LARGEST)) / largest, self.inverses, align=64)
            fn.store(largest * (1 / LARGEST), self.steps, first.index * (4 * self.count), align=4)
            for i, found in enumerate(weights):
                inverse = self.of_row(self.inverses, i)
                g, row = divmod(i, self.count)
                place = fn.at(self.codes, first.index * slots, (row * groups + g) * slots)
                for v, weight in zip(vectors, found, strict=True):
                    rounded = fn.fma(weight, inverse, fn.const(VECTOR, _ROUND))
                    fn.store(rounded.bits(vec(I32, LANES)).to_int(I8), place, v, align=16)

    def _value_steps(self, values: Value, group: Value, first: int) -> Value:
        """The scales of a group of 16 values."""
        fn, pages = self.fn, self.pages
        scales = pages.value_scales(values)
        if pages.value_bits == 8:
            return load_bfloat16(fn, scales, 2 * first)
        return group_scale(load_bytes(fn, scales, group * pages.page_tokens, first))

    def _add_bytes(self, values: Value, later: Value) -> None:
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
                    if row == 0:
                        tiles = pages.head_dim // LANES // width
                        part = quad.index * tiles + d.index // (width * LANES)
                        self._ask(later, 2, part, pages.page_tokens // QUAD * tiles)
                    registers = self._registers(at, range(width), 0)
                    sums = iter(quad.values)
                    quad.values = []
                    for r in rows:
                        codes = fn.load(I32, self.codes, quad.index << 2, r * pages.page_tokens, align=4)
                        splat = codes.splat(self.isa.lanes)
                        quad.values += [self.isa.dot(next(sums), splat, value) for value in registers]
                self._add(d.index, rows, steps, quad.results, width)

    def _add_nibbles(self, values: Value, later: Value) -> None:
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
                    if row == 0:
                        part = quad.index * self.blocks + (group.index >> 1)
                        self._ask(later, 2, part, slots // QUAD * self.blocks)
                    packed = self._registers(at, range(1), 0)
                    zero_at = fn.at(pages.value_zeros(values), quad.index * (4 * pages.groups), group.index << 2)
                    halves = []
                    for half in range(2):
                        zero = fn.load(I32, zero_at, 4 * half, align=1).splat(self.isa.lanes)
                        halves.append([self._bytes_less(unpacked(register, half), zero) for register in packed])
                    sums = iter(quad.values)
                    quad.values = []
                    for r in rows:
                        for half, registers in enumerate(halves):
                            place = fn.at(self.codes, group.index * slots, quad.index << 2)
                            codes = fn.load(I32, place, (r * self.value_groups + half) * slots, align=4)
                            splat = codes.splat(self.isa.lanes)
                            quad.values += [self.isa.dot(next(sums), splat, value) for value in registers]
                place = fn.at(self.steps, group.index * (4 * self.count))
                steps = {r: [self.of_row(place, half * self.count + r) for half in range(2)] for r in rows}
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
            dots = joined(registers[i * size : (i + 1) * size])
            for c, (dot, step) in enumerate(zip(dots, steps[r], strict=True)):
                cell = r * self.head_bytes + c * VECTOR_BYTES
                old = fn.load(VECTOR, self.sums, element << 2, cell, align=64)
                fn.store(fn.fma(dot.to_float(), step, old), self.sums, element << 2, cell, align=64)
