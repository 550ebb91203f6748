"""Whether this core is ours alone, and what kernels lose when it isn't: ``python -m benchmarks.sharing``.

The other hardware thread of a core, on a rented machine somebody else's, takes every second turn of what the core can
issue. The loop that measures the int8 peak does not notice, as it issues two instructions a cycle at most; a kernel,
which issues twice as many, does. So a share of the peak means little without how much of the core there was.

Work of some milliseconds is timed between two looks at the core: how many instructions that do nothing it issues in a
cycle, which a chain of dependent multiplications counts. Looks near the best of the run say that nobody else was there,
looks far below it that somebody was; work whose two looks differ, or lie between, is left out.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from llvmlite import ir

import ryzc
from benchmarks import compiled, machine, models, random_weights
from ryzc import formats, targets
from ryzc.bundle import abi
from ryzc.codegen import isa as instruction_sets
from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import I64, PTR, Function, Value
from ryzc.formats import AffineFormat
from ryzc.runtime import bench, memory
from ryzc.runtime.kv import PagePool
from ryzc.runtime.step import CompiledModel
from ryzc.targets import Target
from ryzc.templates.kernels import probes
from ryzc.templates.kernels.linear import Linear

ALONE, SHARED = 0.8, 0.65
"""Looks of at least, and of at most, so much of the best look of a run."""
LEAST = 4.8
"""Instructions a cycle that the best look is taken for if it saw fewer: then nobody was alone in the whole run."""
BATCHES = (1, 8, 16, 128, 512)
FORMATS = ("q4_0", "q4_1", "q4_k", "q6_k", "q8_0")
COLUMNS, ROWS = 2048, 1024
PROMPT, MIDDLE = 512, 128
"""Tokens of a prompt, and those in its middle that are timed: they see as many keys as all of them do on average."""
FIRST = (PROMPT - MIDDLE) // 2
VOCABULARY: Final = 1024
UNROLL: Final = 64
CHAIN, IDLE, PEAK = 4000, 20_000, 200_000
"""Turns of the loops of a look, each some tenths of a millisecond."""
LATENCY: Final = 3
"""Cycles of a multiplication of 64-bit integers, on every Zen and every Intel core since 2008."""
SPELL = 0.008
"""Seconds of work between two looks, about: as short as a neighbour's own spells."""


@dataclass(frozen=True)
class Moment:
    """Work between two looks.

    Attributes:
        issued: instructions a cycle, before and after.
        share: multiply-accumulates a second, of the int8 peak between the same looks.
    """

    issued: tuple[float, float]
    share: float


class Prompt:
    """The middle of a prompt through a model without its head, attention and all.

    A model of random weights, whose layers are all alike, has one of them.

    Args:
        name: one of :data:`benchmarks.models.NAMES`.
        directory: where its files go.

    Attributes:
        layers: how many there are.
        attention: multiply-accumulates of attention by those of the linear layers.
    """

    def __init__(self, name: str, directory: Path) -> None:
        file = _one_layer(name, directory) if name in models.RANDOM else models.find(name).path
        self._model = CompiledModel(ryzc.build(file, directory / f"{name}.ryzc"), context=PROMPT, threads=1)
        pages = PagePool(self._model.pages, self._model.page_tokens, self._model.page_table)
        pages.resize(0, PROMPT)
        self._step(0, FIRST)
        work = bench.step_work(self._model.plan, [(FIRST, MIDDLE)], 0)
        self._macs = round(work.linear_macs)
        self.layers = self._model.plan.kv.layers
        self.attention = work.attention_macs / work.linear_macs

    def run(self) -> int:
        """Take in these tokens; the multiply-accumulates of the linear layers."""
        self._step(FIRST, FIRST + MIDDLE)
        return self._macs

    @property
    def name(self) -> str:
        """What of a prompt this is."""
        layers = "a layer" if self.layers == 1 else f"{self.layers} layers"
        return f"{layers}, tokens {FIRST} to {FIRST + MIDDLE} of {PROMPT}"

    def _step(self, first: int, end: int) -> None:
        self._model.step([at % VOCABULARY for at in range(first, end)], range(first, end), [0] * (end - first), [])


def _one_layer(name: str, directory: Path) -> Path:
    shape, mix = models.RANDOM[name]
    one = replace(getattr(random_weights, shape), layers=1, vocab=VOCABULARY)
    return random_weights.write(directory / f"{name}.gguf", one, mix)


class Core:
    """Looks at the core that this thread runs on."""

    def __init__(self, target: Target, isa: Isa) -> None:
        module = compiled.module("looks")
        _emit(module, "chain", lambda fn, value: value * value)
        _emit(module, "idle", _idle)
        probes.emit(module, isa)
        library = compiled.load(module, target)
        self._chain, self._idle, self._peak = library["chain"], library["idle"], library["probe_int8"]
        for entry in (self._chain, self._idle, self._peak):
            entry.argtypes, entry.restype = [ctypes.c_int64, ctypes.c_void_p], None
        self._macs = probes.macs_per_iteration(isa)
        self._sink = memory.anonymous(1 << 16)

    def issued(self) -> float:
        """Instructions a cycle."""
        cycle = self._seconds(self._chain, CHAIN) / (CHAIN * UNROLL * LATENCY)
        return IDLE * UNROLL * cycle / self._seconds(self._idle, IDLE)

    def peak(self) -> float:
        """int8 multiply-accumulates a second."""
        return PEAK * self._macs / self._seconds(self._peak, PEAK)

    def _seconds(self, entry: Callable[..., None], turns: int) -> float:
        start = time.perf_counter()
        entry(turns, self._sink.ctypes.data)
        return time.perf_counter() - start


