"""Linear layer over packed weights and float32 activations.

Serves float weights, and every format in the exact mode that the oracle is held against. For row
``n`` and token ``m``, four running sums take K in turn (element ``k`` goes to sum ``k % 4``), each by
fused multiply-adds in ascending order; the result is ``(s0 + s1) + (s2 + s3)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc import formats
from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F16, F32, I16, I32, Function, Value, vec
from ryzc.formats import AffineFormat, WeightFormat
from ryzc.formats.lanes import OPERANDS, STEP, TILE, block_bytes, tile_bytes
from ryzc.templates.kernels.epilogue import Epilogue
from ryzc.templates.kernels.kernel import Kernel, begin, context_field
from ryzc.templates.kernels.tiling import token_tiles, work_items
from ryzc.templates.kernels.weights import PackedBlocks, Scales, stack_scales, stacked_scales

SUMS = 4
_FLOATS = {"f32": F32, "f16": F16, "bf16": I16}


@dataclass(frozen=True)
class LinearF32(Kernel):
    """Parameters as in :class:`ryzc.templates.kernels.linear.Linear`; any weight format, any K % 4 == 0."""

    format: str
    rows: int
    columns: int
    epilogue: str
    out_stride: int
    count: str = "token_count"

    operands: ClassVar[tuple[str, ...]] = ("weights", "x", "out")

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fmt = formats.get(self.format)
        epilogue = Epilogue(self.epilogue, self.rows, self.out_stride)
        fn = begin(module, symbol, self.operands)
        weights, x, out = (fn.args[o] for o in self.operands)
        stack = None
        if isinstance(fmt, AffineFormat) and fmt.block > STEP:
            stack = fn.stack(F32, 2 * TILE * (fmt.block // fmt.group))
        tiles = -(-self.rows // TILE)
        widths = (2, 1) if isa.registers == 32 else (1,)
        with (
            work_items(fn, tiles, context_field(fn, self.count), 4 * self.columns) as (tile, first, last),
            token_tiles(fn, first, last, widths) as tile_of,
        ):
            base = fn.at(weights, tile * tile_bytes(fmt, self.columns))
            for m, width in tile_of:
                with epilogue.rows(fn, isa.lanes, wide=False) as rows:
                    inner = _Tile(fn, isa.lanes, fmt, self.columns, width, rows, stack)
                    y = inner.run(base, fn.at(x, m * (4 * self.columns)))
                    epilogue.write(fn, isa.lanes, y, rows, tile, out, m)
        fn.finish()


KERNEL = LinearF32


@dataclass(frozen=True)
class _Tile:
    fn: Function
    lanes: int
    format: WeightFormat
    columns: int
    width: int
    rows: list[Value]
    stack: Value | None

    def run(self, base: Value, x: Value) -> list[list[Value]]:
        """Sums ``[token][row vector]``."""
        zeros = [self.fn.const(vec(F32, self.lanes), 0.0)] * (self.width * len(self.rows) * SUMS)
        sums = self._affine(base, x, zeros) if isinstance(self.format, AffineFormat) else self._float(base, x, zeros)
        count = len(self.rows)
        joined = [(s[0] + s[1]) + (s[2] + s[3]) for s in (sums[i : i + SUMS] for i in range(0, len(sums), SUMS))]
        return [joined[t * count : (t + 1) * count] for t in range(self.width)]

    def _add(self, sums: list[Value], v: int, weights: list[Value], x: Value, k: Value, offset: int) -> None:
        """Add four consecutive elements of a row vector to every token's sums."""
        for t in range(self.width):
            for i, w in enumerate(weights):
                at = (t * len(self.rows) + v) * SUMS + i
                value = self.fn.load(F32, x, k << 2, 4 * (t * self.columns + offset + i), align=4)
                sums[at] = self.fn.fma(w, value.splat(self.lanes), sums[at])

    def _float(self, base: Value, x: Value, zeros: list[Value]) -> list[Value]:
        fn, fmt = self.fn, self.format
        with fn.loop(0, self.columns, SUMS, zeros) as loop:
            sums = list(loop.values)
            for v, row in enumerate(self.rows):
                weights = [self._load(base, loop.index * (TILE * fmt.block_bytes), row + i * TILE) for i in range(SUMS)]
                self._add(sums, v, weights, x, loop.index, 0)
            loop.values = sums
        return loop.results

    def _load(self, base: Value, at: Value, element: Value) -> Value:
        fn, size = self.fn, self.format.block_bytes
        raw = fn.load(vec(_FLOATS[self.format.name], self.lanes), base, at, element * size, align=size)
        if self.format.name == "bf16":
            return (raw.zext(I32) << 16).bits(vec(F32, self.lanes))
        return raw if self.format.name == "f32" else raw.to_float()

    def _affine(self, base: Value, x: Value, zeros: list[Value]) -> list[Value]:
        fn, fmt = self.fn, self.format
        assert isinstance(fmt, AffineFormat)
        reader = PackedBlocks(fn, fmt, self.lanes)
        rows = self.rows
        with fn.loop(0, self.columns // fmt.block, 1, zeros) as blocks:
            block = fn.at(base, blocks.index * block_bytes(fmt))
            step0 = fn.at(block, reader.header_bytes)
            k0 = blocks.index * fmt.block
            if self.stack is None:
                scales = [[reader.scales(block, row)[0]] for row in rows]
                blocks.values = self._step(reader, step0, k0, scales, x, blocks.values)
            else:
                stack_scales(reader, block, rows, self.stack)
                with fn.loop(0, reader.steps, 1, blocks.values) as steps:
                    first = steps.index * reader.halves
                    scales = [
                        [stacked_scales(reader, self.stack, first + h, v, len(rows)) for h in range(reader.halves)]
                        for v in range(len(rows))
                    ]
                    step = fn.at(step0, steps.index * reader.step_bytes)
                    steps.values = self._step(reader, step, k0 + steps.index * STEP, scales, x, steps.values)
                blocks.values = steps.results
        return blocks.results

    def _step(
        self, reader: PackedBlocks, step: Value, k: Value, scales: list[list[Scales]], x: Value, values: list[Value]
    ) -> list[Value]:
        sums = list(values)
        for j in range(OPERANDS):
            for v, row in enumerate(self.rows):
                s = scales[v][j * reader.halves // OPERANDS]
                weights = [s.scale * q for q in reader.elements(step, j, row)]
                if s.minimum is not None:
                    weights = [w + s.minimum for w in weights]
                self._add(sums, v, weights, x, k, 4 * j)
        return sums


def reference(fmt: WeightFormat, stored: npt.NDArray[np.uint8], x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The meaning: ``[T, N]`` in float64 of ``uint8 [N, row_bytes]`` and ``float32 [T, K]``."""
    return x.astype(np.float64) @ fmt.decode(stored).astype(np.float64).T
