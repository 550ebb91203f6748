"""Grouped-query attention over the paged cache, by online softmax.

For a query the keys are taken page by page in ascending order, so its result depends on its own
sequence alone, never on the batch. Per page: the scores of its 32 keys side by side in lanes, their
largest joins the running maximum, what was summed so far is rescaled, and the page's values are added
with their probabilities. Slots past the query's position are never read as values and count nothing as
keys. Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I32, I64, Function, Value, vec
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share
from ryzc.templates.kernels.pages import Pages
from ryzc.templates.kernels.scalar_math import exp

LANES = 16
ROW = vec(F32, LANES)
LOWEST = -1e30
"""Below any score, and finite: the first page's rescaling must not be infinity minus infinity."""


@dataclass(frozen=True)
class Attention(Kernel):
    """Parameters.

    Attributes:
        heads, kv_heads, head_dim: of the layer; ``head_dim`` is a multiple of 16.
        page_tokens, page_bytes, dtype: of the cache; ``page_tokens`` is a multiple of 16.
        scale: factor of the scores.
        window: how many tokens back attention reaches, the query's own included; 0 is all.
        group: query heads of one KV head that a work item takes together, sharing its loads; changes
            no bit of the result.
    """

    heads: int
    kv_heads: int
    head_dim: int
    page_tokens: int
    page_bytes: int
    dtype: str
    scale: float
    window: int
    group: int

    operands: ClassVar[tuple[str, ...]] = ("q", "cache", "out")

    def __post_init__(self) -> None:
        require_multiple(self, LANES, head_dim=self.head_dim, page_tokens=self.page_tokens)
        require_multiple(self, self.kv_heads * self.group, heads=self.heads)

    @property
    def vectors(self) -> int:
        """Vectors of keys in a page."""
        return self.page_tokens // LANES

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        per_kv = self.heads // self.kv_heads
        groups = per_kv // self.group
        head_bytes = 4 * self.head_dim
        pages = Pages(fn, fn.args["cache"], self.head_dim, self.page_tokens, self.page_bytes, self.dtype)
        sums = fn.stack(F32, self.group * self.head_dim)
        chances = fn.stack(F32, self.group * self.page_tokens)
        start, stop = share(fn, context_field(fn, "token_count") * (self.kv_heads * groups))
        with fn.loop(start, stop) as items:
            token, unit = items.index // (self.kv_heads * groups), items.index % (self.kv_heads * groups)
            kv_head = unit // groups
            head = kv_head * per_kv + (unit % groups) * self.group
            position, sequence = (
                fn.load(I32, context_field(fn, name), token << 2, align=4).to_int(I64)
                for name in ("positions", "sequences")
            )
            first_head = (token * self.heads + head) * head_bytes
            q, out = fn.at(fn.args["q"], first_head), fn.at(fn.args["out"], first_head)
            table = pages.table(sequence)
            with fn.loop(0, self.group * self.head_dim, LANES) as d:
                fn.store(fn.const(ROW, 0.0), sums, d.index << 2, align=64)
            low = [fn.const(F32, LOWEST)] * self.group
            none = [fn.const(ROW, 0.0)] * self.group
            with fn.loop(self._first_page(fn, position), position // self.page_tokens + 1, 1, [*low, *none]) as page:
                keys = pages.keys(table, page.index, kv_head)
                base = page.index * self.page_tokens
                scores = self._scores(fn, isa, pages, q, keys)
                visible = [self._visible(fn, base, position, v) for v in range(self.vectors)]
                highest, totals = page.values[: self.group], page.values[self.group :]
                scales = []
                for g in range(self.group):
                    shown = [m.select(s * self.scale, LOWEST) for m, s in zip(visible, scores[g], strict=True)]
                    best = highest[g].maximum(_largest(shown))
                    scale = exp(fn, highest[g] - best)
                    totals[g] = totals[g] * scale.splat(LANES)
                    for v, (mask, score) in enumerate(zip(visible, shown, strict=True)):
                        chance = mask.select(exp(fn, score - best.splat(LANES)), 0.0)
                        totals[g] = totals[g] + chance
                        fn.store(chance, chances, 4 * (g * self.page_tokens + v * LANES), align=64)
                    highest[g] = best
                    scales.append(scale)
                slots = self._slots(fn, position - base)
                self._add_values(fn, isa, pages, keys, slots, chances, sums, scales)
                page.values = [*highest, *totals]
            for g, total in enumerate(page.results[self.group :]):
                inverse = (fn.const(F32, 1.0) / total.sum()).splat(LANES)
                with fn.loop(0, self.head_dim, LANES) as d:
                    value = fn.load(ROW, sums, d.index << 2, g * head_bytes, align=64)
                    fn.store(value * inverse, out, d.index << 2, g * head_bytes, align=4)
        fn.finish()

    def _first_page(self, fn: Function, position: Value) -> Value:
        if not self.window:
            return fn.i64(0)
        oldest = position - (self.window - 1)
        return oldest.compare(">", 0).select(oldest, 0) // self.page_tokens

    def _visible(self, fn: Function, base: Value, position: Value, vector: int) -> Value:
        """Which keys of a vector the query may see."""
        lanes = vec(I32, LANES)
        key = base.to_int(I32).splat(LANES) + fn.const(lanes, [vector * LANES + i for i in range(LANES)])
        query = position.to_int(I32).splat(LANES)
        visible = key.compare("<=", query)
        if self.window:
            visible = visible & (query - key).compare("<", self.window)
        return visible

    def _scores(self, fn: Function, isa: Isa, pages: Pages, q: Value, keys: Value) -> list[list[Value]]:
        """``sum over d of q[d] * key[d]``, ``[head][vector of keys]``, for as many heads at a time as fit."""
        width = max(1, (4 if isa.registers == 32 else 1) * 2 // self.vectors)
        scores: list[list[Value]] = []
        for first in range(0, self.group, width):
            scores += self._head_scores(fn, pages, q, keys, range(first, min(first + width, self.group)))
        return scores

    def _head_scores(self, fn: Function, pages: Pages, q: Value, keys: Value, heads: range) -> list[list[Value]]:
        count = len(heads) * self.vectors
        with fn.loop(0, self.head_dim, 2, [fn.const(ROW, 0.0)] * (2 * count)) as d:
            # Even and odd elements apart: twice the independent sums hide the latency of the FMA.
            values = list(d.values)
            for odd in range(2):
                row = fn.at(keys, d.index * (self.page_tokens * pages.size), odd * self.page_tokens * pages.size)
                k = [pages.load(row, LANES, v * LANES * pages.size) for v in range(self.vectors)]
                for i, g in enumerate(heads):
                    query = fn.load(F32, q, d.index << 2, 4 * (odd + g * self.head_dim), align=4).splat(LANES)
                    for v in range(self.vectors):
                        at = odd * count + i * self.vectors + v
                        values[at] = fn.fma(query, k[v], values[at])
            d.values = values
        joined = [d.results[i] + d.results[count + i] for i in range(count)]
        return [joined[i : i + self.vectors] for i in range(0, count, self.vectors)]

    def _slots(self, fn: Function, last: Value) -> tuple[Value, Value]:
        """The range of slots of a page that the query sees, if it sits at slot ``last`` counted from there."""
        end = last + 1
        stop = end.compare("<", self.page_tokens).select(end, self.page_tokens)
        if not self.window:
            return fn.i64(0), stop
        oldest = end - self.window
        return oldest.compare(">", 0).select(oldest, 0), stop

    def _add_values(
        self,
        fn: Function,
        isa: Isa,
        pages: Pages,
        keys: Value,
        slots: tuple[Value, Value],
        chances: Value,
        sums: Value,
        scales: Sequence[Value],
    ) -> None:
        """``sums = sums * scale + chance * value`` over the visible slots, some of D at a time."""
        width = _chunk(isa, self.head_dim // LANES)
        with fn.loop(0, self.head_dim, width * LANES) as d:
            start = []
            for g in range(self.group):
                for c in range(width):
                    old = fn.load(ROW, sums, d.index << 2, 4 * (g * self.head_dim + c * LANES), align=64)
                    start.append(old * scales[g].splat(LANES))
            with fn.loop(*slots, 1, start) as slot:
                row = fn.at(keys, pages.half_bytes, slot.index * (self.head_dim * pages.size), d.index * pages.size)
                v = [pages.load(row, LANES, c * LANES * pages.size) for c in range(width)]
                values = list(slot.values)
                for g in range(self.group):
                    chance = fn.load(F32, chances, slot.index << 2, 4 * g * self.page_tokens, align=4).splat(LANES)
                    for c in range(width):
                        values[g * width + c] = fn.fma(chance, v[c], values[g * width + c])
                slot.values = values
            for g in range(self.group):
                for c in range(width):
                    at = 4 * (g * self.head_dim + c * LANES)
                    fn.store(slot.results[g * width + c], sums, d.index << 2, at, align=64)


KERNEL = Attention


def _chunk(isa: Isa, vectors: int) -> int:
    """Vectors of D that are summed at a time: as many as divide it and fit the registers."""
    largest = 4 if isa.registers == 32 else 1
    return max(c for c in range(1, largest + 1) if vectors % c == 0)


def _largest(vectors: Sequence[Value]) -> Value:
    best = vectors[0]
    for vector in vectors[1:]:
        best = best.maximum(vector)
    return best.max()


def reference(
    q: npt.NDArray[np.float32],
    k: npt.NDArray[np.float32],
    v: npt.NDArray[np.float32],
    *,
    scale: float,
    window: int,
) -> npt.NDArray[np.float64]:
    """The meaning for the last query of one sequence.

    Args:
        q: ``[Hq, D]``, at the position of the last key.
        k, v: ``[tokens, Hk, D]``.

    Returns:
        ``float64 [Hq, D]``.
    """
    first = max(0, len(k) - window) if window else 0
    per_kv = q.shape[0] // k.shape[1]
    keys, values = (np.repeat(a[first:].astype(np.float64), per_kv, axis=1) for a in (k, v))
    scores = np.einsum("hd,thd->ht", q.astype(np.float64), keys) * scale
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = np.einsum("ht,thd->hd", chances, values)
    return result