class Layer:
    """A linear layer in one format, whose weights lie in a cache, for batches of up to ``BATCHES[-1]`` tokens."""

    def __init__(self, target: Target, isa: Isa, name: str) -> None:
        fmt = formats.get(name)
        assert isinstance(fmt, AffineFormat)
        tiles, self._codes, self._records, unit = random_weights.layer(fmt, ROWS, COLUMNS, BATCHES[-1])
        self._weights = memory.anonymous(tiles.size + (1 << 16))
        self._weights[: tiles.size] = tiles
        self._out = memory.anonymous(4 * BATCHES[-1] * ROWS)
        self._context = memory.anonymous(abi.SIZE)
        module = compiled.module(name)
        Linear(name, ROWS, COLUMNS, "store", ROWS, unit=unit).emit(module, isa, "linear")
        module.get_global("linear").linkage = ""
        self._entry = compiled.load(module, target)["linear"]
        self._entry.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 4]
        self._entry.restype = None

    def run(self, batch: int) -> int:
        """Multiply a batch; its multiply-accumulates."""
        self._context[abi.BY_NAME["token_count"].offset :][:8].view(np.int64)[0] = batch
        operands = (a.ctypes.data for a in (self._weights, self._codes, self._records, self._out))
        self._entry(self._context.ctypes.data, 0, 1, *operands)
        return batch * ROWS * COLUMNS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--rounds", type=int, default=100)
    parser.add_argument("--formats", default="q4_0", help=f"of the linear layers, e.g. {','.join(FORMATS)}")
    parser.add_argument(
        "--models", default="llama-1b-q4_0", help=f"that take in a prompt, of {', '.join(models.NAMES)}"
    )
    options = parser.parse_args()
    target = targets.get("native")
    isa = instruction_sets.BY_NAME[target.isa]
    core, works, attention = Core(target, isa), dict[str, Callable[[], int]](), dict[str, float]()
    for name in filter(None, options.formats.split(",")):
        layer = Layer(target, isa, name)
        works |= {f"{name}, batch {batch}": partial(layer.run, batch) for batch in BATCHES}
    facts = machine.facts()
    print(f"{facts['cpu']}, code for {target.name}, commit {facts['commit']}; {options.rounds} rounds, one thread\n")
    with tempfile.TemporaryDirectory() as directory:
        for name in filter(None, options.models.split(",")):
            prompt = Prompt(name, Path(directory))
            works[f"{name}, {prompt.name}"] = prompt.run
            attention[f"{name}, {prompt.name}"] = prompt.attention
        print(as_markdown(measure(core, works, options.rounds), attention))


def measure(core: Core, works: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[Moment]]:
    """A moment of every piece of work a round, each between looks of its own."""
    turns = {name: max(1, round(SPELL / _once(work))) for name, work in works.items()}
    found: dict[str, list[Moment]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            before, peak = core.issued(), core.peak()
            start = time.perf_counter()
            macs = sum(work() for _ in range(turns[name]))
            rate = macs / (time.perf_counter() - start)
            peak = (peak + core.peak()) / 2
            found[name].append(Moment((before, core.issued()), rate / peak))
    return found


def as_markdown(found: dict[str, list[Moment]], attention: dict[str, float]) -> str:
    """What of the int8 peak each piece of work reaches alone on its core, and beside somebody else.

    Where ``attention`` says how much of it there is beside linear layers, a second share counts it, too.
    """
    looks = [look for moments in found.values() for moment in moments for look in moment.issued]
    best = max(sorted(looks)[len(looks) * 19 // 20], LEAST)
    alone = [look for look in looks if look >= ALONE * best]
    shared = [look for look in looks if look <= SHARED * best]
    seen = [
        f"{len(some) / len(looks):.0%} of looks saw {how}, at {statistics.median(some):.1f} instructions a cycle"
        for how, some in (("a core of our own", alone), ("a shared one", shared))
        if some
    ]
    table = ["", "", "| | of the int8 peak alone | moments | shared | moments |", "|---|--:|--:|--:|--:|"]
    for name, moments in found.items():
        kept = [
            [m.share for m in moments if min(m.issued) >= ALONE * best],
            [m.share for m in moments if max(m.issued) <= SHARED * best],
        ]
        cells = (
            f"{_shares(statistics.median(some), attention.get(name))} | {len(some)}" if some else "– | 0"
            for some in kept
        )
        table.append(f"| {name} | {' | '.join(cells)} |")
    return "; ".join(seen) + "\n".join(table)


def _shares(share: float, attention: float | None) -> str:
    return f"{share:.0%}" if attention is None else f"{share:.0%} ({share * (1 + attention):.0%} with attention)"


def _once(work: Callable[[], int]) -> float:
    def timed() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(timed() for _ in range(3))


def _emit(module: ir.Module, symbol: str, body: Callable[[Function, Value], Value]) -> None:
    """``symbol(turns, out)``: a body over and over, which makes a number of another."""
    fn = Function(module, symbol, [("turns", I64), ("out", PTR)], internal=False)
    with fn.loop(0, fn.args["turns"], 1, [fn.load(I64, fn.args["out"])]) as loop:
        value = loop.values[0]
        for _ in range(UNROLL):
            value = body(fn, value)
        loop.values = [value]
    fn.store(loop.results[0], fn.args["out"])
    fn.finish()


def _idle(fn: Function, value: Value) -> Value:
    fn.builder.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "nop", "", side_effect=True), [])
    return value


if __name__ == "__main__":
    main()
