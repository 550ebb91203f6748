"""Reading packed weights lane by lane: the code side of :mod:`ryzc.formats.lanes`.

Everything here works on ``lanes`` neighbouring rows of a tile. A vector kernel takes a register's
worth; the embedding takes one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ryzc.codegen.isa import field
from ryzc.codegen.vector import F16, F32, I32, LINE, Function, Value, vec
from ryzc.formats import AffineFormat
from ryzc.formats.lanes import OPERANDS, STEP, TILE, block_bytes, factor_pieces, factor_words

EARLIER = 8
"""How many times as far ahead weights are asked for into L2 as into L1."""
HALF_ROW = 2 * TILE
WORD_ROW = 4 * TILE


@dataclass(frozen=True)
class Scales:
    """Float32 scales of one group for some rows: ``w = scale * (q - zero) + minimum``.

    ``minimum`` carries the format's sign and is ``None`` where the format has none.
    """

    scale: Value
    minimum: Value | None


@dataclass(frozen=True)
class PackedBlocks:
    """Reads the blocks of an affine tile.

    Attributes:
        fn: the function under construction.
        format: the weight format.
        lanes: rows taken at once.
        field: how to take bits out of bytes, see :meth:`ryzc.codegen.isa.Isa.field`.
    """

    fn: Function
    format: AffineFormat
    lanes: int
    field: Callable[[Value, int, int, int], Value] = field

    @property
    def steps(self) -> int:
        """Steps of 32 elements in a block."""
        return self.format.block // STEP

    @property
    def halves(self) -> int:
        """Groups in a step: 1, or 2 where sub-scales cover 16 elements."""
        return STEP // self.format.group

    @property
    def step_bytes(self) -> int:
        return WORD_ROW * sum(self.format.planes)

    @property
    def header_bytes(self) -> int:
        """Bytes of scales in front of a block's codes."""
        return block_bytes(self.format) - self.steps * self.step_bytes

    @property
    def share(self) -> int:
        """Bytes of a block, header and all, that fall to each of its steps."""
        return -(-block_bytes(self.format) // self.steps)

    def prefetch(self, part: Value, size: int, distance: int, j: int, turn: tuple[int, int] = (0, 1)) -> None:
        """With operand ``j``, ask for its part of the ``size`` bytes at ``part``, so far ahead; 0 asks for nothing.

        Each line is asked for twice: early into L2, which has room for many requests under way, and later into L1,
        which has not, and gets it from there at once. Where operands are read several times, ``turn`` says which time
        this is, and of how many.
        """
        lines = -(-size // LINE)
        now, times = turn
        for line in range(lines) if distance else ():
            if line * OPERANDS * times // lines == now * OPERANDS + j:
                self.fn.prefetch(part, distance * EARLIER + line * LINE, level=2)
                self.fn.prefetch(part, distance + line * LINE)

    def _half(self, block: Value, index: int, row: Value | int) -> Value:
        fn = self.fn
        offset = row * 2 if isinstance(row, int) else row << 1
        return fn.load(self._vector(F16), block, index * HALF_ROW, offset, align=2).to_float()

    def _vector(self, element: object) -> object:
        return vec(element, self.lanes)

    def scales(self, block: Value, row: Value | int) -> list[Scales]:
        """The scales of every group of a block, in order of K, for the rows from ``row`` on."""
        fmt = self.format
        d = self._half(block, 0, row)
        m = self._half(block, 1, row) if fmt.min_sign else None
        if m is not None and fmt.min_sign < 0:
            m = -m
        groups = fmt.block // fmt.group
        if not factor_words(fmt):
            return [Scales(d, m)] * groups
        words = self._factor_words(block, row)
        found = []
        for g in range(groups):
            scale = d * self._factor(words, g, signed=fmt.scale_bits == 8)
            minimum = m * self._factor(words, groups + g, signed=False) if m is not None and fmt.min_bits else m
            found.append(Scales(scale, minimum))
        return found

    def _factor_words(self, block: Value, row: Value | int) -> list[Value]:
        fn, fmt = self.fn, self.format
        base = HALF_ROW * (1 + (fmt.min_sign != 0))
        offset = row * 4 if isinstance(row, int) else row << 2
        return [
            fn.load(self._vector(I32), block, base + i * WORD_ROW, offset, align=4) for i in range(factor_words(fmt))
        ]

    def _factor(self, words: list[Value], index: int, *, signed: bool) -> Value:
        pieces = factor_pieces(self.format, index)
        if signed:
            word, shift, _, width = pieces[0]
            return (words[word] << 32 - width - shift).sar(32 - width).to_float()
        value: Value | None = None
        for word, shift, low, width in pieces:
            piece = words[word] >> shift & (1 << width) - 1
            value = piece if value is None else value | piece << low
        assert value is not None
        if self.format.scale_zero and index < self.format.block // self.format.group:
            value = value - self.format.scale_zero
        return value.to_float()

    def operand(self, step: Value, j: int, row: Value | int) -> Value:
        """Operand ``j`` of a step: per lane the unsigned codes of elements ``4 j .. 4 j + 3`` as bytes."""
        fn = self.fn
        offset = row * 4 if isinstance(row, int) else row << 2
        low, codes = 0, None
        for width in self.format.planes:
            word = fn.load(self._vector(I32), step, (low + j % width) * WORD_ROW, offset, align=4)
            bits = self.field(word, width * (j // width), width, low)
            codes = bits if codes is None else codes | bits
            low += width
        assert codes is not None
        return codes

    def elements(self, step: Value, j: int, row: Value | int) -> list[Value]:
        """The four elements of operand ``j`` as float32 vectors ``q - zero``, in order of K."""
        codes = self.operand(step, j, row)
        return [((codes >> 8 * i & 255) - self.format.zero).to_float() for i in range(4)]


def stack_scales(reader: PackedBlocks, block: Value, rows: Sequence[Value], stack: Value) -> None:
    """Expand the sub-scales of a block for some rows onto the stack, ``[group][row vector][scale, minimum]``."""
    fn, width = reader.fn, 4 * reader.lanes
    for v, row in enumerate(rows):
        for g, scales in enumerate(reader.scales(block, row)):
            base = 2 * width * (g * len(rows) + v)
            fn.store(scales.scale, stack, base, align=width)
            if scales.minimum is not None:
                fn.store(scales.minimum, stack, base + width, align=width)


def stacked_scales(reader: PackedBlocks, stack: Value, group: Value, v: int, count: int) -> Scales:
    """What :func:`stack_scales` stored for a group and the ``v``-th of ``count`` row vectors."""
    fn, width = reader.fn, 4 * reader.lanes
    base = fn.at(stack, group * (2 * width * count), 2 * width * v)
    scale = fn.load(vec(F32, reader.lanes), base, align=width)
    minimum = fn.load(vec(F32, reader.lanes), base, width, align=width) if reader.format.min_sign else None
    return Scales(scale, minimum)


__all__ = ["OPERANDS", "PackedBlocks", "Scales", "stack_scales", "stacked_scales"]
