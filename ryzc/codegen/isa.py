"""Instruction sets: what the integer dot product is made of, and how many registers there are.

A kernel adds products to a :class:`Dot`: per 32-bit lane, four unsigned bytes of ``codes`` times four
signed bytes of ``x``. Which instructions that takes is the only thing about the CPU that kernels do
not spell themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from ryzc.codegen.vector import I1, I8, I16, I32, I64, Function, Value, vec


@dataclass(frozen=True)
class Dot:
    """A dot product under way.

    Attributes:
        total: 32-bit sums.
        pairs: 16-bit sums that are not in ``total`` yet, on instruction sets that have them.
        room: products that these can still take without overflow.
    """

    total: Value
    pairs: Value | None = None
    room: int = 0


@dataclass(frozen=True)
class Isa(ABC):
    """An instruction set.

    Attributes:
        name: ``avx512_vnni`` or ``avx2``.
        lanes: 32-bit lanes of a register.
        registers: vector registers.
        signed_bytes: whether full-range (8-bit) codes are taken as signed, ``code - 128``, because the
            unsigned product would saturate.
    """

    name: str
    lanes: int
    registers: int
    signed_bytes: bool

    @abstractmethod
    def add(self, dot: Dot, codes: Value, x: Value, top: int) -> Dot:
        """Add per lane the sum of four ``code * x``, exactly.

        ``codes`` are at most ``top``; with ``top`` of 255 they count as ``code - 128`` where ``signed_bytes``.
        """

    def total(self, dot: Dot) -> Value:
        """The 32-bit sums of all products."""
        return dot.total

    def capacity(self, top: int) -> int:
        """How many products of codes up to ``top`` a long sum takes before :meth:`settle`; 0 is any number.

        A long sum is a value that a loop can carry: it begins as :meth:`nothing`, :meth:`accumulate` adds to it.
        """
        del top
        return 0

    def nothing(self, fn: Function) -> Value:
        """A long sum of no products."""
        return fn.const(vec(I32, self.lanes), 0)

    def accumulate(self, carry: Value, codes: Value, x: Value) -> Value:
        """Add the products of four unsigned codes, below 128 where ``signed_bytes``, and four ``x`` a lane."""
        return self.add(Dot(carry), codes, x, 127).total

    def settle(self, total: Value, carry: Value) -> Value:
        """``total`` and a long sum, in 32 bits."""
        return total + carry

    @abstractmethod
    def add_pairs(self, total: Value, a: Value, b: Value) -> Value:
        """Add per 32-bit lane the sum of two products of signed 16-bit numbers; what leaves 32 bits wraps."""

    def store_part(self, codes: Sequence[Value], words: Value, part: Value, element: ir.IntType) -> None:
        """Store the low bits of int32 vectors as a part (8 or 16 bits) of the words in memory, one word a lane.

        The other parts, which other threads may write meanwhile, stay untouched.
        """
        fn, size = words.fn, element.width // 8
        place = fn.at(words, part * size)
        for i, vector in enumerate(codes):
            narrow = vector.to_int(element)
            for lane in range(vector.lanes):
                fn.store(narrow.lane(lane), place, 4 * (vector.lanes * i + lane), align=size)

    def field(self, word: Value, shift: int, width: int, low: int = 0) -> Value:
        """Of every byte the ``width`` bits from ``shift`` on, moved to bit ``low``; the byte's other bits are zero."""
        return field(word, shift, width, low)

    def dot(self, acc: Value, codes: Value, x: Value) -> Value:
        """``acc + sum of four code * x`` a lane; codes below 128 where ``signed_bytes``."""
        return self.total(self.add(Dot(acc), codes, x, 127))


def field(word: Value, shift: int, width: int, low: int = 0) -> Value:
    """As :meth:`Isa.field`, by shifts and a mask, on any integer or vector of 32 bits."""
    if width == 8:
        return word
    word = (word >> shift if shift else word) & ((1 << width) - 1) * 0x01010101
    return word << low if low else word


