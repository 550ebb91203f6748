"""Linear layer over packed weights and int8 activations.

For every row ``n`` and token ``m``, over the groups ``g`` of K in ascending order:

    y = fma(float(sum over the group of (q - zero) * x), scale[n, g] * x_scale[m, block], y)
    y = fma(minimum[n, g], x_scale * sum of x, y)          where the format has minima

The sums in brackets are exact integers. The order is fixed, so a token's result has the same bits in
every tile size, at every thread count and in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc import formats
from ryzc.codegen.isa import Dot, Isa
from ryzc.codegen.vector import F32, I32, Function, Value, vec
from ryzc.formats import AffineFormat
from ryzc.formats.lanes import OPERANDS, STEP, TILE, block_bytes, tile_bytes
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels import schedule
from ryzc.templates.kernels.epilogue import Epilogue
from ryzc.templates.kernels.kernel import Kernel, begin, context_field
from ryzc.templates.kernels.panel import Panel
from ryzc.templates.kernels.schedule import Method
from ryzc.templates.kernels.tiling import PANEL, token_tiles, work_items
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
        schedule: which method multiplies a batch of which size, see :mod:`.schedule`; changes no bit.
    """

    format: str
    rows: int
    columns: int
    epilogue: str
    out_stride: int
    count: str = "token_count"
    schedule: tuple[str, ...] = ()

    operands: ClassVar[tuple[str, ...]] = ("weights", "codes", "records", "out")

    def methods(self, isa: Isa) -> tuple[str, ...]:
        return schedule.methods(isa)

    def default_schedule(self, isa: Isa) -> tuple[str, ...]:
        return schedule.default(isa)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fmt = formats.get(self.format)
        assert isinstance(fmt, AffineFormat)
        epilogue = Epilogue(self.epilogue, self.rows, self.out_stride)
        fn = begin(module, symbol, self.operands)
        weights, codes, records, out = (fn.args[o] for o in self.operands)
        tokens = context_field(fn, self.count)
        sums = fn.stack(F32, PANEL * TILE)
        reader = PackedBlocks(fn, fmt, isa.lanes)
        for method in schedule.each(fn, tokens, self.schedule or self.default_schedule(isa)):
            multiply = _Multiply(fn, isa, reader, self.columns, method, codes, records, sums)
            with work_items(fn, -(-self.rows // TILE), tokens) as (tile, first, last):
                multiply.run(fn.at(weights, tile * tile_bytes(fmt, self.columns)), first, last)
                with (
                    fn.loop(first, last) as token,
                    epilogue.rows(fn, isa.lanes, wide=True) as rows,
                ):
                    at = (token.index - first) * (4 * TILE)
                    y = [fn.load(vec(F32, isa.lanes), sums, at, row << 2, align=4 * isa.lanes) for row in rows]
                    epilogue.write(fn, isa.lanes, [y], rows, tile, out, token.index)
        fn.finish()


KERNEL = Linear


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
class _Multiply:
    """Sums of a weight tile over some tokens, by one method, into ``sums`` ``[token][32 rows]``."""

    fn: Function
    isa: Isa
    reader: PackedBlocks
    columns: int
    method: Method
    codes: Value
    records: Value
    sums: Value

    def run(self, tile: Value, first: Value, last: Value) -> None:
        """Multiply tokens ``first .. last``."""
        if self.method.panel:
            self._by_panels(tile, first, last)
            return
        stack = self._scale_stack()
        with self._register_tiles(first, last) as each:
            for m, width, rows in each:
                zeros = [self.fn.const(vec(F32, self.isa.lanes), 0.0)] * (width * len(rows))
                self._put(m - first, rows, self._direct(tile, m, width, rows, zeros, stack))

    # --- weights decoded in registers ---------------------------------------------------------

    def _scale_stack(self) -> Value | None:
        fmt = self.reader.format
        return self.fn.stack(F32, 2 * TILE * (fmt.block // fmt.group)) if fmt.block > STEP else None

    def _direct(
        self, tile: Value, m: Value, width: int, rows: list[Value], sums: list[Value], stack: Value | None
    ) -> list[Value]:
        fn, reader, fmt = self.fn, self.reader, self.reader.format
        with fn.loop(0, self.columns // fmt.block, 1, sums) as blocks:
            block = fn.at(tile, blocks.index * block_bytes(fmt))
            step0 = fn.at(block, reader.header_bytes)
            k0 = blocks.index * reader.steps
            if stack is None:
                self._prefetch(block, block_bytes(fmt))
                step = _Step(k0, lambda j, v: reader.operand(step0, j, rows[v]), [reader.scales(block, r) for r in rows])
                blocks.values = self._add(step, m, width, blocks.values)
            else:
                self._prefetch(block, reader.header_bytes)
                stack_scales(reader, block, rows, stack)
                with fn.loop(0, reader.steps, 1, blocks.values) as steps:
                    at = fn.at(step0, steps.index * reader.step_bytes)
                    self._prefetch(at, reader.step_bytes)
                    half = steps.index * reader.halves
                    scales = [
                        [stacked_scales(reader, stack, half + h, v, len(rows)) for h in range(reader.halves)]
                        for v in range(len(rows))
                    ]
                    step = _Step(k0 + steps.index, lambda j, v, at=at: reader.operand(at, j, rows[v]), scales)
                    steps.values = self._add(step, m, width, steps.values)
                blocks.values = steps.results
        return blocks.results

    def _prefetch(self, at: Value, size: int) -> None:
        if self.method.prefetch:
            for line in range(0, size, 64):
                self.fn.prefetch(at, self.method.prefetch + line)

    # --- weights taken apart in L1 ------------------------------------------------------------

    def _by_panels(self, tile: Value, first: Value, last: Value) -> None:
        fn, fmt, steps = self.fn, self.reader.format, self.reader.steps
        panel = Panel.on_stack(fn, self.reader)
        self._clear(last - first)
        blocks = self.columns // fmt.block
        with fn.loop(0, blocks, panel.blocks) as stretch:
            count = fn.below(fn.i64(blocks) - stretch.index, panel.blocks)
            panel.unpack(fn.at(tile, stretch.index * block_bytes(fmt)), count)
            with self._register_tiles(first, last) as each:
                for m, width, rows in each:
                    with fn.loop(0, count * steps, 1, self._get(m - first, width, rows)) as step:
                        at = panel.step(step.index)
                        now = _Step(
                            stretch.index * steps + step.index,
                            lambda j, v, at=at, rows=rows: panel.operand(at, j, rows[v]),
                            [panel.scales(at, row) for row in rows],
                        )
                        step.values = self._add(now, m, width, step.values)
                    self._put(m - first, rows, step.results)

    # --- both ---------------------------------------------------------------------------------

    @contextmanager
    def _register_tiles(self, first: Value, last: Value) -> Iterator[Iterator[tuple[Value, int, list[Value]]]]:
        """Cover the tokens and the tile's rows: yields ``first token, tokens, first rows of the vectors``."""
        fn, lanes, vectors = self.fn, self.isa.lanes, self.method.vectors

        def emit() -> Iterator[tuple[Value, int, list[Value]]]:
            with token_tiles(fn, first, last, self.method.widths) as tiles:
                for m, width in tiles:
                    with fn.loop(0, TILE, vectors * lanes) as row:
                        yield m, width, [row.index + v * lanes for v in range(vectors)]

        yield emit()

    def _clear(self, tokens: Value) -> None:
        with self.fn.loop(0, tokens * TILE, self.isa.lanes) as i:
            self.fn.store(self.fn.const(vec(F32, self.isa.lanes), 0.0), self.sums, i.index << 2, align=4 * self.isa.lanes)

    def _get(self, token: Value, width: int, rows: list[Value]) -> list[Value]:
        fn, lanes = self.fn, self.isa.lanes
        return [
            fn.load(vec(F32, lanes), self.sums, token * (4 * TILE), t * 4 * TILE, row << 2, align=4 * lanes)
            for t in range(width)
            for row in rows
        ]

    def _put(self, token: Value, rows: list[Value], values: list[Value]) -> None:
        for i, value in enumerate(values):
            t, v = divmod(i, len(rows))
            at = (token * (4 * TILE), t * 4 * TILE, rows[v] << 2)
            self.fn.store(value, self.sums, *at, align=4 * self.isa.lanes)

    def _add(self, step: _Step, m: Value, width: int, sums: list[Value]) -> list[Value]:
        """Add a step to the sums ``[token][row vector]`` of ``width`` tokens from ``m`` on."""
        fn, isa, lanes, halves = self.fn, self.isa, self.isa.lanes, self.reader.halves
        count = len(step.scales)
        x = fn.at(self.codes, m * self.columns, step.k * STEP)
        record_stride = self.columns // STEP * act.RECORD_BYTES
        record0 = fn.at(self.records, m * record_stride, step.k * act.RECORD_BYTES)
        records = [fn.at(record0, t * record_stride) for t in range(width)]
        out = list(sums)
        for half in range(halves):
            start = [self._start(record, half) for record in records]
            dots = [Dot(start[t]) for t in range(width) for _ in range(count)]
            for j in range(half * OPERANDS // halves, (half + 1) * OPERANDS // halves):
                codes = [step.operand(j, v) for v in range(count)]
                for t in range(width):
                    quad = fn.load(I32, x, t * self.columns + 4 * j, align=4).splat(lanes)
                    for v in range(count):
                        i = t * count + v
                        dots[i] = isa.add(dots[i], codes[v], quad, self._top)
            for t, record in enumerate(records):
                x_scale = fn.load(F32, record, act.SCALE, align=4).splat(lanes)
                for v in range(count):
                    i, s = t * count + v, step.scales[v][half]
                    out[i] = fn.fma(isa.total(dots[i]).to_float(), s.scale * x_scale, out[i])
                    if s.minimum is not None:
                        out[i] = fn.fma(s.minimum, self._scaled_sum(record, half), out[i])
        return out

    @property
    def _top(self) -> int:
        return (1 << sum(self.reader.format.planes)) - 1

    def _minus_sum(self, record: Value, half: int) -> Value:
        def load(offset: int) -> Value:
            return self.fn.load(I32, record, offset, align=4)

        if self.reader.halves == 1:
            return load(act.MINUS_SUM)
        return load(act.MINUS_FIRST) if half == 0 else load(act.MINUS_SUM) - load(act.MINUS_FIRST)

    def _start(self, record: Value, half: int) -> Value:
        """What the integer sum starts from, so that it ends as the sum of ``(q - zero) * x``."""
        lanes = self.isa.lanes
        zero = self.reader.format.zero - (128 if self._top == 255 and self.isa.signed_bytes else 0)
        if zero == 0:
            return self.fn.const(vec(I32, lanes), 0)
        return self._minus_sum(record, half).splat(lanes) * zero

    def _scaled_sum(self, record: Value, half: int) -> Value:
        fn, lanes = self.fn, self.isa.lanes
        if self.reader.halves == 1:
            return fn.load(F32, record, act.SCALED_SUM, align=4).splat(lanes)
        total = (-self._minus_sum(record, half)).to_float()
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
