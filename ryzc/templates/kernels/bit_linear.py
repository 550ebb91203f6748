"""Linear layer of ternary weights and int8 activations with one scale a token (BitNet b1.58, arXiv:2402.17764).

For every row ``n`` and token ``m``:

    y = float(sum over k of t[n, k] * x[m, k]) * (scale[n] * x_scale[m])

The sum is an exact integer, so a token's result has the same bits by every method, at every thread count and in every
batch. Kernels add up ``(t + 1) * x`` and take the sum of ``x`` away at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I8, I32, Function, Value, vec
from ryzc.errors import UnsupportedError
from ryzc.formats import TernaryFormat
from ryzc.formats.lanes import TILE
from ryzc.formats.trits import LAYOUTS, USUAL, WORD, Layout
from ryzc.templates.kernels import schedule
from ryzc.templates.kernels import token_activations as act
from ryzc.templates.kernels.bit_lookup import LOOKUP, REACH, Lookup
from ryzc.templates.kernels.epilogue import Epilogue
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share
from ryzc.templates.kernels.schedule import Method
from ryzc.templates.kernels.tiling import MOST, token_tiles, work_items

_ROW = 4 * TILE
_LOOKUP = "lookup-1x4"
_TOP = 2
"""The largest code."""
_QUAD = 4
"""Elements of K in an operand."""
_STRETCH = 768
"""Elements of K that a panel takes apart at a time: 24 KiB of codes, which stay in an L1 cache."""
_IN_PLACE = 16
"""Sums that are kept apart by plane, which saves shifting codes, where no more than so many are needed."""


@dataclass(frozen=True)
class BitLinear(Kernel):
    """Parameters of the family.

    Attributes:
        layout: of the packed weights, see :mod:`ryzc.formats.trits`.
        rows, columns: N and K; of a gated layer the rows of gate and up together.
        epilogue: ``store``, ``residual``, ``silu`` or ``relu2``, see :mod:`.epilogue`.
        out_stride: elements between tokens in ``out`` (and ``residual``).
        count: the context field with the number of tokens: ``token_count`` or ``row_count``.
        schedule: which method multiplies a batch of which size, see :mod:`.schedule`; changes no bit.
    """

    layout: str
    rows: int
    columns: int
    epilogue: str
    out_stride: int
    count: str = "token_count"
    schedule: tuple[str, ...] = ()

    operands: ClassVar[tuple[str, ...]] = ("weights", "codes", "records", "out")

    def __post_init__(self) -> None:
        require_multiple(self, 32, columns=self.columns)

    def methods(self, isa: Isa) -> tuple[str, ...]:
        if isa.registers == 32:
            plain: tuple[str, ...] = ("direct-4x2", "direct-12x2", "panel-8x2", "panel-12x2")
        else:
            plain = ("direct-1x4", "direct-2x2", "direct-4x2", "panel-4x2")
        if self._looks_up:
            plain = (_LOOKUP, *plain)
        return (*plain, *(f"{name}-p2048" for name in plain))

    def default_schedule(self, isa: Isa) -> tuple[str, ...]:
        if isa.registers == 32:
            usual = ("32:direct-12x2-p2048", "512:panel-12x2")
            return (f"1:{_LOOKUP}-p2048", *usual) if self._looks_up else usual
        return ("1:direct-1x4-p2048", "7:direct-4x2-p2048", "512:panel-4x2")

    @property
    def _looks_up(self) -> bool:
        return self.layout == LOOKUP.name and self.columns <= REACH

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        if self.layout not in layouts(isa):
            raise UnsupportedError(
                f"{self.layout} ternary weights have no kernel for {isa.name}",
                hint="build with --ternary planes, which every target reads",
            )
        fn = begin(module, symbol, self.operands)
        tokens = context_field(fn, self.count)
        sums = fn.stack(I32, MOST * TILE)
        for method in schedule.each(fn, tokens, self.schedule or self.default_schedule(isa)):
            if method.kind == "lookup":
                self._by_lookup(fn, isa, method, tokens)
            else:
                self._by_products(fn, isa, method, tokens, sums)
        fn.finish()

    def _by_products(self, fn: Function, isa: Isa, method: Method, tokens: Value, sums: Value) -> None:
        words = _READERS[self.layout](fn, isa, self.columns)
        multiply = _Multiply(fn, isa, words, self.columns, method, fn.args["codes"], sums)
        with work_items(fn, -(-self.rows // TILE), tokens, self.columns) as (tile, first, last):
            multiply.run(words.at(fn.args["weights"], tile), first, last)
            with fn.loop(first, last) as token:
                self._write(words, tile, token.index, fn.at(sums, (token.index - first) * _ROW), offset=True)

    def _by_lookup(self, fn: Function, isa: Isa, method: Method, tokens: Value) -> None:
        """Token by token, since each has tables of its own; every thread builds them for itself."""
        lookup = Lookup(fn, self.columns, method.vectors, method.prefetch)
        tables, sums = lookup.tables(), lookup.room()
        words = _READERS[self.layout](fn, isa, self.columns)
        with fn.loop(0, tokens) as token:
            first, last = share(fn, LOOKUP.tiles(self.rows))
            with fn.when(first.compare("<", last)):
                lookup.build(tables, fn.at(fn.args["codes"], token.index * self.columns))
            with token_tiles(fn, first, last, lookup.widths) as groups:
                for at, width in groups:
                    tile = at * 2  # of 32 rows
                    lookup.multiply(tables, words.at(fn.args["weights"], tile), sums, width)
                    with fn.loop(tile, fn.below(tile + 2 * width, -(-self.rows // TILE))) as each:
                        self._write(words, each.index, token.index, fn.at(sums, (each.index - tile) * _ROW))

    def _write(self, words: _Words, tile: Value, token: Value, sums: Value, *, offset: bool = False) -> None:
        """Finish a tile's sums of a token, ``int32 [32 rows]``; ``offset`` where they are of codes ``t + 1``."""
        fn, lanes = words.fn, words.isa.lanes
        scales = words.scales(fn.args["weights"], tile)
        record = fn.at(fn.args["records"], token * act.RECORD_BYTES)
        epilogue = Epilogue(self.epilogue, self.rows, self.out_stride)
        with epilogue.rows(fn, lanes, wide=True) as rows:
            x_scale = fn.load(F32, record, act.SCALE, align=4).splat(lanes)
            minus_sum = fn.load(I32, record, act.MINUS_SUM, align=4).splat(lanes)
            y = []
            for row in rows:
                total = fn.load(vec(I32, lanes), sums, row << 2, align=4 * lanes)
                if offset:
                    total = total + minus_sum
                scale = fn.load(vec(F32, lanes), scales, row << 2, align=4 * lanes)
                y.append(total.to_float() * (scale * x_scale))
            epilogue.write(fn, lanes, [y], rows, tile, fn.args["out"], token)


