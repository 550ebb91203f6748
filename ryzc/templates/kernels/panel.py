"""A stretch of a weight tile taken apart in the L1 cache: code bytes as the dot product wants them, scales as floats.

What costs several instructions a code when a tile is decoded in registers is done once here for all tokens of a
work item. Laid out step by step (32 elements of K):

    operands   8 x 32 rows x 4 bytes
    scales     for each half of the step: 32 x f32, then 32 x f32 minima where the format has them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ryzc.codegen.vector import F32, I32, Function, Value, vec
from ryzc.formats import AffineFormat
from ryzc.formats.lanes import OPERANDS, STEP, TILE, block_bytes
from ryzc.templates.kernels.weights import PackedBlocks, Scales

STRETCH = 600
"""About so many elements of K: with its scales a stretch takes some 25 KiB, read in order, from L1 or a near L2."""
_ROW = 4 * TILE


@dataclass(frozen=True)
class Panel:
    """Takes up to ``blocks`` blocks of a tile apart, into ``scratch``, and reads them back by row vectors."""

    reader: PackedBlocks
    scratch: Value
    blocks: int

    @staticmethod
    def step_bytes_of(fmt: AffineFormat) -> int:
        """Bytes of a step."""
        return _ROW * (OPERANDS + STEP // fmt.group * (1 + (fmt.min_sign != 0)))

    @classmethod
    def on_stack(cls, fn: Function, reader: PackedBlocks, columns: int) -> Panel:
        """A panel with memory of its own, for stretches of K that are as equal as its blocks allow."""
        blocks = columns // reader.format.block
        stretches = max(1, round(columns / STRETCH))
        longest = -(-blocks // stretches)
        memory = fn.stack(F32, longest * reader.steps * cls.step_bytes_of(reader.format) // 4)
        return cls(reader, memory, longest)

    @property
    def _step_bytes(self) -> int:
        return self.step_bytes_of(self.reader.format)

    def unpack_scales(self, first: Value, blocks: Value) -> None:
        """Write the scales of ``blocks`` blocks, the first of which is packed at ``first``."""
        reader, fn = self.reader, self.reader.fn
        with fn.loop(0, blocks) as block, fn.loop(0, TILE, reader.lanes) as row:
            scales = reader.scales(fn.at(first, block.index * block_bytes(reader.format)), row.index)
            for i, of_half in enumerate(scales):
                step, half = divmod(i, reader.halves)
                to = fn.at(self.step(block.index * reader.steps + step), row.index << 2)
                parts = [of_half.scale] + ([] if of_half.minimum is None else [of_half.minimum])
                for part, values in enumerate(parts):
                    at = (OPERANDS + half * len(parts) + part) * _ROW
                    fn.store(values, to, at, align=4 * reader.lanes)

    def unpack_codes(self, first: Value, blocks: Value, prefetch: int) -> None:
        """Write the codes of these blocks, asking for bytes ``prefetch`` ahead."""
        reader, fn = self.reader, self.reader.fn
        with fn.loop(0, blocks * reader.steps) as step, fn.loop(0, TILE, reader.lanes) as row:
            for j in range(OPERANDS):
                self.unpack(first, step.index, j, [row.index], row.index // reader.lanes, 0, prefetch)

    def unpack(
        self, first: Value, step: Value, j: int, rows: Sequence[Value], part: Value, v: int, prefetch: int
    ) -> Value:
        """Write operand ``j`` of a step for the ``v``-th of the row vectors of a part of the tile, and return it.

        With the first of them go requests for the part of the weights that is theirs, ``prefetch`` bytes ahead.
        """
        reader, fn = self.reader, self.reader.fn
        block, at = (step, fn.i64(0)) if reader.steps == 1 else (step // reader.steps, step % reader.steps)
        packed = fn.at(first, block * block_bytes(reader.format))
        if v == 0:
            share = reader.share * reader.lanes * len(rows) // TILE
            of_part = block_bytes(reader.format) * reader.lanes * len(rows) // TILE
            ahead = fn.at(packed, part * of_part, at * share)
            reader.prefetch(ahead, share, prefetch, j)
        codes = reader.operand(fn.at(packed, at * reader.step_bytes, reader.header_bytes), j, rows[v])
        fn.store(codes, self.step(step), j * _ROW, rows[v] << 2, align=4 * reader.lanes)
        return codes

    def step(self, index: Value) -> Value:
        """Where a step of the stretch lies."""
        return self.reader.fn.at(self.scratch, index * self._step_bytes)

    def operand(self, step: Value, j: int, row: Value) -> Value:
        """As :meth:`PackedBlocks.operand`."""
        fn, lanes = self.reader.fn, self.reader.lanes
        return fn.load(vec(I32, lanes), step, j * _ROW, row << 2, align=4 * lanes)

    def scales(self, step: Value, row: Value) -> list[Scales]:
        """The scales of each half of a step."""
        fn, lanes, reader = self.reader.fn, self.reader.lanes, self.reader
        parts = 1 + (reader.format.min_sign != 0)
        found = []
        for half in range(reader.halves):
            values = [
                fn.load(vec(F32, lanes), step, (OPERANDS + half * parts + i) * _ROW, row << 2, align=4 * lanes)
                for i in range(parts)
            ]
            found.append(Scales(values[0], values[1] if parts == 2 else None))
        return found
