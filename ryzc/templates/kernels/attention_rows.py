"""Attention of some rows over the pages of a sequence: what is common to the dtypes of the cache.

A row is one query, a head of a token; rows stand ``[token][head]`` for consecutive tokens of a sequence
and the heads that share a KV head. They take in page by page, in ascending order, each keeping the
largest score so far (``best``), 16 partial sums of probabilities (``total``) and the sums over values;
both kinds of sums are relative to ``best``, and rescaled where it rises. At the end stands ``sum / total``.
Every row goes through the same operations in any company.
Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I16, I32, LINE, Value, vec
from ryzc.templates.kernels.pages import Pages
from ryzc.templates.kernels.scalar_math import exp2

LANES = 16
VECTOR = vec(F32, LANES)
VECTOR_BYTES = 4 * LANES
MOST = 12
"""Rows that go through a page together: with two vectors of keys or values each their sums fill the registers."""
LOWEST = -1e30
"""Below any score, and finite: the first page's rescaling must not be infinity minus infinity."""
LEAST = -64.0
"""Where chances are multiplied by scales they are at least 2 to this power, so that the products stay normal numbers,
with which CPUs are fast."""


def tile(isa: Isa, rows: int, vectors: int) -> tuple[int, int]:
    """Rows and vectors of keys or values that meet at a time: their sums fit the registers beside what is loaded."""
    sums, shared = (24, 2) if isa.registers == 32 else (6, 1)
    height = min(rows, sums // shared)
    return height, max(w for w in range(1, sums // height + 1) if vectors % w == 0)


@dataclass(frozen=True)
class Turn:
    """A page in its turn.

    Attributes:
        index: its place in the sequence.
        more: whether another one follows.
        keys, next_keys, later_keys: of this head in the page and in the next two; where there are fewer, of the next
            head in the first page, which may not exist.
    """

    index: Value
    more: Value
    keys: Value
    next_keys: Value
    later_keys: Value


class Rows(ABC):
    """The queries of ``tokens`` consecutive tokens and ``group`` heads of one KV head, with their state.

    :meth:`read` them, :meth:`attend`, :meth:`write` the results.
    """

    def __init__(self, isa: Isa, pages: Pages, tokens: int, group: int, window: int) -> None:
        self.fn = fn = pages.fn
        self.isa, self.pages, self.tokens, self.group, self.window = isa, pages, tokens, group, window
        self.count = tokens * group
        self.head_bytes = 4 * pages.head_dim
        self.sums = fn.stack(F32, self.count * pages.head_dim)
        self.totals = fn.stack(F32, self.count * LANES)
        self.best = fn.stack(F32, LANES)
        self.scale = fn.stack(F32, LANES)

    @abstractmethod
    def read(self, q: Value, stride: int, scale: float) -> None:
        """Take queries ``[tokens][group][D]``, the tokens ``stride`` bytes apart, and start from nothing."""

    @abstractmethod
    def attend(self, table: Value, kv_head: Value, position: Value) -> None:
        """Go through the pages that the rows see; ``position`` is the first token's."""

    def write(self, out: Value, stride: int) -> None:
        """Results ``[tokens][group][D]``, the tokens ``stride`` bytes apart."""
        fn = self.fn
        for row, at in self.places(stride):
            total = fn.load(VECTOR, self.totals, row * VECTOR_BYTES, align=64)
            inverse = (fn.const(F32, 1.0) / total.sum()).splat(LANES)
            with fn.loop(0, self.head_bytes, VECTOR_BYTES) as d:
                value = fn.load(VECTOR, self.sums, row * self.head_bytes, d.index, align=64)
                fn.store(value * inverse, out, at, d.index, align=4)

    def places(self, stride: int) -> list[tuple[int, int]]:
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

    def visible(self, slot: Value) -> list[Value]:
        """Which keys of a page's vectors a query at a slot (counted from this page's start) sees."""
        fn, lanes = self.fn, vec(I32, LANES)
        query = slot.to_int(I32).splat(LANES)
        masks = []
        for first in range(0, self.pages.page_tokens, LANES):
            back = query - fn.const(lanes, [first + i for i in range(LANES)])
            mask = back.compare(">=", 0)
            masks.append(mask & back.compare("<", self.window) if self.window else mask)
        return masks

    def masked(self, scores: Sequence[Sequence[Value]], visible: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """Scores ``[row][vector of keys]``, those that a row's token does not see below all others."""
        return [
            [mask.select(score, LOWEST) for mask, score in zip(visible[row // self.group], found, strict=True)]
            for row, found in enumerate(scores)
        ]

    def rise(self, best: Value, scores: Sequence[Sequence[Value]], steps: Value | None = None) -> Value:
        """The largest scores so far, with those of a page; what was summed is rescaled to them.

        Where each row's scores are in units of its own, ``steps`` has these, a row a lane.
        """
        maxima = row_maxima(scores)
        new = best.larger(maxima if steps is None else maxima * steps)
        self.fn.store(new, self.best, align=64)
        self.rescale(exp2(self.fn, best - new))
        return new

    def chances(
        self,
        row: Value | int,
        scores: Sequence[Value],
        visible: Sequence[Value],
        least: float = -125.0,
        step: Value | None = None,
    ) -> Iterator[Value]:
        """What a row's scores of a page, in units of ``step``, count, vector by vector; its total will have them.

        ``visible`` says which of them the row sees.
        """
        fn, highest = self.fn, self.of_row(self.best, row)
        total = fn.load(VECTOR, self.totals, row * VECTOR_BYTES, align=64)
        for mask, score in zip(visible, scores, strict=True):
            below = score - highest if step is None else fn.fma(score, step, -highest)
            chance = mask.select(exp2(fn, below, least), 0.0)
            total = total + chance
            yield chance
        fn.store(total, self.totals, row * VECTOR_BYTES, align=64)

    def start(self) -> None:
        """Set all sums to zero."""
        zero = self.fn.const(VECTOR, 0.0)
        for row in range(self.count):
            with self.fn.loop(0, self.head_bytes, VECTOR_BYTES) as d:
                self.fn.store(zero, self.sums, row * self.head_bytes, d.index, align=64)
            self.fn.store(zero, self.totals, row * VECTOR_BYTES, align=64)

    def of_row(self, vector: Value, row: Value | int) -> Value:
        """A row's element, in all lanes, of a vector in memory that holds one a row."""
        return self.fn.load(F32, vector, row * 4, align=4).splat(LANES)

    def rescale(self, scale: Value) -> None:
        """Multiply what was summed by one factor a row; nothing to do where all are one."""
        fn = self.fn
        fn.store(scale, self.scale, align=64)
        with fn.when(scale.compare("!=", 1.0).bits(I16).compare("!=", 0)):
            for row in range(self.count):
                factor = self.of_row(self.scale, row)
                total = fn.load(VECTOR, self.totals, row * VECTOR_BYTES, align=64)
                fn.store(total * factor, self.totals, row * VECTOR_BYTES, align=64)
                with fn.loop(0, self.head_bytes, VECTOR_BYTES) as d:
                    value = fn.load(VECTOR, self.sums, row * self.head_bytes, d.index, align=64)
                    fn.store(value * factor, self.sums, row * self.head_bytes, d.index, align=64)

    def prefetch(self, where: Value, size: int) -> None:
        """Ask for lines of the next page while this one is at work: no CPU foresees where it lies."""
        for line in range(0, size, LINE):
            self.fn.prefetch(where, line, level=2)


class PageRows(Rows):
    """Rows that take in one page after another."""

    @abstractmethod
    def page(self, slot: Value, best: Value, turn: Turn) -> Value:
        """Take in a page; the first token sits at ``slot`` counted from its start. Returns the largest scores."""

    def begin(self, first: Value, keys: Value) -> None:
        """Prepare to take in pages; the place and the keys of the first are given."""
        del first, keys

    def attend(self, table: Value, kv_head: Value, position: Value) -> None:
        """Go through the pages that the rows see; ``position`` is the first token's."""
        fn, size = self.fn, self.pages.page_tokens
        first, last = self._oldest(position) // size, (position + (self.tokens - 1)) // size
        self.begin(first, self.pages.keys(table, first, kv_head))
        beyond = self.pages.keys(table, first, kv_head + 1)
        with fn.loop(first, last + 1, 1, [fn.const(VECTOR, LOWEST)]) as page:
            later = []
            for index in (page.index + 1, page.index + 2):
                keys = self.pages.keys(table, fn.below(index, last), kv_head)
                later.append(index.compare("<=", last).select(keys, beyond))
            here = self.pages.keys(table, page.index, kv_head)
            turn = Turn(page.index, page.index.compare("<", last), here, *later)
            page.values = [self.page(position - page.index * size, page.values[0], turn)]


def row_maxima(rows: Sequence[Sequence[Value]]) -> Value:
    """The largest element of each of up to 16 rows, as :func:`fold_rows`. Where one is a NaN, so may the result be."""
    return fold_rows(rows, Value.larger)


def fold_rows(rows: Sequence[Sequence[Value]], combine: Callable[[Value, Value], Value]) -> Value:
    """All elements of each of up to 16 rows combined, row ``r``'s in lane ``r``; lanes without a row repeat others.

    Halves of two rows' vectors side by side, then quarters of four, until each lane holds one row.
    """
    found = [reduce(combine, row) for row in rows]
    part = LANES
    while part > 1:
        half = part // 2
        low = [i for start in range(0, 2 * LANES, part) for i in range(start, start + half)]
        found = [
            combine(a.shuffle(low, b), a.shuffle([i + half for i in low], b))
            for a, b in zip(found[::2], [*found[1::2], *found[-1:]], strict=False)
        ]
        part = half
    return found[0]


def joined(registers: Sequence[Value]) -> list[Value]:
    """Registers of an instruction set as vectors of 16."""
    if registers[0].lanes == LANES:
        return list(registers)
    pairs = zip(registers[::2], registers[1::2], strict=True)
    return [low.shuffle(range(LANES), high) for low, high in pairs]