KERNEL = BitLinear


@dataclass(frozen=True)
class _Words:
    """How a layout's words become operands: unsigned codes of four elements of K, a byte each.

    Attributes:
        layout: the layout.
        elements: of K in a word.
    """

    fn: Function
    isa: Isa
    columns: int
    layout: ClassVar[Layout]

    @property
    def elements(self) -> int:
        return self.layout.elements

    def scales(self, weights: Value, tile: Value) -> Value:
        """The scales of the ``tile``-th 32 rows."""
        return self.fn.at(weights, tile * self.layout.tile_bytes(self.columns))

    def at(self, weights: Value, tile: Value) -> Value:
        """The words of the ``tile``-th 32 rows."""
        return self.fn.at(self.scales(weights, tile), self.layout.scale_bytes)

    def load(self, words: Value, index: Value, row: Value) -> Value:
        """A word of each lane's row."""
        align = 4 * self.isa.lanes
        return self.fn.load(vec(I32, self.isa.lanes), words, index * self.layout.word_bytes, row << 2, align=align)

    def operands(self, word: Value, count: int) -> list[Value]:
        """The first ``count`` operands of a word."""
        raise NotImplementedError

    def scaled(self, word: Value, count: int) -> list[tuple[Value, int]]:
        """The operands as far as they come without shifts: each with the power of two that it is multiplied by."""
        raise NotImplementedError


class _Planes(_Words):
    layout = LAYOUTS["planes"]

    def operands(self, word: Value, count: int) -> list[Value]:
        return [self.isa.field(word, 2 * p, 2) for p in range(count)]

    def scaled(self, word: Value, count: int) -> list[tuple[Value, int]]:
        return [(word & _signed(0x03030303 << 2 * p), 2 * p) for p in range(count)]


