"""A stretch of a weight tile taken apart in the L1 cache: code bytes as the dot product wants them, scales as floats.

What costs several instructions a code when a tile is decoded in registers is done once here for all tokens of a
work item. Laid out step by step (32 elements of K):

    operands   8 x 32 rows x 4 bytes
    scales     for each half of the step: 32 x f32, then 32 x f32 minima where the format has them
"""

from __future__ import annotations

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
    """Unpacks up to ``blocks`` blocks of a tile into ``scratch``, and reads them back by row vectors."""

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

    def unpack(self, first: Value, blocks: Value, prefetch: int) -> None:
        """Take apart ``blocks`` blocks from the packed block at ``first`` on, asking for bytes ``prefetch`` ahead."""
        reader, fn = self.reader, self.reader.fn
        steps, size = reader.steps, block_bytes(reader.format)
        share = size * reader.lanes // (TILE * steps)  # of a step, in each pass over the rows
        with fn.loop(0, blocks) as block, fn.loop(0, TILE, reader.lanes) as row:
            packed = fn.at(first, block.index * size)
            ahead = fn.at(packed, row.index * (size // TILE))
            scales = reader.scales(packed, row.index)
            for step in range(steps):
                to = fn.at(self.scratch, (block.index * steps + step) * self._step_bytes, row.index << 2)
                codes = fn.at(packed, reader.header_bytes + step * reader.step_bytes)
                for j in range(OPERANDS):
                    reader.prefetch(fn.at(ahead, step * share), share, prefetch, j)
                    fn.store(reader.operand(codes, j, row.index), to, j * _ROW, align=4 * reader.lanes)
                for half in range(reader.halves):
                    of_half = scales[step * reader.halves + half]
                    parts = [of_half.scale] + ([] if of_half.minimum is None else [of_half.minimum])
                    for i, part in enumerate(parts):
                        at = (OPERANDS + half * len(parts) + i) * _ROW
                        fn.store(part, to, at, align=4 * reader.lanes)

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
