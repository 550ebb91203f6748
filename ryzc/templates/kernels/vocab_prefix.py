"""What drawing from a whole row needs: its best tokens down to a border, raced, weighed and counted.

In order of logits, of equal ones the lower id first, every filter but ``typical`` keeps the tokens down to some
border. Chunks whose largest logit lies below it are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ryzc.codegen.vector import F32, I16, I32, Function, Value, vec
from ryzc.templates.kernels.gumbel import LARGEST, Noise, lane_ids, most_bits
from ryzc.templates.kernels.scalar_math import exp
from ryzc.templates.kernels.vocab_max import CHUNK, LANES, ROW
from ryzc.templates.kernels.vocab_sum import SLICE

IDS = vec(I32, LANES)
NO_ID = 0x7FFFFFFF


@dataclass(frozen=True)
class Border:
    """The last token that belongs: tokens of larger logits do, and of equal ones those up to its id."""

    logit: Value
    id: Value

    def holds(self, logit: Value, id_: Value) -> Value:
        """Which of some tokens belong, a scalar or a vector of them."""
        border, last = (v.splat(logit.lanes) if logit.lanes > 1 else v for v in (self.logit, self.id))
        return logit.compare(">", border) | (logit.compare("==", border) & id_.compare("<=", last))


@dataclass(frozen=True)
class RowDraw:
    """A row of logits to draw from.

    Attributes:
        logits, chunk_max: where the row's logits and their chunks' maxima are.
        stride: logits of the row.
        largest: the largest of them.
        inverse_temperature: what differences to it are multiplied by.
        noise: the row's.
    """

    fn: Function
    logits: Value
    chunk_max: Value
    stride: int
    largest: Value
    inverse_temperature: Value
    noise: Noise

    def logit(self, id_: Value) -> Value:
        """One token's logit."""
        return self.fn.load(F32, self.logits, id_ << 2, align=4)

    def _vectors(
        self, chunk: Value, carried: list[Value], step: Callable[[Value, Value, list[Value]], list[Value]]
    ) -> list[Value]:
        """Fold ``step(16 logits, their ids, carried)`` over a chunk."""
        fn, start = self.fn, chunk * CHUNK
        with fn.loop(start, start + CHUNK, LANES, carried) as k:
            k.values = step(fn.load(ROW, self.logits, k.index << 2, align=4), lane_ids(fn, k.index), k.values)
        return k.results

    def race(self, first: Value, last: Value, border: Border) -> tuple[Value, Value]:
        """The best score of the tokens within a border in chunks ``first .. last - 1``, and whose it is.

        A score is the tempered logit and the noise. Where no token has one: ``-inf`` and ``NO_ID``.
        """
        fn = self.fn
        start = [fn.const(ROW, float("-inf")), fn.const(IDS, NO_ID), fn.const(F32, float("-inf"))]
        with fn.loop(first, last, 1, start) as c:
            top = fn.load(F32, self.chunk_max, c.index << 2, align=4)
            # Scores round as their logits do, so none of the chunk is above the largest noise on top of this.
            tempered, beat = (top - self.largest) * self.inverse_temperature, c.values[2]
            reaches = (tempered + LARGEST).compare(">=", beat)
            with fn.branch(top.compare(">=", border.logit) & reaches, c.values) as b:
                score, ids = self._race_chunk(c.index, tempered, beat, border, b.values[:2])
                b.values = [score, ids, score.max()]
            c.values = b.results
        score, ids, best = c.results
        return best, score.compare("==", best.splat(LANES)).select(ids, NO_ID).smallest()

    def _race_chunk(
        self, chunk: Value, tempered: Value, beat: Value, border: Border, carried: list[Value]
    ) -> list[Value]:
        """Race a chunk of which no tempered logit is above ``tempered``, against those that reached ``beat``.

        Few ids have the noise that they would need for it, which their bits tell before any logarithm.
        """
        fn, start = self.fn, chunk * CHUNK
        rounding = fn.fma(beat.abs(), fn.const(F32, 2.0**-20), fn.const(F32, 1e-3))
        most = most_bits(fn, beat - tempered - rounding).splat(LANES)
        with fn.loop(start, start + CHUNK, LANES, carried) as k:
            ids = lane_ids(fn, k.index)
            bits = self.noise.bits(ids)
            hopeful = bits.compare("<=", most)
            with fn.branch(hopeful.bits(I16).compare("!=", 0), k.values) as b:
                logits = fn.load(ROW, self.logits, k.index << 2, align=4)
                relative = (logits - self.largest.splat(LANES)) * self.inverse_temperature.splat(LANES)
                score = relative + self.noise.of(bits)
                better = border.holds(logits, ids) & score.compare(">", b.values[0])
                b.values = [better.select(score, b.values[0]), better.select(ids, b.values[1])]
            k.values = b.results
        return k.results

    def mass(self, border: Border) -> Value:
        """Sum of ``exp(logit - largest)`` within a border, in the order of :mod:`.vocab_sum`."""
        fn = self.fn

        def step(logits: Value, ids: Value, carried: list[Value]) -> list[Value]:
            weight = exp(fn, logits - self.largest.splat(LANES))
            return [carried[0] + border.holds(logits, ids).select(weight, 0.0)]

        per_slice = SLICE // CHUNK
        with fn.loop(0, self.stride // CHUNK, per_slice, [fn.const(F32, 0.0)]) as part:
            last = fn.below(part.index + per_slice, self.stride // CHUNK)
            (total,) = self._fold(part.index, last, border, [fn.const(ROW, 0.0)], step)
            part.values = [part.values[0] + total.sum()]
        return part.results[0]

    def count(self, border: Border) -> Value:
        """How many tokens are within a border."""
        fn = self.fn

        def step(logits: Value, ids: Value, carried: list[Value]) -> list[Value]:
            return [carried[0] + border.holds(logits, ids).select(fn.const(IDS, 1), 0)]

        chunks = self.stride // CHUNK
        (counts,) = self._fold(fn.i64(0), fn.i64(chunks), border, [fn.const(IDS, 0)], step)
        return counts.sum()

    def _fold(
        self,
        first: Value,
        last: Value,
        border: Border,
        carried: list[Value],
        step: Callable[[Value, Value, list[Value]], list[Value]],
    ) -> list[Value]:
        """Fold a step over the chunks ``first .. last - 1`` that reach a border."""
        fn = self.fn
        with fn.loop(first, last, 1, carried) as c:
            top = fn.load(F32, self.chunk_max, c.index << 2, align=4)
            with fn.branch(top.compare(">=", border.logit), c.values) as b:
                b.values = self._vectors(c.index, b.values, step)
            c.values = b.results
        return c.results