class _Dense(_Words):
    """A byte of five digits becomes one of four two-bit codes by table, and the fifth digit by comparison."""

    layout = LAYOUTS["dense"]

    def _split(self, word: Value) -> tuple[Value, Value]:
        fn = self.fn
        packed = word.bits(vec(I8, 64))
        table = [sum((trit + 1) << 2 * p for p, trit in enumerate(trits[:4])) for trits in _trits_of_bytes(self.layout)]
        low, high = (
            fn.call(
                "llvm.x86.avx512.vpermi2var.qi.512", packed.type, self._table(part, 0), packed, self._table(part, 1)
            )
            for part in (table[:128], table[128:])
        )
        planes = packed.compare("<", 0).select(high, low)
        return planes.bits(word.type), self._fifth(packed).bits(word.type)

    def _fifth(self, packed: Value) -> Value:
        # As signed bytes: 81 .. 127 and below -94 stand for 1, -94 .. -1 (162 and up) for 2.
        raised = packed + (-128)
        one = raised.compare(">=", 81 - 128).select(self.fn.const(packed.type, 1), 0)
        return raised.compare(">=", 162 - 128).select(self.fn.const(packed.type, 2), one)

    def _table(self, entries: list[int], half: int) -> Value:
        return self.fn.const(vec(I8, 64), [e - 256 * (e > 127) for e in entries[64 * half : 64 * half + 64]])

    def operands(self, word: Value, count: int) -> list[Value]:
        planes, fifth = self._split(word)
        return [*_Planes(self.fn, self.isa, self.columns).operands(planes, min(count, 4)), fifth][:count]

    def scaled(self, word: Value, count: int) -> list[tuple[Value, int]]:
        planes, fifth = self._split(word)
        return [*_Planes(self.fn, self.isa, self.columns).scaled(planes, min(count, 4)), (fifth, 0)][:count]


class _Magnitudes(_Dense):
    """As dense bytes, of which half stand for the negatives of the others; a tile's two halves of rows lie abreast."""

    layout = LOOKUP

    def scales(self, weights: Value, tile: Value) -> Value:
        return self.fn.at(super().scales(weights, tile >> 1), (tile & 1) * (4 * TILE))

    def at(self, weights: Value, tile: Value) -> Value:
        return self.fn.at(super().scales(weights, tile >> 1), (tile & 1) * TILE, self.layout.scale_bytes)

    def load(self, words: Value, index: Value, row: Value) -> Value:
        fn, lanes = self.fn, self.isa.lanes
        at, narrow = fn.at(words, index * self.layout.word_bytes, row), vec(I8, lanes)
        rows = [fn.load(narrow, at, byte * self.layout.rows, align=lanes) for byte in range(WORD)]
        halves = [rows[byte].shuffle(range(2 * lanes), rows[byte + 1]) for byte in (0, 2)]
        order = [byte * lanes + lane for lane in range(lanes) for byte in range(WORD)]
        return halves[0].shuffle(order, halves[1]).bits(vec(I32, lanes))

    def _fifth(self, packed: Value) -> Value:
        # Magnitudes of 41 and more stand for 2, or for 0 where bit 7 says that they are negative.
        zero = packed.compare("<", 41 - 128).select(self.fn.const(packed.type, 1), 0)
        one = packed.compare("<", 0).select(zero, 1)
        return packed.compare(">=", 41).select(self.fn.const(packed.type, 2), one)


_READERS: dict[str, type[_Words]] = {reader.layout.name: reader for reader in (_Planes, _Dense, _Magnitudes)}


def layouts(isa: Isa) -> tuple[str, ...]:
    """The layouts that an instruction set reads well; a dense byte takes a table of 256 entries."""
    return tuple(_READERS) if isa.registers == 32 else (USUAL,)


def _trits_of_bytes(layout: Layout) -> list[list[int]]:
    """What each byte of a layout stands for."""
    found: list[list[int]] = layout.trits_of(np.arange(256, dtype=np.uint8)[:, None])[..., 0].tolist()
    return found


