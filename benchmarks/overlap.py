"""How well reading memory and multiplying overlap on this CPU: ``python -m benchmarks.overlap``.

A roofline takes the larger of two times and so supposes that both happen at once. This measures how far that is so. A
bare loop reads lines of weights, as far ahead as kernels ask for them, and makes some dot products with each line; it
has no other work. It runs over memory, over what a cache holds, and without any products over memory: what both at
once take beside the larger of either alone is what a kernel cannot better. Below stand linear layers, measured alike:
a line of theirs needs so many dot products and, where it has scales, as many other vector operations as are listed.

Times are nanoseconds a line of 64 bytes on one thread, medians of rounds; ratios are medians of ratios in a round.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from benchmarks import compiled, machine, random_weights
from ryzc import formats, targets
from ryzc.bundle import abi
from ryzc.codegen import isa as instruction_sets
from ryzc.codegen.isa import Dot, Isa
from ryzc.codegen.vector import I32, I64, LINE, PTR, Function, vec
from ryzc.formats import AffineFormat, lanes
from ryzc.runtime import memory
from ryzc.targets import Target
from ryzc.templates.kernels import probes
from ryzc.templates.kernels.linear import Linear
from ryzc.templates.kernels.weights import EARLIER

COLD, NEAR = 1 << 28, 1 << 18
"""Bytes that no cache keeps, and bytes that a core's L2 cache keeps."""
LINES = 8
"""Lines of an iteration of the bare loop."""
AHEAD = (4096, EARLIER * 4096)
"""Bytes ahead that lines are asked for, into L1 and into L2."""
PRODUCTS = (4, 8, 12, 16, 20, 24, 32)
"""Of a line with as many bytes, on 512-bit vectors; of each half of it on 256-bit ones."""
BATCHES = (1, 4, 8, 16)
FORMATS = ("q4_0", "q4_1", "q4_k", "q6_k", "q8_0")
COLUMNS, ROWS = 2048, 256

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        name: its row in the table.
        products: dot products of a vector with a line, and other operations on the same pipes.
        cold, near: do it to lines in memory, and in a cache; they return how many lines it were.
    """

    name: str
    products: str
    cold: Callable[[], int]
    near: Callable[[], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--rounds", type=int, default=11)
    parser.add_argument("--formats", default=",".join(FORMATS), help="of the linear layers")
    parser.add_argument("--target", default="native", help="a CPU whose code this one runs, e.g. znver3")
    options = parser.parse_args()
    target = targets.get(options.target)
    isa = instruction_sets.BY_NAME[target.isa]
    weights, sink = memory.anonymous(COLD + AHEAD[1] + LINE), memory.anonymous(1 << 16)
    weights[:] = 1
    works = bare_loops(target, isa, weights, sink)
    for name in options.formats.split(","):
        works += layers(target, isa, name, sink)
    facts = machine.facts()
    print(f"{facts['cpu']}, code for {target.name}, commit {facts['commit']}; {options.rounds} rounds, one thread\n")
    print(as_markdown(works, measure(works, options.rounds)))


def measure(works: Sequence[Work], rounds: int) -> list[tuple[list[float], list[float]]]:
    """Nanoseconds a line, cold and near, of each piece of work in each round; the first is reading alone."""
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in works]
    for round_ in range(rounds):
        turn = round_ % len(works)
        for i in [*range(turn, len(works)), *range(turn)]:
            for kept, run in zip(times[i], (works[i].cold, works[i].near), strict=True):
                if run is works[i].near:
                    run()  # into the cache
                start = time.perf_counter_ns()
                lines = run()
                kept.append((time.perf_counter_ns() - start) / lines)
    return times


def as_markdown(works: Sequence[Work], times: Sequence[tuple[list[float], list[float]]]) -> str:
    """The table."""
    reading = times[0][0]
    found = [
        "| | products + other operations | memory | cache | memory ÷ reading | memory ÷ larger of reading and cache |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for work, (cold, near) in zip(works, times, strict=True):
        over_reading = statistics.median(c / r for c, r in zip(cold, reading, strict=True))
        over_larger = statistics.median(c / max(r, n) for c, r, n in zip(cold, reading, near, strict=True))
        figures = [f"{statistics.median(cold):.2f}", f"{statistics.median(near):.2f}"]
        found.append(
            f"| {work.name} | {work.products} | {' | '.join(figures)} | {over_reading:.2f} | {over_larger:.2f} |"
        )
    return "\n".join(found)


def bare_loops(target: Target, isa: Isa, weights: Bytes, sink: Bytes) -> list[Work]:
    """Reading alone, then with products."""
    module = compiled.module("loops")
    for products in (0, *PRODUCTS):
        _emit_loop(module, isa, f"loop{products}", products)
    library = compiled.load(module, target)

    def run(entry: Callable[..., None], size: int, times: int) -> int:
        entry(weights.ctypes.data, size, times, sink.ctypes.data)
        return size * times // LINE

    works = []
    for products in (0, *PRODUCTS):
        entry = library[f"loop{products}"]
        entry.argtypes, entry.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p], None
        name = "bare loop" if products else "reading alone"
        count = products * LINE // (4 * isa.lanes)
        works.append(Work(name, str(count), partial(run, entry, COLD, 1), partial(run, entry, NEAR, COLD // NEAR // 4)))
    return works


def _emit_loop(module: ir.Module, isa: Isa, symbol: str, products: int) -> None:
    """``symbol(base, bytes, times, out)``: so many products of vectors with each line."""
    fn = Function(module, symbol, [("base", PTR), ("bytes", I64), ("times", I64), ("out", PTR)], internal=False)
    register, width = vec(I32, isa.lanes), 4 * isa.lanes
    count = probes.accumulators(isa)
    xs = [fn.load(register, fn.args["out"], i * width) for i in range(4)]
    with fn.loop(0, fn.args["times"], 1, [fn.const(register, 0)] * count) as outer:
        with fn.loop(0, fn.args["bytes"], LINES * LINE, outer.values) as loop:
            at, sums, turn = fn.at(fn.args["base"], loop.index), list(loop.values), 0
            for line in range(LINES):
                fn.prefetch(at, AHEAD[1] + line * LINE, level=2)
                fn.prefetch(at, AHEAD[0] + line * LINE)
                codes = [fn.load(register, at, line * LINE + part, align=width) for part in range(0, LINE, width)]
                if not products:
                    for value in codes:
                        sums[turn % count] = sums[turn % count] ^ value
                        turn += 1
                for i in range(products * len(codes)):
                    # A product of its own each time: where products are not summed at once, equal ones are made once.
                    if i and i % (len(xs) * len(codes)) == 0:
                        codes = [value + 0x01010101 for value in codes]
                    x = xs[i // len(codes) % len(xs)]
                    sums[turn % count] = isa.total(isa.add(Dot(sums[turn % count]), codes[i % len(codes)], x, 15))
                    turn += 1
            loop.values = sums
        outer.values = loop.results
    total = outer.results[0]
    for value in outer.results[1:]:
        total = total + value
    fn.store(total, fn.args["out"])
    fn.finish()


def layers(target: Target, isa: Isa, name: str, sink: Bytes) -> list[Work]:
    """A linear layer in one format, for some batches."""
    fmt = formats.get(name)
    assert isinstance(fmt, AffineFormat)
    piece, codes, records, unit = random_weights.layer(fmt, ROWS, COLUMNS, max(BATCHES))
    copies = COLD // piece.size
    weights = memory.anonymous(copies * piece.size + AHEAD[1])
    weights[: copies * piece.size].reshape(copies, piece.size)[:] = piece
    module = compiled.module(name)
    Linear(name, ROWS, COLUMNS, "store", ROWS, unit=unit).emit(module, isa, "linear")
    _emit_repeat(module)
    entry = compiled.load(module, target)["repeat"]
    entry.argtypes, entry.restype = [ctypes.c_void_p, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 4], None
    context = memory.anonymous(abi.SIZE)
    groups = lanes.STEP // fmt.group

    def work(batch: int) -> Work:
        def run(times: int, stride: int) -> int:
            context[abi.BY_NAME["token_count"].offset :][:8].view(np.int64)[0] = batch
            operands = (a.ctypes.data for a in (weights, codes, records, sink))
            entry(context.ctypes.data, times, stride, *operands)
            return piece.size * times // LINE

        lines = piece.size / LINE / (ROWS * COLUMNS / lanes.STEP / lanes.TILE)
        vectors = lanes.TILE // isa.lanes
        products = batch * vectors * lanes.OPERANDS / lines
        others = batch * vectors * groups * (3 if fmt.min_sign else 2) / lines
        return Work(
            f"{name}, batch {batch}",
            f"{products:.1f} + {others:.1f}",
            partial(run, copies, piece.size),
            partial(run, copies // 4, 0),
        )

    return [work(batch) for batch in BATCHES]


def _emit_repeat(module: ir.Module) -> None:
    """``repeat(context, times, stride, weights, codes, records, out)``; weights move on by ``stride`` bytes a time."""
    operands = [(name, PTR) for name in Linear.operands]
    fn = Function(module, "repeat", [("context", PTR), ("times", I64), ("stride", I64), *operands], internal=False)
    with fn.loop(0, fn.args["times"]) as loop:
        weights = fn.at(fn.args["weights"], loop.index * fn.args["stride"])
        rest = [fn.args[name] for name in Linear.operands[1:]]
        arguments = [fn.args["context"], fn.i64(0), fn.i64(1), weights, *rest]
        fn.builder.call(module.get_global("linear"), [a.ir for a in arguments])
    fn.finish()


if __name__ == "__main__":
    main()
