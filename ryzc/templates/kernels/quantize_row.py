"""Quantizing a row of activations: the code side of :mod:`ryzc.templates.kernels.activations`.

Several blocks are taken at a time, so that their maxima, sums and scales lie side by side in the lanes of one
vector: reductions share their steps and a division serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ryzc.codegen.vector import I8, Function, Value
from ryzc.templates.kernels import activations as act

LANES = 16
BLOCKS = 8
"""Blocks taken at a time."""

Pair = tuple[Value, Value]


def quantize_row(
    fn: Function, columns: int, block: Callable[[Value], Pair], codes: Value, records: Value, unit: int
) -> None:
    """Write the codes and the records of a row; ``block(i)`` gives elements ``32 i .. 32 i + 31`` as two vectors."""
    count = columns // act.BLOCK

    def some(first: Value, width: int) -> None:
        at = [first + i for i in range(width)]
        places = [fn.at(codes, i * act.BLOCK) for i in at]
        found = quantize_blocks(fn, [block(i) for i in at], places, unit)
        fn.store(found, records, first * act.RECORD_BYTES, align=16)

    with fn.loop(0, count // BLOCKS * BLOCKS, BLOCKS) as group:
        some(group.index, BLOCKS)
    first = count // BLOCKS * BLOCKS
    for width in (4, 2, 1):
        if count - first >= width:
            some(fn.i64(first), width)
            first += width


def quantize_blocks(fn: Function, blocks: Sequence[Pair], codes: Sequence[Value], unit: int) -> Value:
    """Write the codes of some blocks, a power of two, each to its place; returns their records one after another."""
    amax = side_by_side([a.abs().larger(b.abs()) for a, b in blocks], lambda a, b: a.larger(b))
    counts = amax.compare(">=", act.TINY)
    inverse = counts.select(fn.const(amax.type, 127.0) / amax, 0.0)
    scale = counts.select(amax / 127.0, 0.0)
    halves: list[Pair] = []
    for i, (block, place) in enumerate(zip(blocks, codes, strict=True)):
        factor = inverse.lane(i).splat(LANES)
        pair = [(x * factor).nearest() for x in block]
        for h, code in enumerate(pair):
            fn.store(code.to_int(I8), place, LANES * h, align=16)
        halves.append((pair[0], pair[1]))
    minus_first = -side_by_side([a for a, _ in halves], lambda a, b: a + b)
    minus_sum = -side_by_side([a + b for a, b in halves], lambda a, b: a + b)
    scaled_sum = scale * (-minus_sum).to_float()
    starts = [part * unit + act.ORIGIN_BITS for part in (minus_sum, minus_first)]
    return _interleaved([scale.bits(minus_sum.type), *starts, scaled_sum.bits(minus_sum.type)])


def side_by_side(vectors: Sequence[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """Fold every vector to one number; lane ``i`` of the result is vector ``i``'s. Their count is a power of two."""
    values, segments = list(vectors), 1
    length = values[0].lanes
    while length > 1:
        halves = [
            [s * length + half * length // 2 + i for s in range(segments) for i in range(length // 2)]
            for half in range(2)
        ]
        if len(values) > 1:
            lanes = values[0].lanes
            low, high = (part + [lanes + i for i in part] for part in halves)
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [combine(a.shuffle(low, b), a.shuffle(high, b)) for a, b in pairs]
            segments *= 2
        else:
            values = [combine(values[0].shuffle(halves[0]), values[0].shuffle(halves[1]))]
        length //= 2
    return values[0]


def _interleaved(words: Sequence[Value]) -> Value:
    """Four vectors of ``n`` lanes to one of ``4 n``: the first lane of each, then the second of each."""
    n = words[0].lanes
    pairs = [a.shuffle(range(2 * n), b) for a, b in (words[:2], words[2:])]
    return pairs[0].shuffle([(w % 2) * n + i + (w // 2) * 2 * n for i in range(n) for w in range(4)], pairs[1])