class Avx512Vnni(Isa):
    """AVX-512 with VNNI, one ``vpdpbusd`` a register, with VBMI and GFNI: Ryzens have all of them or none."""

    def __init__(self) -> None:
        super().__init__("avx512_vnni", 16, 32, False)

    def add(self, dot: Dot, codes: Value, x: Value, top: int) -> Dot:
        acc, quads = dot.total, vec(I8, 64)
        return Dot(acc.fn.call("llvm.x86.avx512.vpdpbusd.512", acc.type, acc, codes.bits(quads), x.bits(quads)))

    def add_pairs(self, total: Value, a: Value, b: Value) -> Value:
        pairs = vec(I16, 32)
        return total.fn.call("llvm.x86.avx512.vpdpwssd.512", total.type, total, a.bits(pairs), b.bits(pairs))

    def store_part(self, codes: Sequence[Value], words: Value, part: Value, element: ir.IntType) -> None:
        fn, parts = words.fn, 32 // element.width
        type_ = vec(element, codes[0].lanes * parts)
        mine = fn.const(type_, [i % parts for i in range(type_.count)])
        mask = mine.compare("==", part.to_int(element).splat(type_.count))
        shift = (part * element.width).to_int(I32).splat(codes[0].lanes)
        for i, vector in enumerate(codes):
            fn.store_masked((vector << shift).bits(type_), mask, words, 4 * vector.lanes * i)

    def field(self, word: Value, shift: int, width: int, low: int = 0) -> Value:
        if shift == low == 0:
            return field(word, shift, width)
        # One affine map of the bits of every byte: row 7 - i of the matrix says which bits are summed to bit i.
        matrix = sum(1 << 8 * (7 - bit) + bit - low + shift for bit in range(low, low + width))
        fn, quads = word.fn, vec(I8, 64)
        rows = fn.const(vec(I64, 8), matrix - (matrix >> 63 << 64)).bits(quads)
        return fn.call("llvm.x86.vgf2p8affineqb.512", quads, word.bits(quads), rows, fn.const(I8, 0)).bits(word.type)


class Avx2(Isa):
    """AVX2: ``vpmaddubsw`` to pairs in 16 bits, as many as fit, then ``vpmaddwd`` to sums in 32."""

    def __init__(self) -> None:
        super().__init__("avx2", 8, 16, True)

    def add(self, dot: Dot, codes: Value, x: Value, top: int) -> Dot:
        fn, quads, pairs = codes.fn, vec(I8, 32), vec(I16, 16)
        unsigned, signed, largest = codes.bits(quads), x.bits(quads), top
        if top > 127:
            # |w| * sign(x, w): two products of at most 128 * 127 fit into 16 bits, 255 * 127 would not.
            signs = (codes ^ -0x7F7F7F80).bits(quads)
            unsigned = fn.call("llvm.abs.v32i8", quads, signs, fn.const(I1, 0))
            signed = fn.call("llvm.x86.avx2.psign.b", quads, x.bits(quads), signs)
            largest = 128
        products = fn.call("llvm.x86.avx2.pmadd.ub.sw", pairs, unsigned, signed)
        if dot.pairs is None:
            return Dot(dot.total, products, 0x7FFF // (2 * 127 * largest) - 1)
        if dot.room == 0:
            return Dot(self.total(dot), products, 0x7FFF // (2 * 127 * largest) - 1)
        return Dot(dot.total, dot.pairs + products, dot.room - 1)

    def add_pairs(self, total: Value, a: Value, b: Value) -> Value:
        pairs = vec(I16, 16)
        return total + total.fn.call("llvm.x86.avx2.pmadd.wd", total.type, a.bits(pairs), b.bits(pairs))

    def total(self, dot: Dot) -> Value:
        return dot.total if dot.pairs is None else self.settle(dot.total, dot.pairs)

    def capacity(self, top: int) -> int:
        return 0x7FFF // (2 * 127 * top)

    def nothing(self, fn: Function) -> Value:
        return fn.const(vec(I16, 16), 0)

    def accumulate(self, carry: Value, codes: Value, x: Value) -> Value:
        quads = vec(I8, 32)
        return carry + codes.fn.call("llvm.x86.avx2.pmadd.ub.sw", carry.type, codes.bits(quads), x.bits(quads))

    def settle(self, total: Value, carry: Value) -> Value:
        fn = total.fn
        return total + fn.call("llvm.x86.avx2.pmadd.wd", vec(I32, 8), carry, fn.const(vec(I16, 16), 1))


AVX512_VNNI = Avx512Vnni()
AVX2 = Avx2()
BY_NAME = {isa.name: isa for isa in (AVX512_VNNI, AVX2)}
