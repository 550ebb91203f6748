"""Linear layer over packed weights and int8 activations.

For every row ``n`` and token ``m``, over the groups ``g`` of K in ascending order:

    y = fma(float(sum over the group of (q - zero) * x), scale[n, g] * x_scale[m, block], y)
    y = fma(minimum[n, g], x_scale * sum of x, y)          where the format has minima

The sums in brackets are exact integers. The order is fixed, so a token's result has the same bits in
every tile size, at every thread count and in every batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc import formats
from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I32, Function, Value, vec
from ryzc.formats import AffineFormat
from ryzc.formats.lanes import OPERANDS, STEP, TILE, block_bytes, tile_bytes
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels.epilogue import Epilogue
from ryzc.templates.kernels.kernel import Kernel, begin, context_field
from ryzc.templates.kernels.tiling import token_tiles, work_items
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
    """

    format: str
    rows: int
    columns: int
    epilogue: str
    out_stride: int
    count: str = "token_count"

    operands: ClassVar[tuple[str, ...]] = ("weights", "codes", "records", "out")

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fmt = formats.get(self.format)
        assert isinstance(fmt, AffineFormat)
        epilogue = Epilogue(self.epilogue, self.rows, self.out_stride)
        fn = begin(module, symbol, self.operands)
        weights, codes, records, out = (fn.args[o] for o in self.operands)
        stack = fn.stack(F32, 2 * TILE * (fmt.block // fmt.group)) if fmt.block > STEP else None
        tiles = -(-self.rows // TILE)
        tokens = context_field(fn, self.count)
        with work_items(fn, tiles, tokens) as (tile, first, last):
            base = fn.at(weights, tile * tile_bytes(fmt, self.columns))
            with token_tiles(fn, first, last, _token_tiles(isa)) as tile_of:
                for m, width in tile_of:
                    with epilogue.rows(fn, isa.lanes, wide=width == 1) as rows:
                        x = fn.at(codes, m * self.columns)
                        a = fn.at(records, m * (self.columns // STEP * act.RECORD_BYTES))
                        y = _Tile(fn, isa, fmt, self.columns, width, rows, stack).run(base, x, a)
                        epilogue.write(fn, isa.lanes, y, rows, tile, out, m)
        fn.finish()


KERNEL = Linear


def _token_tiles(isa: Isa) -> tuple[int, ...]:
    """Tokens that share a load of weights: float and integer sums of all must fit the registers."""
    return (6, 4, 2, 1) if isa.registers == 32 else (4, 2, 1)


@dataclass(frozen=True)
class _Tile:
    """``width`` tokens against some row vectors of one tile."""

    fn: Function
    isa: Isa
    format: AffineFormat
    columns: int
    width: int
    rows: list[Value]
    stack: Value | None

    def run(self, base: Value, x: Value, records: Value) -> list[list[Value]]:
        """Sums ``[token][row vector]``, float32."""
        fn, fmt, lanes = self.fn, self.format, self.isa.lanes
        reader = PackedBlocks(fn, fmt, lanes)
        rows = self.rows
        zeros = [fn.const(vec(F32, lanes), 0.0)] * (self.width * len(rows))
        with fn.loop(0, self.columns // fmt.block, 1, zeros) as blocks:
            block = fn.at(base, blocks.index * block_bytes(fmt))
            step0 = fn.at(block, reader.header_bytes)
            k0 = blocks.index * reader.steps
            if self.stack is None:
                scales = [[s] for s in (reader.scales(block, row)[0] for row in rows)]
                blocks.values = self.step(reader, step0, k0, scales, x, records, blocks.values)
            else:
                stack_scales(reader, block, rows, self.stack)
                with fn.loop(0, reader.steps, 1, blocks.values) as steps:
                    step = fn.at(step0, steps.index * reader.step_bytes)
                    first = steps.index * reader.halves
                    found = [
                        [stacked_scales(reader, self.stack, first + h, v, len(rows)) for h in range(reader.halves)]
                        for v in range(len(rows))
                    ]
                    steps.values = self.step(reader, step, k0 + steps.index, found, x, records, steps.values)
                blocks.values = steps.results
        count = len(rows)
        return [blocks.results[t * count : (t + 1) * count] for t in range(self.width)]

    def step(
        self,
        reader: PackedBlocks,
        step: Value,
        k: Value,
        scales: list[list[Scales]],
        x: Value,
        records: Value,
        sums: list[Value],
    ) -> list[Value]:
        """Add the step ``k`` (32 elements) to the sums; ``scales`` is ``[row vector][half]``."""
        fn, lanes, count = self.fn, self.isa.lanes, len(self.rows)
        per_half = OPERANDS // reader.halves
        record = [self._record(records, k, t) for t in range(self.width)]
        out = list(sums)
        for half in range(reader.halves):
            start = [self._start(record[t], half, reader.halves) for t in range(self.width)]
            dots = [start[t] for t in range(self.width) for _ in range(count)]
            for j in range(half * per_half, (half + 1) * per_half):
                codes = [reader.operand(step, j, row) for row in self.rows]
                for t in range(self.width):
                    quad = fn.load(I32, x, k * STEP, t * self.columns + 4 * j, align=4).splat(lanes)
                    for v in range(count):
                        dots[t * count + v] = self._dot(dots[t * count + v], codes[v], quad)
            for t in range(self.width):
                x_scale = fn.load(F32, record[t], act.SCALE, align=4).splat(lanes)
                for v in range(count):
                    i, s = t * count + v, scales[v][half]
                    out[i] = fn.fma(dots[i].to_float(), s.scale * x_scale, out[i])
                    if s.minimum is not None:
                        out[i] = fn.fma(s.minimum, self._scaled_sum(record[t], half, reader.halves), out[i])
        return out

    def _record(self, records: Value, k: Value, t: int) -> Value:
        return self.fn.at(records, k * act.RECORD_BYTES, t * (self.columns // STEP * act.RECORD_BYTES))

    def _full_range(self) -> bool:
        return self.format.planes == (8,)

    def _dot(self, acc: Value, codes: Value, quad: Value) -> Value:
        return (self.isa.dot_bytes if self._full_range() else self.isa.dot)(acc, codes, quad)

    def _minus_sum(self, record: Value, half: int, halves: int) -> Value:

        def load(offset: int) -> Value:
            return self.fn.load(I32, record, offset, align=4)

        if halves == 1:
            return load(act.MINUS_SUM)
        return load(act.MINUS_FIRST) if half == 0 else load(act.MINUS_SUM) - load(act.MINUS_FIRST)

    def _start(self, record: Value, half: int, halves: int) -> Value:
        """What the integer sum starts from, so that it ends as the sum of ``(q - zero) * x``."""
        lanes = self.isa.lanes
        zero = self.format.zero - (128 if self._full_range() and self.isa.signed_bytes else 0)
        if zero == 0:
            return self.fn.const(vec(I32, lanes), 0)
        return self._minus_sum(record, half, halves).splat(lanes) * zero

    def _scaled_sum(self, record: Value, half: int, halves: int) -> Value:
        fn, lanes = self.fn, self.isa.lanes
        if halves == 1:
            return fn.load(F32, record, act.SCALED_SUM, align=4).splat(lanes)
        total = (-self._minus_sum(record, half, halves)).to_float()
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
