"""Rows of the packed embedding table as float32, one a token, times a constant.

The table is packed for the head that shares it, so a row lies in one lane of its tile: the reader of
packed weights is used with a single lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc import formats
from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F16, F32, I8, I16, I32, I64, Function, Value, vec
from ryzc.formats import AffineFormat, WeightFormat
from ryzc.formats.lanes import OPERANDS, TILE, block_bytes, tile_bytes
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, share
from ryzc.templates.kernels.weights import PackedBlocks

_FLOATS = {"f32": F32, "f16": F16, "bf16": I16}


@dataclass(frozen=True)
class Embedding(Kernel):
    """Parameters.

    Attributes:
        format: any weight format.
        rows, columns: the vocabulary and K.
        scale: what every element is multiplied by.
    """

    format: str
    rows: int
    columns: int
    scale: float

    operands: ClassVar[tuple[str, ...]] = ("weights", "out")

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fmt = formats.get(self.format)
        fn = begin(module, symbol, self.operands)
        tokens = context_field(fn, "tokens")
        with fn.loop(*share(fn, context_field(fn, "token_count"))) as i:
            token = fn.load(I32, tokens, i.index << 2, align=4).to_int(I64)
            tile = fn.at(fn.args["weights"], (token >> 5) * tile_bytes(fmt, self.columns))
            lane = token & (TILE - 1)
            out = fn.at(fn.args["out"], i.index * (4 * self.columns))
            if isinstance(fmt, AffineFormat):
                self._affine(fn, fmt, tile, lane, out)
            else:
                self._float(fn, fmt, tile, lane, out)
        fn.finish()

    def _affine(self, fn: Function, fmt: AffineFormat, tile: Value, lane: Value, out: Value) -> None:
        reader = PackedBlocks(fn, fmt, 1)
        quad = vec(F32, 4)
        with fn.loop(0, self.columns // fmt.block) as blocks:
            block = fn.at(tile, blocks.index * block_bytes(fmt))
            scales = reader.scales(block, lane)
            for step_index in range(reader.steps):
                step = fn.at(block, reader.header_bytes + step_index * reader.step_bytes)
                for j in range(OPERANDS):
                    group = scales[step_index * reader.halves + j * reader.halves // OPERANDS]
                    codes = reader.operand(step, j, lane).bits(vec(I8, 4)).zext(I32) - fmt.zero
                    value = group.scale.lane(0).splat(4) * codes.to_float()
                    if group.minimum is not None:
                        value = value + group.minimum.lane(0).splat(4)
                    if self.scale != 1.0:
                        value = value * self.scale
                    assert value.type == quad
                    at = 4 * (32 * step_index + 4 * j)
                    fn.store(value, out, blocks.index * (4 * fmt.block), at, align=4)

    def _float(self, fn: Function, fmt: WeightFormat, tile: Value, lane: Value, out: Value) -> None:
        with fn.loop(0, self.columns) as k:
            element = k.index * TILE + lane
            raw = fn.load(_FLOATS[fmt.name], tile, element * fmt.block_bytes, align=fmt.block_bytes)
            if fmt.name == "bf16":
                value = (raw.zext(I32) << 16).bits(F32)
            else:
                value = raw if fmt.name == "f32" else raw.to_float()
            fn.store(value * self.scale if self.scale != 1.0 else value, out, k.index << 2, align=4)


KERNEL = Embedding


def reference(
    fmt: WeightFormat, stored: npt.NDArray[np.uint8], tokens: npt.NDArray[np.int32], scale: float
) -> npt.NDArray[np.float32]:
    """The meaning: ``float32 [T, K]``, exact."""
    return fmt.decode(stored[tokens]) * np.float32(scale)
