"""Instruction sets: what the integer dot product is made of, and how many registers there are.

A kernel asks for ``dot(acc, codes, x)``: per 32-bit lane, four unsigned bytes of ``codes`` times four
signed bytes of ``x``, added to ``acc``. Which instructions that takes is the only thing about the
CPU that kernels do not spell themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ryzc.codegen.vector import I1, I8, I16, I32, Value, vec


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
    def dot(self, acc: Value, codes: Value, x: Value) -> Value:
        """``acc + sum of four code * x`` a lane, exact; codes below 128 where ``signed_bytes``."""

    def dot_bytes(self, acc: Value, codes: Value, x: Value) -> Value:
        """As :meth:`dot` for 8-bit codes; the codes count as ``code - 128`` where ``signed_bytes``."""
        return self.dot(acc, codes, x)


class Avx512Vnni(Isa):
    """AVX-512 with VNNI: one ``vpdpbusd`` a register."""

    def __init__(self) -> None:
        super().__init__("avx512_vnni", 16, 32, False)

    def dot(self, acc: Value, codes: Value, x: Value) -> Value:
        quads = vec(I8, 64)
        return acc.fn.call("llvm.x86.avx512.vpdpbusd.512", acc.type, acc, codes.bits(quads), x.bits(quads))


class Avx2(Isa):
    """AVX2: ``vpmaddubsw`` to pairs in 16 bits, ``vpmaddwd`` to sums in 32."""

    def __init__(self) -> None:
        super().__init__("avx2", 8, 16, True)

    def dot(self, acc: Value, codes: Value, x: Value) -> Value:
        quads = vec(I8, 32)
        return acc + self._sum(acc, codes.bits(quads), x.bits(quads))

    def dot_bytes(self, acc: Value, codes: Value, x: Value) -> Value:
        # |w| * sign(x, w): two products of at most 128 * 127 fit into 16 bits, 255 * 127 would not.
        fn, quads = acc.fn, vec(I8, 32)
        signed = (codes ^ -0x7F7F7F80).bits(quads)
        magnitude = fn.call("llvm.abs.v32i8", quads, signed, fn.const(I1, 0))
        flipped = fn.call("llvm.x86.avx2.psign.b", quads, x.bits(quads), signed)
        return acc + self._sum(acc, magnitude, flipped)

    def _sum(self, acc: Value, unsigned: Value, signed: Value) -> Value:
        fn, pairs = acc.fn, vec(I16, 16)
        products = fn.call("llvm.x86.avx2.pmadd.ub.sw", pairs, unsigned, signed)
        return fn.call("llvm.x86.avx2.pmadd.wd", vec(I32, 8), products, fn.const(pairs, 1))


AVX512_VNNI = Avx512Vnni()
AVX2 = Avx2()
BY_NAME = {isa.name: isa for isa in (AVX512_VNNI, AVX2)}