def _signed(word: int) -> int:
    """A 32-bit pattern as LLVM's signed constant."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >> 31 else word


@dataclass(frozen=True)
class _Multiply:
    """Integer sums of a weight tile over some tokens, by one method, into ``sums`` ``[token][32 rows]``."""

    fn: Function
    isa: Isa
    words: _Words
    columns: int
    method: Method
    codes: Value
    sums: Value

    def run(self, tile: Value, first: Value, last: Value) -> None:
        """Multiply tokens ``first .. last``; ``tile`` points to the tile's words."""
        (self._by_panels if self.method.kind == "panel" else self._by_words)(tile, first, last)

    def load(self, token: Value, row: Value) -> Value:
        """The sums of the rows from ``row`` on, of the ``token``-th of a work item."""
        return self.fn.load(vec(I32, self.isa.lanes), self._at(token, row), align=4 * self.isa.lanes)

    def _at(self, token: Value, row: Value) -> Value:
        return self.fn.at(self.sums, token * _ROW, row << 2)

    @contextmanager
    def _register_tiles(self, first: Value, last: Value) -> Iterator[Iterator[tuple[Value, int, list[Value]]]]:
        """Loop over tiles of tokens and, within, of rows; the body is emitted once a width."""
        fn, lanes = self.fn, self.isa.lanes

        def emit() -> Iterator[tuple[Value, int, list[Value]]]:
            with token_tiles(fn, first, last, self.method.widths) as tiles:
                for m, width in tiles:
                    with fn.loop(0, TILE, self.method.vectors * lanes) as loop:
                        yield m, width, [loop.index + v * lanes for v in range(self.method.vectors)]

        yield emit()

    # --- weights decoded in registers ---------------------------------------------------------

    def _by_words(self, tile: Value, first: Value, last: Value) -> None:
        fn, words = self.fn, self.words
        whole, rest = divmod(self.columns, words.elements)
        with self._register_tiles(first, last) as tiles:
            for m, width, rows in tiles:
                x = fn.at(self.codes, m * self.columns)
                sums = self._sums(width, len(rows))

                body = partial(self._word, tile, x, rows)
                totals = sums.over(whole, words.elements // _QUAD, body)
                if rest:
                    totals = sums.over(1, rest // _QUAD, body, first=whole, totals=totals)
                for i, total in enumerate(totals):
                    t, v = divmod(i, len(rows))
                    fn.store(total, self._at(m - first + t, rows[v]), align=4 * self.isa.lanes)

    def _word(
        self, tile: Value, x: Value, rows: list[Value], index: Value, carries: list[Value], add: _Adder
    ) -> list[Value]:
        """Add one word of each row."""
        if self.method.prefetch:
            for line in range(0, self.words.layout.word_bytes, 64):
                self.fn.prefetch(tile, index * self.words.layout.word_bytes, self.method.prefetch + line)
        loaded = [self.words.load(tile, index, row) for row in rows]
        return add(self.fn.at(x, index * self.words.elements), loaded, carries)

    def _sums(self, width: int, vectors: int) -> _Sums:
        return _Sums(self.fn, self.isa, self.words, self.columns, width, vectors)

    # --- weights taken apart in L1 ------------------------------------------------------------

    def _by_panels(self, tile: Value, first: Value, last: Value) -> None:
        fn, lanes, words = self.fn, self.isa.lanes, self.words
        count, each = -(-self.columns // words.elements), words.elements // _QUAD
        stretches = max(1, round(self.columns / _STRETCH))
        longest = -(-count // stretches)
        panel = fn.stack(I32, longest * each * TILE)
        with fn.loop(first, last) as token, fn.loop(0, TILE, lanes) as row:
            fn.store(fn.const(vec(I32, lanes), 0), self._at(token.index - first, row.index), align=4 * lanes)
        with fn.loop(0, count, longest) as stretch:
            some = fn.below(fn.i64(count) - stretch.index, longest)
            if self.method.prefetch:
                with fn.loop(0, some * self.words.layout.word_bytes, 64) as line:
                    fn.prefetch(tile, stretch.index * self.words.layout.word_bytes, line.index, self.method.prefetch)
            with fn.loop(0, some) as word, fn.loop(0, TILE, lanes) as row:
                codes = words.operands(words.load(tile, stretch.index + word.index, row.index), each)
                for p, operand in enumerate(codes):
                    at = fn.at(panel, (word.index * each + p) * _ROW, row.index << 2)
                    fn.store(operand, at, align=4 * lanes)
            # The last word of a dense row may reach past K.
            quads = fn.below(some * each, fn.i64(self.columns // _QUAD) - stretch.index * each)
            with self._register_tiles(first, last) as tiles:
                for m, width, rows in tiles:
                    x = fn.at(self.codes, m * self.columns, stretch.index * words.elements)
                    before = [self.load(m - first + t, row) for t in range(width) for row in rows]

                    sums = self._sums(width, len(rows))
                    totals = sums.over_quads(quads, partial(self._quad, panel, x, rows, sums), before)
                    for i, total in enumerate(totals):
                        t, v = divmod(i, len(rows))
                        fn.store(total, self._at(m - first + t, rows[v]), align=4 * lanes)

    def _quad(
        self, panel: Value, x: Value, rows: list[Value], sums: _Sums, index: Value, carries: list[Value]
    ) -> list[Value]:
        """Add one operand of the panel."""
        lanes = self.isa.lanes
        operands = [self.fn.load(vec(I32, lanes), panel, index * _ROW, row << 2, align=4 * lanes) for row in rows]
        return sums.add_quad(self.fn.at(x, index * _QUAD), 0, operands, carries)


_Adder = Callable[[Value, list[Value], list[Value]], list[Value]]
_Body = Callable[[Value, list[Value], _Adder], list[Value]]


@dataclass(frozen=True)
class _Sums:
    """The sums ``[token][row vector]`` of a register tile, through loops over K."""

    fn: Function
    isa: Isa
    words: _Words
    columns: int
    width: int
    vectors: int

    @property
    def count(self) -> int:
        return self.width * self.vectors

    def _zeros(self) -> list[Value]:
        return [self.fn.const(vec(I32, self.isa.lanes), 0)] * self.count

    def over(
        self, words: int, quads: int, body: _Body, *, first: int = 0, totals: list[Value] | None = None
    ) -> list[Value]:
        """Add ``words`` words from the ``first`` on, ``quads`` operands of each, to ``totals``."""
        totals = totals or self._zeros()
        capacity = self.isa.capacity(_TOP)
        if capacity == 0 and self.count * quads <= _IN_PLACE:
            return self._in_place(words, quads, body, first, totals)

        def add(x: Value, loaded: list[Value], carries: list[Value]) -> list[Value]:
            split = [self.words.operands(word, quads) for word in loaded]
            for p in range(quads):
                carries = self.add_quad(x, p, [codes[p] for codes in split], carries)
            return carries

        return self._settled(
            self.fn.i64(words), capacity // quads, lambda i, carries: body(i + first, carries, add), totals
        )

    def over_quads(
        self, quads: Value, body: Callable[[Value, list[Value]], list[Value]], totals: list[Value]
    ) -> list[Value]:
        """Add operands that lie ready."""
        return self._settled(quads, self.isa.capacity(_TOP), body, totals)

    def _settled(
        self, steps: Value, most: int, body: Callable[[Value, list[Value]], list[Value]], totals: list[Value]
    ) -> list[Value]:
        """Run ``body`` so many times on long sums, which are settled after ``most`` of them at the latest."""
        fn, isa = self.fn, self.isa
        if most == 0:
            with fn.loop(0, steps, 1, totals) as loop:
                loop.values = body(loop.index, loop.values)
            return loop.results
        with fn.loop(0, steps, most, totals) as outer:
            stop = fn.below(outer.index + most, steps)
            with fn.loop(outer.index, stop, 1, [isa.nothing(fn)] * self.count) as inner:
                inner.values = body(inner.index, inner.values)
            outer.values = [isa.settle(t, c) for t, c in zip(outer.values, inner.results, strict=True)]
        return outer.results

    def _in_place(self, words: int, quads: int, body: _Body, first: int, totals: list[Value]) -> list[Value]:
        """Sums of a plane's operands are kept apart, and shifted once at the end."""
        fn, shifts = self.fn, [0] * quads

        def add(x: Value, loaded: list[Value], carries: list[Value]) -> list[Value]:
            split = [self.words.scaled(word, quads) for word in loaded]
            out = list(carries)
            for p in range(quads):
                shifts[p] = split[0][p][1]
                part = slice(p * self.count, (p + 1) * self.count)
                out[part] = self.add_quad(x, p, [codes[p][0] for codes in split], out[part])
            return out

        with fn.loop(first, first + words, 1, self._zeros() * quads) as loop:
            loop.values = body(loop.index, loop.values, add)
        for i, value in enumerate(loop.results):
            p, at = divmod(i, self.count)
            totals = [*totals[:at], totals[at] + value.sar(shifts[p]), *totals[at + 1 :]]
        return totals

    def add_quad(self, x: Value, p: int, operands: list[Value], carries: list[Value]) -> list[Value]:
        """Add the products of an operand of each row vector and each token's ``p``-th activations from ``x`` on."""
        fn, out = self.fn, []
        for t in range(self.width):
            quad = fn.load(I32, x, t * self.columns + p * _QUAD, align=4).splat(self.isa.lanes)
            for v, codes in enumerate(operands):
                out.append(self.isa.accumulate(carries[t * self.vectors + v], codes, quad))
        return out


def reference(
    fmt: TernaryFormat, stored: npt.NDArray[np.uint8], codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The meaning, ``float32 [T, N]``: exact integer sums, two roundings after their own.

    Args:
        stored: ``uint8 [N, row_bytes]``.
        codes: ``int8 [T, K]``.
        scales: ``float32 [T, 1]``.
    """
    trits, row_scales = fmt.parse(stored)
    sums = codes.astype(np.int64) @ trits.astype(np.int64).T
    return sums.astype(np.float32) * (row_scales[None, :] * scales)
