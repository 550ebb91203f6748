"""The token of each row: the best candidate, or the one that wins the race among those that the filters leave.

The filters are llama.cpp's in its order: top-k, typical, top-p, min-p; then logits are divided by the temperature
and noise is added (see :mod:`.gumbel`). A row whose ``top_k`` are among the candidates is drawn from these. Any
other is drawn from whole and exactly, and without looking for the logit at which top-p ends: whoever wins the race
of all is in if the tokens before it do not reach the share yet; if they do, the race is among these again.

Runs after :mod:`.vocab_top` in its phase: both give a thread the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I32, I64, Function, Value
from ryzc.templates.kernels.gumbel import lane_ids, noise_of
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, row_field, share
from ryzc.templates.kernels.scalar_math import exp
from ryzc.templates.kernels.vocab_max import CHUNK, LANES, ROW
from ryzc.templates.kernels.vocab_prefix import IDS, NO_ID, Border, RowDraw
from ryzc.templates.kernels.vocab_race import is_drawn, is_whole
from ryzc.templates.kernels.vocab_sum import slices

_LOWEST_KEY = -0x7F800001
"""The key of -inf, see :func:`_float_of`."""


@dataclass(frozen=True)
class VocabDraw(Kernel):
    """Parameters: as in :class:`.vocab_top.VocabTop`."""

    stride: int
    max_candidates: int

    operands: ClassVar[tuple[str, ...]] = ("chunk_max", "scores", "winners")

    def __post_init__(self) -> None:
        require_multiple(self, CHUNK, stride=self.stride)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        room = -(-self.max_candidates // LANES) * LANES
        few = _Candidates(fn, *(fn.stack(F32, room) for _ in range(2)))
        with fn.loop(*share(fn, context_field(fn, "row_count"))) as rows:
            row = rows.index
            at = row * (4 * self.max_candidates)
            ids, best = (fn.at(context_field(fn, f"candidate_{name}"), at) for name in ("ids", "logits"))
            largest = fn.load(F32, context_field(fn, "row_max"), row << 2, align=4)
            finite = largest.abs().compare("<", float("inf"))
            chosen = finite.select(fn.load(I32, ids, align=4), -1)
            with fn.branch(is_drawn(fn, row) & finite, [chosen]) as drawn:
                whole = is_whole(fn, row, self.max_candidates)
                with fn.branch(whole, [chosen]) as b:
                    b.values = [self._from_whole(fn, row, chosen, largest)]
                with fn.branch(whole.compare("==", 0), b.results) as c:
                    c.values = [few.draw(row, chosen, largest, ids, best)]
                drawn.values = c.results
            fn.store(drawn.results[0], context_field(fn, "drawn"), row << 2, align=4)
        fn.finish()

    def _from_whole(self, fn: Function, row: Value, best: Value, largest: Value) -> Value:
        """The token of a row of which every token may count."""
        chunks, parts = self.stride // CHUNK, slices(self.stride)
        base = fn.at(context_field(fn, "logits"), row * (4 * self.stride))
        chunk_max = fn.at(fn.args["chunk_max"], row * (4 * chunks))
        temperature = row_field(fn, row, "inverse_temperature")
        draw = RowDraw(fn, base, chunk_max, self.stride, largest, temperature, noise_of(fn, row))

        scores, winners = (fn.at(fn.args[name], row * (4 * parts)) for name in ("scores", "winners"))
        with fn.loop(0, parts, 1, [fn.const(F32, float("-inf")), best]) as i:
            score = fn.load(F32, scores, i.index << 2, align=4)
            winner = fn.load(I32, winners, i.index << 2, align=4)
            # The bounds only matter where parameters were changed in the middle of a step.
            known = winner.compare(">=", 0) & winner.compare("<", self.stride)
            won = known & score.compare(">", i.values[0])
            i.values = [won.select(score, i.values[0]), won.select(winner, i.values[1])]

        last = Border(largest + row_field(fn, row, "log_min_p"), fn.const(I32, NO_ID))
        total = fn.load(F32, context_field(fn, "row_sum"), row << 2, align=4)
        top_k = row_field(fn, row, "top_k")
        with fn.branch(top_k.compare(">", 0), [last.logit, last.id, total]) as k:
            border = _border_of(draw, top_k)
            nearer = border.holds(last.logit, last.id)
            k.values = [nearer.select(last.logit, border.logit), nearer.select(last.id, border.id), draw.mass(border)]
        last, total = Border(*k.results[:2]), k.results[2]

        top_p = row_field(fn, row, "top_p")
        with fn.repeat([i.results[1], last.logit, last.id]) as r:
            id_, last = r.values[0], Border(*r.values[1:])
            logit = draw.logit(id_.to_int(I64))
            before = Border(logit, id_ - 1)
            inside, surely = last.holds(logit, id_), id_.compare("==", best)
            with fn.branch(inside & surely.compare("==", 0) & top_p.compare("<", 1.0), [fn.const(F32, -1.0)]) as m:
                m.values = [draw.mass(before)]
            r.again = (inside & m.results[0].compare("<", top_p * total) | surely).compare("==", 0)
            with fn.branch(r.again, r.values) as b:
                narrower = Border(inside.select(before.logit, last.logit), inside.select(before.id, last.id))
                score, winner = draw.race(fn.i64(0), fn.i64(chunks), narrower)
                won = score.compare(">", float("-inf"))
                b.values = [won.select(winner, best), narrower.logit, narrower.id]
            r.values = b.results
        return r.results[0]


KERNEL = VocabDraw


def _float_of(key: Value) -> Value:
    """The float of a key; signed keys have the order of their floats."""
    key = key.to_int(I32)
    return (key ^ (key.sar(31) & 0x7FFFFFFF)).bits(F32)


def _key_of(number: Value) -> Value:
    bits = number.bits(I32)
    return (bits ^ (bits.sar(31) & 0x7FFFFFFF)).to_int(I64)


def _border_of(draw: RowDraw, count: Value) -> Border:
    """The border that holds so many tokens: its logit by bisection, and then its id."""
    fn = draw.fn
    with fn.repeat([fn.i64(_LOWEST_KEY), _key_of(draw.largest)]) as r:
        low, high = r.values
        middle = (low + high + 1).sar(1)
        enough = draw.count(Border(_float_of(middle), fn.const(I32, NO_ID))).compare(">=", count)
        r.values = [enough.select(middle, low), enough.select(high, middle - 1)]
        r.again = r.values[0].compare("<", r.values[1])
    logit = _float_of(r.results[0])
    with fn.repeat([fn.const(I32, 0), fn.const(I32, draw.stride - 1)]) as i:
        low, high = i.values
        middle = (low + high) >> 1
        enough = draw.count(Border(logit, middle)).compare(">=", count)
        i.values = [enough.select(low, middle + 1), enough.select(middle, high)]
        i.again = i.values[0].compare("<", i.values[1])
    return Border(logit, i.results[0])


@dataclass(frozen=True)
class _Candidates:
    """Drawing from the candidates of a row; ``weights`` and ``deviations`` are room for a number of each."""

    fn: Function
    weights: Value
    deviations: Value

    def draw(self, row: Value, first: Value, largest: Value, ids: Value, best: Value) -> Value:
        """The token of a row whose candidates decide."""
        fn = self.fn
        count = fn.below(row_field(fn, row, "top_k").to_int(I64), context_field(fn, "candidate_count"))
        with fn.loop(0, count, LANES) as i:
            logits, there = self._load(best, i.index, count)
            weight = there.select(exp(fn, logits - largest.splat(LANES)), 0.0)
            fn.store(weight, self.weights, i.index << 2, align=64)
        typical = row_field(fn, row, "typical_p")
        with fn.when(typical.compare("<", 1.0)):
            self._drop_untypical(typical, largest, best, count)
        end, top = self._reach(row_field(fn, row, "top_p"), best, count, largest)

        limit = (top + row_field(fn, row, "log_min_p")).splat(LANES)
        temperature, noise = row_field(fn, row, "inverse_temperature").splat(LANES), noise_of(fn, row)
        with fn.loop(0, end, LANES, [fn.const(ROW, float("-inf")), fn.const(IDS, NO_ID)]) as i:
            logits, there = self._load(best, i.index, end)
            found = fn.load_masked(IDS, there, ids, i.index << 2)
            kept = fn.load(ROW, self.weights, i.index << 2, align=64).compare(">", 0.0)
            score = (logits - top.splat(LANES)) * temperature + noise.of(noise.bits(found))
            equal = score.compare("==", i.values[0]) & found.compare("<", i.values[1])
            better = there & kept & logits.compare(">=", limit) & (score.compare(">", i.values[0]) | equal)
            i.values = [better.select(score, i.values[0]), better.select(found, i.values[1])]
        scores, winners = i.results
        most = scores.max()
        winner = scores.compare("==", most.splat(LANES)).select(winners, NO_ID).smallest()
        return most.compare(">", float("-inf")).select(winner, first)

    def _load(self, best: Value, index: Value, count: Value) -> tuple[Value, Value]:
        """16 candidates' logits from an index on, and which of them there are below ``count``."""
        fn = self.fn
        there = lane_ids(fn, index).compare("<", count.to_int(I32).splat(LANES))
        logits = fn.load_masked(ROW, there, best, index << 2)
        return logits, there & logits.compare(">", float("-inf"))

    def _drop_untypical(self, typical: Value, largest: Value, best: Value, count: Value) -> None:
        """No weight to the candidates after the most typical ones that reach a share together.

        How untypical one is, is the distance of ``-log p`` from its mean, the entropy; and that is the distance of
        its logit from the mean logit.
        """
        fn = self.fn
        zero = fn.const(ROW, 0.0)
        with fn.loop(0, count, LANES, [zero, zero]) as i:
            logits, _ = self._load(best, i.index, count)
            weight = fn.load(ROW, self.weights, i.index << 2, align=64)
            relative = weight.compare(">", 0.0).select(logits - largest.splat(LANES), 0.0)
            i.values = [i.values[0] + weight, fn.fma(weight, relative, i.values[1])]
        total = i.results[0].sum()
        mean = i.results[1].sum() / total
        with fn.loop(0, count, LANES) as i:
            logits, _ = self._load(best, i.index, count)
            fn.store((logits - largest.splat(LANES) - mean.splat(LANES)).abs(), self.deviations, i.index << 2, align=64)
        share_ = typical * total
        with fn.loop(0, count) as c:
            place, deviation = c.index, fn.load(F32, self.deviations, c.index << 2, align=4).splat(LANES)
            with fn.loop(0, count, LANES, [zero]) as i:
                others = fn.load(ROW, self.deviations, i.index << 2, align=64)
                sooner = lane_ids(fn, i.index).compare("<", place.to_int(I32).splat(LANES))
                before = others.compare("<", deviation) | (others.compare("==", deviation) & sooner)
                weight = fn.load(ROW, self.weights, i.index << 2, align=64).abs()
                i.values = [i.values[0] + before.select(weight, 0.0)]
            # Whoever is out keeps its weight, negated, for those that follow.
            own = fn.load(F32, self.weights, place << 2, align=4)
            kept = i.results[0].sum().compare("<=", share_)
            fn.store(kept.select(own, -own), self.weights, place << 2, align=4)

    def _reach(self, top_p: Value, best: Value, count: Value, largest: Value) -> tuple[Value, Value]:
        """Where the candidates end that reach ``top_p`` of the weight left, and the best of them's logit."""
        fn = self.fn
        with fn.loop(0, count, 1, [fn.const(F32, 0.0)]) as i:
            weight = fn.load(F32, self.weights, i.index << 2, align=4)
            i.values = [i.values[0] + weight.maximum(0.0)]
        needed = top_p.compare("<", 1.0).select(top_p * i.results[0], float("inf"))
        with fn.loop(0, count, 1, [fn.const(F32, 0.0), fn.i64(0), largest]) as j:
            before, end, top = j.values
            weight = fn.load(F32, self.weights, j.index << 2, align=4)
            leads = before.compare("==", 0.0)
            counts = weight.compare(">", 0.0) & (before.compare("<", needed) | leads)
            top = (counts & leads).select(fn.load(F32, best, j.index << 2, align=4), top)
            j.values = [before + weight.maximum(0.0), counts.select(j.index + 1, end), top]
        return j.results[1], j.results[2]
