"""Gated linear layer whose results leave as int8 codes: the gated floats never reach memory.

What :class:`.Linear` makes of 32 rows of gate and up is a block of the next layer's K. It is quantized, as
:mod:`.activations` says, while it lies in a cache; a prompt's gated floats, the largest activations of a step, would be
written to a far cache and read back from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, Function, Value, vec
from ryzc.formats.lanes import TILE
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels import schedule
from ryzc.templates.kernels.epilogue import Epilogue
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple
from ryzc.templates.kernels.linear import Results, multiplications
from ryzc.templates.kernels.quantize_row import BLOCKS, LANES, Pair, quantize_blocks
from ryzc.templates.kernels.tiling import MOST, token_tiles, work_items

TILES = 2
"""Tiles of gate and up that give a block."""
_ROW_BYTES = 4 * act.BLOCK


@dataclass(frozen=True)
class LinearQuantize(Kernel):
    """Parameters of the family.

    Attributes:
        format: an affine weight format.
        rows, columns: N and K, the rows of gate and up together; half of N is a multiple of 32.
        epilogue: a gate, see :mod:`.epilogue`.
        count: the context field with the number of tokens: ``token_count`` or ``row_count``.
        unit, out_unit: of the records that are read and written, see :mod:`.activations`.
        schedule: as of :class:`.Linear`.
    """

    format: str
    rows: int
    columns: int
    epilogue: str
    count: str = "token_count"
    unit: int = 1
    out_unit: int = 1
    schedule: tuple[str, ...] = ()

    operands: ClassVar[tuple[str, ...]] = ("weights", "codes", "records", "out", "out_records")

    def __post_init__(self) -> None:
        require_multiple(self, 2 * act.BLOCK, rows=self.rows)

    def methods(self, isa: Isa) -> tuple[str, ...]:
        return schedule.methods(isa)

    def default_schedule(self, isa: Isa) -> tuple[str, ...]:
        return schedule.default(isa)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        epilogue = Epilogue(self.epilogue, TILES * TILE, act.BLOCK)
        gated = fn.stack(F32, MOST * act.BLOCK)
        tokens, entries = context_field(fn, self.count), self.schedule or self.default_schedule(isa)
        for multiply in multiplications(fn, isa, self.format, self.columns, self.unit, tokens, entries):
            with work_items(fn, self.rows // (TILES * TILE), tokens, multiply.token_bytes) as (block, first, last):
                out = fn.at(gated, first * -_ROW_BYTES)
                with fn.loop(0, TILES) as tile:
                    results = _Gated(fn, isa.lanes, epilogue, tile.index, out, self, block)
                    multiply.run(block * TILES + tile.index, first, last, results)
                self._quantize(fn, block, first, last, out)
        fn.finish()

    def places(self, fn: Function, block: Value) -> list[tuple[Value, int]]:
        """Where token 0's codes and record of a block go, and the bytes from there to the next token's."""
        columns = self.rows // 2
        return [
            (fn.at(fn.args["out"], block * act.BLOCK), act.code_bytes(columns)),
            (fn.at(fn.args["out_records"], block * act.RECORD_BYTES), act.record_bytes(columns)),
        ]

    def _quantize(self, fn: Function, block: Value, first: Value, last: Value, gated: Value) -> None:
        """Write codes and records of a block of tokens ``first .. last``."""
        with token_tiles(fn, first, last, (BLOCKS, 1)) as tiles:
            for m, width in tiles:
                codes, records = (
                    [fn.at(start, (m + i) * stride) for i in range(width)] for start, stride in self.places(fn, block)
                )
                pairs = [_pair(fn, gated, m + i) for i in range(width)]
                words = quantize_blocks(fn, pairs, codes, self.out_unit)
                size = words.lanes // width
                for i, record in enumerate(records):
                    fn.store(words.shuffle(range(i * size, (i + 1) * size)), record, align=16)


KERNEL = LinearQuantize


@dataclass(frozen=True)
class _Gated(Results):
    """Results that wait nearby until both tiles of a block are there; asked for is where their codes will go."""

    layer: LinearQuantize
    block: Value

    def ask(self, m: Value, count: int) -> None:
        fn = self.fn
        with fn.when(self.tile.compare("==", TILES - 1)):
            for start, stride in self.layer.places(fn, self.block):
                for t in range(count):
                    fn.prefetch(start, m * stride, t * stride, write=True)


def _pair(fn: Function, gated: Value, token: Value) -> Pair:
    low, high = (fn.load(vec(F32, LANES), gated, token * _ROW_BYTES, at, align=64) for at in (0, 4 * LANES))
    return low, high
