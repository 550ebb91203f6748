"""Ternary weights times a token by table lookup, as T-MAC (arXiv:2407.00088) and TL2 (arXiv:2410.16144) do it.

A byte of the layout ``lookup`` stands for five elements of K of a row, and has but 243 values, while a layer has
thousands of rows. So what the five activations can add up to is tabulated once a token, and all rows look it up:
``vpermi2b`` takes 64 indices into the 128 entries of two registers. Half of the values are the negatives of the
others: tables hold those of the magnitudes, and bit 7 of an index negates what was found.

A sum of five int8 codes has more than 8 bits. It is kept exactly, as ``32 * high + low`` with ``low`` of 0 to 31, in
two tables: both parts can be negated, and four of either be added (a word of the layout), within signed bytes. Then
they are added to unsigned sums in 16 bits of even and of odd rows, and these to 32 bits after 256 words at the latest.

Does it pay? Microseconds for a token on a Xeon with AMX whose two cores had nothing else to do, weights of BitNet
b1.58 2B-4T in memory, best of three, on one thread and on two:

    rows x columns      planes        dense       lookup
     3840 x 2560      177   127    137   113    116    97
     2560 x 2560      102    82     90    89     78    74
    13824 x 2560      660   580    493   493    413   419
     2560 x 6912      270   272    266   265    204   215

It does there. 64 bytes of weights take 8.5 vector operations for 320 products (two ``vpermi2b``, a mask, two
negations, two additions, and six operations to widen what four bytes gave), ``dense`` takes 18 for as many, and
``planes`` 8 for 256. On Intel a ``vpermi2b`` counts as three, two of them on port 5 alone, so with weights in an L2
cache ``planes`` wins: 28 us for 2560 x 2560 on one thread, ``lookup`` 40, ``dense`` 62. From memory, which gives a core
20 to 24 GB/s, ``lookup`` wins: it has the fewer bytes, and reads them at 17 GB/s. What counts besides:

* Four tiles of 64 rows meet a table at a time. With one, each 64 bytes of weights need 256 bytes of tables from the L2
  cache (131 KiB for K of 2560), and it takes 1.5 to 2 times as long. Four tiles are also four streams of memory, which
  a core reads 10 to 30 % faster than one.
* Every thread builds all tables of a token for itself: 4 us for K of 2560, 9 for 6912. That is 1 to 5 % on one
  thread, and a greater part of the time the more threads there are. The tuner measures it with all of them.
* A second token needs tables of its own and reads the weights again. From about the third on, products are faster.

There is none for AVX2: ``vpshufb`` has 16 entries, for three trits with a sign bit that lies elsewhere (TL2), and by
count of operations that takes about as long as ``planes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ryzc.codegen.vector import I8, I16, I32, Function, Value, vec
from ryzc.formats.trits import LAYOUTS, WORD

LOOKUP: Final = LAYOUTS["lookup"]
REACH: Final = 20480
"""Columns up to which a token's tables, 1 MiB by then, are sure to fit on a thread's stack and in its L2 cache."""
_ENTRIES = 128
_LOW_BITS = 5
_TABLES = 2 * _ENTRIES
"""Bytes of the tables of a byte of weights, for the low and the high parts."""
_MOST_WORDS = 256
"""Whose sums of bytes, 255 at most, fit into 16 bits without a sign."""
_BIAS = 128
_BYTES, _PAIRS, _LANES = vec(I8, 64), vec(I16, 32), vec(I32, 16)


@dataclass(frozen=True)
class Lookup:
    """The multiplication, on AVX-512 with VBMI and VNNI.

    Attributes:
        columns: K.
        vectors: tiles of 64 rows that meet a table at a time.
        prefetch: bytes ahead of use.
    """

    fn: Function
    columns: int
    vectors: int
    prefetch: int

    def tables(self) -> Value:
        """Room for the tables of a token, on the stack."""
        return self.fn.stack(I8, LOOKUP.words(self.columns) * WORD * _TABLES)

    def room(self) -> Value:
        """Room for the sums of the tiles that are computed together, on the stack."""
        return self.fn.stack(I32, self.vectors * LOOKUP.rows)

    @property
    def widths(self) -> tuple[int, ...]:
        """How many tiles are multiplied together: as many as may be, and fewer for a rest."""
        return (self.vectors, *(width for width in (4, 2, 1) if width < self.vectors))

    # --- tables -------------------------------------------------------------------------------

    def build(self, tables: Value, x: Value) -> None:
        """Write the tables ``[words][4][low, high][128]`` of the token whose codes, ``int8 [K]``, are at ``x``."""
        fn = self.fn
        whole, rest = divmod(self.columns, LOOKUP.elements)
        with fn.loop(0, whole) as word:
            at = word.index * LOOKUP.elements
            first = fn.load(vec(I8, 4 * WORD), x, at)
            self._word(fn.at(tables, word.index * (WORD * _TABLES)), first, fn.load(vec(I8, WORD), x, at + 4 * WORD))
        if rest:
            nothing = fn.const(vec(I8, WORD), 0)
            quads = [fn.load(nothing.type, x, whole * LOOKUP.elements + at) for at in range(0, rest, WORD)]
            quads += [nothing] * (LOOKUP.digits - len(quads))
            pairs = [quads[p].shuffle(range(2 * WORD), quads[p + 1]) for p in (0, 2)]
            first = pairs[0].shuffle(range(4 * WORD), pairs[1])
            self._word(fn.at(tables, whole * WORD * _TABLES), first, quads[4])

    def _word(self, tables: Value, first: Value, last: Value) -> None:
        """The tables of a word: four digits of each byte times ``first [4][4 bytes]``, the fifth times ``last``."""
        fn = self.fn
        for byte in range(WORD):
            # Activations become the unsigned operand, 128 more than they are; the digits' sum takes it away again.
            four = first.shuffle([p * WORD + byte for p in range(4)] * 16) ^ -_BIAS
            fifth = last.shuffle([byte] * 64) ^ -_BIAS
            low, high = [], []
            for start in (0, _ENTRIES // 2):
                parts = [self._sums(_lanes(start, part), four, fifth) for part in range(4)]
                pairs = [self._pack("packssdw", _PAIRS, parts[at], parts[at + 1]) for at in (0, 2)]
                low.append(self._pack("packsswb", _BYTES, *[pair & ((1 << _LOW_BITS) - 1) for pair in pairs]))
                high.append(self._pack("packsswb", _BYTES, *[pair.sar(_LOW_BITS) for pair in pairs]))
            for i, register in enumerate([*low, *high]):
                fn.store(register, tables, byte * _TABLES + 64 * i, align=64)

    def _sums(self, numbers: list[int], four: Value, fifth: Value) -> Value:
        fn, digits = self.fn, [_digits(number) for number in numbers]
        sums = fn.const(_LANES, [-_BIAS * sum(of) for of in digits])
        for x, factors in (
            (four, [d for of in digits for d in of[:4]]),
            (fifth, [d for of in digits for d in (of[4], 0, 0, 0)]),
        ):
            sums = fn.call("llvm.x86.avx512.vpdpbusd.512", _LANES, sums, x.bits(_BYTES), fn.const(_BYTES, factors))
        return sums

    def _pack(self, name: str, type_: object, a: Value, b: Value) -> Value:
        return self.fn.call(f"llvm.x86.avx512.{name}.512", type_, a, b)

    # --- rows ---------------------------------------------------------------------------------

    def multiply(self, tables: Value, words: Value, sums: Value, tiles: int) -> None:
        """Sums ``int32 [tiles][64]`` of so many tiles, the first of which has its words at ``words``."""
        fn, count = self.fn, LOOKUP.words(self.columns)
        for start in range(0, count, _MOST_WORDS):
            stop = min(start + _MOST_WORDS, count)
            with fn.loop(start, stop, 1, [fn.const(_PAIRS, 0)] * (4 * tiles)) as loop:
                loop.values = self._look_up(tables, words, loop.index, loop.values)
            for tile in range(tiles):
                self._settle(loop.results[4 * tile : 4 * tile + 4], stop - start, fn.at(sums, 256 * tile), start > 0)

    def _look_up(self, tables: Value, words: Value, word: Value, carries: list[Value]) -> list[Value]:
        fn, tiles, stride = self.fn, len(carries) // 4, LOOKUP.tile_bytes(self.columns)
        at = word * LOOKUP.word_bytes
        if self.prefetch:
            for tile in range(tiles):
                for line in range(0, LOOKUP.word_bytes, 64):
                    fn.prefetch(words, at, tile * stride + line + self.prefetch)
        found = [[fn.const(_BYTES, -_BIAS)] * 2 for _ in range(tiles)]
        for byte in range(WORD):
            table = [
                fn.load(_BYTES, tables, word * (WORD * _TABLES), byte * _TABLES + i, align=64)
                for i in range(0, 256, 64)
            ]
            for tile in range(tiles):
                index = fn.load(_BYTES, words, at, tile * stride + byte * 64, align=64)
                negative = index.compare("<", 0)
                for part in range(2):
                    value = fn.call(
                        "llvm.x86.avx512.vpermi2var.qi.512", _BYTES, table[2 * part], index, table[2 * part + 1]
                    )
                    found[tile][part] = found[tile][part] + negative.select(-value, value)
        out = []
        for tile in range(tiles):
            for part in range(2):
                both, odd = carries[4 * tile + 2 * part : 4 * tile + 2 * part + 2]
                pairs = found[tile][part].bits(_PAIRS)
                out += [both + pairs, odd + (pairs >> 8)]
        return out

    def _settle(self, carries: list[Value], words: int, sums: Value, more: bool) -> None:
        """Put the sums of 64 rows together: ``both`` are of even rows, and of odd ones times 256, modulo 65536."""
        low, high = [self._interleaved(*carries[2 * part : 2 * part + 2]) for part in range(2)]
        bias = _BIAS * words * ((1 << _LOW_BITS) + 1)
        for at in range(0, LOOKUP.rows, 16):
            a, b = (part.shuffle(range(at, at + 16)).zext(I32) for part in (low, high))
            total = a + (b << _LOW_BITS) - bias
            if more:
                total = total + self.fn.load(_LANES, sums, 4 * at, align=64)
            self.fn.store(total, sums, 4 * at, align=64)

    def _interleaved(self, both: Value, odd: Value) -> Value:
        even = both - (odd << 8)
        return even.shuffle([lane + half for lane in range(32) for half in (0, 32)], odd)


def _digits(number: int) -> list[int]:
    """The five balanced digits to base 3 of a magnitude, lowest first; zeros where it has none."""
    if number > 121:
        return [0] * 5
    return [(number + 121) // 3**p % 3 - 1 for p in range(5)]


def _lanes(start: int, part: int) -> list[int]:
    """The numbers of one of four registers of sums, such that packing twice puts ``start .. start + 63`` in order."""
    return [start + 16 * (lane // 4) + 4 * part + lane % 4 for lane in range(16)]
