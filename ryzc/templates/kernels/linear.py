"""Linear layer over packed weights and int8 activations.

For every row ``n`` and token ``m``, over the groups ``g`` of K in ascending order:

    y = fma(scale[n, g] * sum over the group of (q - zero) * x, x_scale[m, block], y)
    y = fma(minimum[n, g], x_scale * sum of x, y)          where the format has minima

The sums over a group are exact integers, and each product is rounded once. The order is fixed, so a token's result
has the same bits in every tile size, at every thread count and in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc import formats
from ryzc.codegen.isa import Dot, Isa
from ryzc.codegen.vector import F32, I32, Function, Value, vec
from ryzc.errors import InternalError
from ryzc.formats import AffineFormat
from ryzc.formats.lanes import OPERANDS, STEP, TILE, block_bytes, tile_bytes
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels import schedule
from ryzc.templates.kernels.epilogue import Epilogue
from ryzc.templates.kernels.kernel import Kernel, begin, context_field
from ryzc.templates.kernels.panel import Panel
from ryzc.templates.kernels.schedule import Method
from ryzc.templates.kernels.tiling import MOST, token_tiles, work_items
from ryzc.templates.kernels.weights import PackedBlocks, Scales, stack_scales, stacked_scales


@dataclass(frozen=True)
class Linear(Kernel):
    """Parameters of the family.

    Attributes:
        format: an affine weight format.
        rows, columns: N and K; of a gated layer the rows of gate and up together.
        epilogue: ``store``, ``residual``, ``silu`` or ``gelu_tanh``, see :mod:`.epilogue`.
        out_stride: elements between tokens in ``out`` (and ``residual``).
        count: the context field with the number of tokens: ``token_count`` or ``row_count``.
        unit: of the records, see :mod:`.activations`.
        schedule: which method multiplies a batch of which size, see :mod:`.schedule`; changes no bit.
    """

    format: str
    rows: int
    columns: int
    epilogue: str
    out_stride: int
    count: str = "token_count"
    unit: int = 1
    schedule: tuple[str, ...] = ()

    operands: ClassVar[tuple[str, ...]] = ("weights", "codes", "records", "out")

    def methods(self, isa: Isa) -> tuple[str, ...]:
        return schedule.methods(isa)

    def default_schedule(self, isa: Isa) -> tuple[str, ...]:
        return schedule.default(isa)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        epilogue = Epilogue(self.epilogue, self.rows, self.out_stride)
        fn = begin(module, symbol, self.operands)
        tokens, entries = context_field(fn, self.count), self.schedule or self.default_schedule(isa)
        for multiply in multiplications(fn, isa, self.format, self.columns, self.unit, tokens, entries):
            with work_items(fn, -(-self.rows // TILE), tokens, multiply.token_bytes) as (tile, first, last):
                multiply.run(tile, first, last, Results(fn, isa.lanes, epilogue, tile, fn.args["out"]))
        fn.finish()


KERNEL = Linear


def multiplications(
    fn: Function, isa: Isa, fmt: str, columns: int, unit: int, tokens: Value, entries: tuple[str, ...]
) -> Iterator[Multiplication]:
    """Each method of a schedule, which multiplies the operands ``weights``, ``codes`` and ``records``."""
    affine = formats.get(fmt)
    assert isinstance(affine, AffineFormat)
    weights, codes, records = (fn.args[name] for name in ("weights", "codes", "records"))
    sums = fn.stack(F32, MOST * TILE)
    reader = PackedBlocks(fn, affine, isa.lanes, isa.field)
    for method in schedule.each(fn, tokens, entries):
        yield Multiplication(fn, isa, reader, columns, unit, method, weights, codes, records, sums)


GROUP = 8
"""Tokens that a step is added to at a time, as many as registers hold sums for. More take turns within the step: if
each group passed the whole tile, memory would idle in all passes but the first."""


@dataclass(frozen=True)
class _Step:
    """Thirty-two elements of K: how a tile reads its weights, for row vector ``v``.

    Attributes:
        k: the step's number.
        operand: ``(j, v)`` to the codes of elements ``4 j .. 4 j + 3``.
        scales: ``[v][half]``.
    """

    k: Value
    operand: Callable[[int, int], Value]
    scales: list[list[Scales]]


@dataclass(frozen=True)
class _Packed:
    """Thirty-two elements of K of a tile as they are stored.

    Attributes:
        k: the step's number.
        codes: where its codes lie.
        share: its part of the block, see :attr:`.PackedBlocks.share`.
        scales: ``[v][half]``.
    """

    k: Value
    codes: Value
    share: Value
    scales: list[list[Scales]]


@dataclass(frozen=True)
class Results:
    """Where the results of a tile go.

    Attributes:
        epilogue: what is done with sums.
        tile: the number of the tile, by which the epilogue finds its rows.
        out: where token 0's row begins.
    """

    fn: Function
    lanes: int
    epilogue: Epilogue
    tile: Value
    out: Value

    def ask(self, m: Value, count: int) -> None:
        """Ask for the memory of the results of ``count`` tokens from ``m`` on."""
        self.epilogue.prefetch(self.fn, self.tile, self.out, m, count)

    def write(self, m: Value, rows: list[Value], sums: list[list[Value]]) -> None:
        """Write what comes of the sums ``[token][row vector]`` of tokens from ``m`` on."""
        self.epilogue.write(self.fn, self.lanes, sums, rows, self.tile, self.out, m)


@dataclass(frozen=True)
class _Stretch:
    """A stretch of K.

    Attributes:
        panel: where it is taken apart.
        first: the number of its first step.
        steps: how many it has.
        begins, ends: whether K does, with it.
    """

    panel: Panel
    first: Value
    steps: Value
    begins: Value
    ends: Value


@dataclass(frozen=True)
class Multiplication:
    """Results of weight tiles for some tokens, by one method; sums wait in ``sums`` ``[token][32 rows]``."""

    fn: Function
    isa: Isa
    reader: PackedBlocks
    columns: int
    unit: int
    method: Method
    weights: Value
    codes: Value
    records: Value
    sums: Value

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's activations."""
        return act.code_bytes(self.columns) + act.record_bytes(self.columns)

    def run(self, number: Value, first: Value, last: Value, results: Results) -> None:
        """Multiply tokens ``first .. last`` by a tile."""
        tile = self.fn.at(self.weights, number * tile_bytes(self.reader.format, self.columns))
        if self.method.kind == "panel":
            self._by_panels(tile, first, last, results)
        else:
            self._by_steps(tile, first, last, results)

    # --- weights decoded in registers ---------------------------------------------------------

    def _by_steps(self, tile: Value, first: Value, last: Value, results: Results) -> None:
        """All rows of the tile a step of K, so that a tile is one sequential read."""
        fn, lanes, fmt = self.fn, self.isa.lanes, self.reader.format
        stack = fn.stack(F32, 2 * TILE * (fmt.block // fmt.group)) if fmt.block > STEP else None
        rows = [fn.i64(row) for row in range(0, TILE, lanes)]
        with token_tiles(fn, first, last, self.method.widths) as tiles:
            for m, width in tiles:
                count = width * len(rows)
                if 2 * count <= self.isa.registers - 8:
                    zeros = [fn.const(vec(F32, lanes), 0.0)] * count
                    self._put(m - first, rows, self._stream(tile, m, width, rows, stack, zeros, None))
                else:
                    self._clear(m - first, width)
                    self._stream(tile, m, width, rows, stack, [], self._sums_of(m - first))
        with fn.loop(first, last) as token, results.epilogue.rows(fn, lanes, wide=True) as some:
            at = self._sums_of(token.index - first)
            results.write(token.index, some, [[self._load(at, some, v) for v in range(len(some))]])

    def _stream(
        self,
        tile: Value,
        m: Value,
        width: int,
        rows: list[Value],
        stack: Value | None,
        sums: list[Value],
        memory: Value | None,
    ) -> list[Value]:
        """Add the whole of K to ``sums`` ``[token][row vector]``, which are kept in ``memory`` where they are many."""
        fn, reader, fmt = self.fn, self.reader, self.reader.format
        with fn.loop(0, self.columns // fmt.block, 1, sums) as blocks:
            block = fn.at(tile, blocks.index * block_bytes(fmt))
            step0 = fn.at(block, reader.header_bytes)
            k0 = blocks.index * reader.steps
            if stack is None:
                packed = _Packed(k0, step0, block, [reader.scales(block, row) for row in rows])
                blocks.values = self._some_rows(packed, m, width, rows, blocks.values, memory)
            else:
                stack_scales(reader, block, rows, stack)
                with fn.loop(0, reader.steps, 1, blocks.values) as steps:
                    at = fn.at(step0, steps.index * reader.step_bytes)
                    share = fn.at(block, steps.index * reader.share)
                    half = steps.index * reader.halves
                    scales = [
                        [stacked_scales(reader, stack, half + h, v, len(rows)) for h in range(reader.halves)]
                        for v in range(len(rows))
                    ]
                    packed = _Packed(k0 + steps.index, at, share, scales)
                    steps.values = self._some_rows(packed, m, width, rows, steps.values, memory)
                blocks.values = steps.results
        return blocks.results

    def _some_rows(
        self, packed: _Packed, m: Value, width: int, rows: list[Value], sums: list[Value], memory: Value | None
    ) -> list[Value]:
        """Add a step to all rows, as many vectors at a time as the method says, for a group of tokens after another.

        The first vectors ask ahead.
        """
        out = list(sums)
        groups = range(0, width, GROUP)
        for first in range(0, len(rows), self.method.vectors):
            some = rows[first : first + self.method.vectors]
            for turn, t0 in enumerate(groups):
                tokens = range(t0, min(t0 + GROUP, width))
                operand = partial(self._packed_operand, packed, some, turn=(turn, len(groups)), ahead=first == 0)
                step = _Step(packed.k, operand, packed.scales[first : first + len(some)])
                places = [t * len(rows) + first + v for t in tokens for v in range(len(some))]
                if memory is None:
                    added = self._add(step, m + t0, len(tokens), [sums[i] for i in places].__getitem__)
                    for i, value in zip(places, added, strict=True):
                        out[i] = value
                else:
                    kept = self.fn.at(memory, t0 * (4 * TILE))
                    added = self._add(step, m + t0, len(tokens), partial(self._load, kept, some))
                    self._put_at(kept, some, added)
        return out

    def _packed_operand(
        self, packed: _Packed, rows: list[Value], j: int, v: int, *, turn: tuple[int, int], ahead: bool
    ) -> Value:
        if ahead and v == 0:
            self.reader.prefetch(packed.share, self.reader.share, self.method.prefetch, j, turn)
        return self.reader.operand(packed.codes, j, rows[v])

    # --- weights taken apart in L1 ------------------------------------------------------------

    def _by_panels(self, tile: Value, first: Value, last: Value, results: Results) -> None:
        """A stretch of K after another; the first tokens that meet one take its codes apart as they need them."""
        fn, fmt = self.fn, self.reader.format
        panel = Panel.on_stack(fn, self.reader, self.columns)
        blocks, widest = self.columns // fmt.block, self.method.tokens
        with fn.loop(0, blocks, panel.blocks) as loop:
            count = fn.below(fn.i64(blocks) - loop.index, panel.blocks)
            packed = fn.at(tile, loop.index * block_bytes(fmt))
            begins, ends = loop.index.compare("==", 0), (loop.index + panel.blocks).compare(">=", blocks)
            steps = self.reader.steps
            stretch = _Stretch(panel, loop.index * steps, count * steps, begins, ends)
            panel.unpack_scales(packed, count)
            many = (last - first).compare(">=", widest)
            with fn.when(many):
                self._panel_tile(stretch, first, first, widest, results, packed)
            with fn.when(many ^ 1):
                panel.unpack_codes(packed, count, self.method.prefetch)
            with token_tiles(fn, many.select(first + widest, first), last, self.method.widths) as tiles:
                for m, width in tiles:
                    self._panel_tile(stretch, first, m, width, results, None)

    def _panel_tile(
        self, stretch: _Stretch, first: Value, m: Value, width: int, results: Results, packed: Value | None
    ) -> None:
        """Add a stretch to the sums of tokens from ``m`` on; with ``packed`` weights it is taken apart on the way.

        Between stretches sums lie in memory; after the last of them they become results.
        """
        fn, panel, vectors = self.fn, stretch.panel, self.method.vectors
        distance, offsets = results.epilogue.together(self.isa.lanes, vectors)
        whole = panel.blocks * self.reader.format.block >= self.columns
        with fn.when(stretch.ends):
            results.ask(m, width)
        with fn.loop(0, TILE // (vectors * self.isa.lanes)) as part:
            rows = [part.index * distance + offset for offset in offsets]
            memory = self._sums_of(m - first)
            with fn.loop(0, stretch.steps, 1, self._earlier(stretch, memory, rows, width, whole)) as step:
                at = panel.step(step.index)
                operand = partial(self._panel_operand, panel, at, rows)
                if packed is not None:
                    operand = partial(self._unpacked_operand, panel, packed, step.index, rows, part.index)
                now = _Step(stretch.first + step.index, operand, [panel.scales(at, row) for row in rows])
                step.values = self._add(now, m, width, step.values.__getitem__)
            with fn.when(stretch.ends):
                of_token = range(0, width * vectors, vectors)
                results.write(m, rows, [step.results[i : i + vectors] for i in of_token])
            if not whole:
                with fn.when(stretch.ends ^ 1):
                    self._put_at(memory, rows, step.results)

    def _earlier(self, stretch: _Stretch, memory: Value, rows: list[Value], width: int, whole: bool) -> list[Value]:
        """What earlier stretches left in memory, ``[token][row vector]``; zeros where there are none."""
        fn, lanes = self.fn, self.isa.lanes
        zero = fn.const(vec(F32, lanes), 0.0)
        if whole:
            return [zero] * (width * len(rows))
        mask = (stretch.begins ^ 1).splat(lanes)
        return [fn.load_masked(zero.type, mask, memory, row << 2, t * 4 * TILE) for t in range(width) for row in rows]

    def _panel_operand(self, panel: Panel, at: Value, rows: list[Value], j: int, v: int) -> Value:
        return panel.operand(at, j, rows[v])

    def _unpacked_operand(
        self, panel: Panel, packed: Value, step: Value, rows: list[Value], part: Value, j: int, v: int
    ) -> Value:
        return panel.unpack(packed, step, j, rows, part, v, self.method.prefetch)

    # --- both ---------------------------------------------------------------------------------

    def _clear(self, token: Value, width: Value | int) -> None:
        fn, lanes = self.fn, self.isa.lanes
        with fn.loop(token * TILE, (token + width) * TILE, lanes) as i:
            fn.store(fn.const(vec(F32, lanes), 0.0), self.sums, i.index << 2, align=4 * lanes)

    def _sums_of(self, token: Value) -> Value:
        return self.fn.at(self.sums, token * (4 * TILE))

    def _load(self, sums: Value, rows: list[Value], i: int) -> Value:
        """The ``i``-th of the sums ``[token][row vector]``."""
        t, v = divmod(i, len(rows))
        return self.fn.load(vec(F32, self.isa.lanes), sums, rows[v] << 2, t * 4 * TILE, align=4 * self.isa.lanes)

    def _put_at(self, sums: Value, rows: list[Value], values: list[Value]) -> None:
        for i, value in enumerate(values):
            t, v = divmod(i, len(rows))
            self.fn.store(value, sums, rows[v] << 2, t * 4 * TILE, align=4 * self.isa.lanes)

    def _put(self, token: Value, rows: list[Value], values: list[Value]) -> None:
        self._put_at(self._sums_of(token), rows, values)

    def _add(self, step: _Step, m: Value, width: int, before: Callable[[int], Value]) -> list[Value]:
        """The sums ``[token][row vector]`` of ``width`` tokens from ``m`` on: those ``before``, with a step added."""
        fn, isa, lanes, halves = self.fn, self.isa, self.isa.lanes, self.reader.halves
        count = len(step.scales)
        code_stride, record_stride = act.code_bytes(self.columns), act.record_bytes(self.columns)
        x = fn.at(self.codes, m * code_stride, step.k * STEP)
        record0 = fn.at(self.records, m * record_stride, step.k * act.RECORD_BYTES)
        records = [fn.at(record0, t * record_stride) for t in range(width)]
        out: dict[int, Value] = {}
        for half in range(halves):
            # ORIGIN * scale is exact: scales have at most 19 significant bits.
            origins = [scales[half].scale * -act.ORIGIN for scales in step.scales]
            start = [self._start(record, half) for record in records]
            dots = [Dot(start[t]) for t in range(width) for _ in range(count)]
            for j in range(half * OPERANDS // halves, (half + 1) * OPERANDS // halves):
                codes = [step.operand(j, v) for v in range(count)]
                for t in range(width):
                    quad = fn.load(I32, x, t * code_stride + 4 * j, align=4).splat(lanes)
                    for v in range(count):
                        i = t * count + v
                        dots[i] = isa.add(dots[i], codes[v], quad, self._top)
            for t, record in enumerate(records):
                x_scale = fn.load(F32, record, act.SCALE, align=4).splat(lanes)
                for v in range(count):
                    i, s = t * count + v, step.scales[v][half]
                    total = out[i] if half else before(i)
                    product = fn.fma(isa.total(dots[i]).bits(s.scale.type), s.scale, origins[v])
                    total = fn.fma(product, x_scale, total)
                    if s.minimum is not None:
                        total = fn.fma(s.minimum, self._scaled_sum(record, half), total)
                    out[i] = total
        return [out[i] for i in range(width * count)]

    @property
    def _top(self) -> int:
        return (1 << sum(self.reader.format.planes)) - 1

    def _start_of(self, record: Value, half: int) -> Value:
        """``ORIGIN_BITS`` minus ``unit`` times the sum of the codes of a step, or of one of its halves."""

        def load(offset: int) -> Value:
            return self.fn.load(I32, record, offset, align=4)

        if half == 1:
            return load(act.START) - load(act.START_FIRST) + act.ORIGIN_BITS
        return load(act.START if self.reader.halves == 1 else act.START_FIRST)

    def _start(self, record: Value, half: int) -> Value:
        """What the integer sum starts from, so that it ends as ``ORIGIN_BITS`` plus the sum of ``(q - zero) * x``."""
        lanes = self.isa.lanes
        zero = self.reader.format.zero - (128 if self._top == 255 and self.isa.signed_bytes else 0)
        if zero == 0:
            return self.fn.const(vec(I32, lanes), act.ORIGIN_BITS)
        if zero % self.unit:
            raise InternalError(f"records in units of {self.unit} do not fit {self.reader.format.name}")
        start = self._start_of(record, half)
        if zero != self.unit:
            start = (start - act.ORIGIN_BITS) * (zero // self.unit) + act.ORIGIN_BITS
        return start.splat(lanes)

    def _scaled_sum(self, record: Value, half: int) -> Value:
        fn, lanes = self.fn, self.isa.lanes
        if self.reader.halves == 1:
            return fn.load(F32, record, act.SCALED_SUM, align=4).splat(lanes)
        total = (-(self._start_of(record, half) - act.ORIGIN_BITS)).to_float() * (1 / self.unit)
        return (fn.load(F32, record, act.SCALE, align=4) * total).splat(lanes)


def reference(
    fmt: AffineFormat, stored: npt.NDArray[np.uint8], codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """The meaning: ``[T, N]`` in float64 over exact integer sums.

    Args:
        stored: ``uint8 [N, row_bytes]``.
        codes: ``int8 [T, K]``.
        scales: ``float32 [T, K/32]``.
    """
    fields = fmt.parse(stored)
    n, k = fields.q.shape
    groups, per_step = k // fmt.group, STEP // fmt.group
    q = (fields.q.astype(np.int64) - fmt.zero).reshape(n, groups, fmt.group)
    x = codes.astype(np.int64).reshape(len(codes), groups, fmt.group)
    dots = np.einsum("ngi,tgi->tng", q, x)

    def spread(per_block: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
        return np.repeat(per_block.astype(np.float64), fmt.block // fmt.group, axis=1)

    x_scale = np.repeat(scales.astype(np.float64), per_step, axis=1)
    w_scale = spread(fields.d) * (1 if fields.s is None else fields.s.astype(np.float64))
    y: npt.NDArray[np.float64] = np.einsum("tng,ng,tg->tn", dots.astype(np.float64), w_scale, x_scale)
    if fields.m is not None:
        minimum = fmt.min_sign * spread(fields.m) * (1 if fields.t is None else fields.t.astype(np.float64))
        y += np.einsum("ng,tg->tn", minimum, x_scale * x.sum(axis=2))
    return y
