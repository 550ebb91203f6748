"""What a bundle would reach on desktops that nobody here has: ``python -m benchmarks.predict BUNDLE… [--check]``.

A small model of a step. Decoding one token takes, for each kind of weights, the time to read them: at the bandwidth of
memory (or of the L3 cache, where a step's weights fit into it), or at the rate at which the cores can decode that
layout out of their L1 caches, whichever is less. A prompt takes its multiply-accumulates at the share of the int8 peak
that the layout's kernels reach, and those of attention at a share of the float peak. Barriers and the step's Python are
added.

``--check`` holds the model against this machine: bandwidth and int8 peak are measured, everything else is as for the
desktops, and each prediction stands beside what the bundle does here.

Sources of the table: AMD's product pages (cores, clocks, memory, caches), the width of their vector units (AMD's
optimization guides for families 17h, 19h, 1Ah). Clocks are what all cores together hold under vector load. The links of
a CCD to memory read 32 bytes a cycle of the fabric.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine, marks
from ryzc.bundle import Bundle
from ryzc.bundle.plan import Plan
from ryzc.runtime import bench
from ryzc.runtime.bench import step_work
from ryzc.runtime.step import CompiledModel

PAGE = Path(__file__).resolve().parents[1] / "docs" / "predictions.md"
PROMPT, GENERATED = 512, 128
READ_SHARE = 0.96
"""Of the bandwidth of plain loads that kernels reach when memory is what they wait for."""
MEMORY_SHARE = 0.82
"""Of the memory's nominal bandwidth that reading gets."""
FLOAT_SHARE = 0.6
"""Of the float peak that attention over float16 reaches."""
BARRIER, PYTHON = 0.4e-6, 60e-6
"""Seconds that a phase takes to end on several threads, and that a step takes outside of native code."""
TOLERANCE = 0.15


@dataclass(frozen=True)
class Layout:
    """How kernels fare with a kind of weights.

    Attributes:
        decode: bytes a core decodes in a cycle out of its L1 cache for a single token, on 512-bit units that take one
            operation a cycle; half as many on 256-bit units.
        prefill: share of the int8 peak for many tokens.
    """

    decode: float
    prefill: float


LAYOUTS = {
    "planes": Layout(14.0, 0.94),
    "dense": Layout(6.0, 0.90),
    "4": Layout(16.0, 0.56),
    "5": Layout(11.0, 0.52),
    "6": Layout(11.0, 0.45),
    "8": Layout(27.0, 0.60),
    "float": Layout(32.0, 0.20),
}
"""By layout, or by bits of an affine format: measured with the tuner on AVX-512 (``ryzc inspect --tuning``)."""


@dataclass(frozen=True)
class Cpu:
    """A desktop processor.

    Attributes:
        zen: generation: 3 has 256-bit units, 4 takes a 512-bit operation a cycle, 5 two.
        cores, ccds: physical cores, and the dies that they sit on.
        clock: GHz of all cores under load.
        memory: nominal GB/s of two channels.
        fabric: GHz of the link between a die and memory.
        l3: bytes of a die's cache.
    """

    name: str
    zen: int
    cores: int
    ccds: int
    clock: float
    memory: float
    fabric: float
    l3: int = 32 << 20

    def bandwidth(self, nbytes: float, threads: int) -> float:
        """Bytes/s of reading so many bytes again and again."""
        dies = min(self.ccds, threads)
        link = dies * 32 * self.fabric * 1e9
        core = threads * 10 * self.clock * 1e9
        memory = min(self.memory * 1e9 * MEMORY_SHARE, link, core)
        cached = threads * 16 * self.clock * 1e9
        return cached if nbytes <= 0.75 * self.l3 * dies else memory

    def int8(self, threads: int) -> float:
        """Multiply-accumulates/s of the int8 dot product."""
        return threads * {3: 64, 4: 64, 5: 128}[self.zen] * self.clock * 1e9

    def cycles(self, threads: int) -> float:
        """Cycles/s of all threads, counted in those of a 512-bit unit that takes one operation a cycle."""
        return threads * self.clock * 1e9 * {3: 0.5, 4: 1.0, 5: 2.0}[self.zen]


DESKTOPS = (
    Cpu("Ryzen 5 5600X", 3, 6, 1, 4.5, 51.2, 1.8),
    Cpu("Ryzen 7 5800X", 3, 8, 1, 4.5, 51.2, 1.8),
    Cpu("Ryzen 9 5900X", 3, 12, 2, 4.2, 51.2, 1.8),
    Cpu("Ryzen 9 5950X", 3, 16, 2, 4.0, 51.2, 1.8),
    Cpu("Ryzen 5 7600X", 4, 6, 1, 5.1, 83.2, 2.0),
    Cpu("Ryzen 7 7700X", 4, 8, 1, 5.0, 83.2, 2.0),
    Cpu("Ryzen 9 7900X", 4, 12, 2, 4.9, 83.2, 2.0),
    Cpu("Ryzen 9 7950X", 4, 16, 2, 4.8, 83.2, 2.0),
    Cpu("Ryzen 5 9600X", 5, 6, 1, 5.0, 89.6, 2.0),
    Cpu("Ryzen 7 9700X", 5, 8, 1, 4.9, 89.6, 2.0),
    Cpu("Ryzen 9 9900X", 5, 12, 2, 4.8, 89.6, 2.0),
    Cpu("Ryzen 9 9950X", 5, 16, 2, 4.6, 89.6, 2.0),
)


@dataclass(frozen=True)
class Machine:
    """What the model asks of a machine.

    Attributes:
        bandwidth: bytes/s of reading so many bytes again and again on so many threads.
        int8, cycles: as :class:`Cpu` has them, by threads.
    """

    bandwidth: Callable[[float, int], float]
    int8: Callable[[int], float]
    cycles: Callable[[int], float]


@dataclass(frozen=True)
class Weights:
    """Weights of one layout: bytes, and multiply-accumulates a token."""

    layout: Layout
    bytes: int
    macs: int


def weights(plan: Plan, *, head: bool) -> list[Weights]:
    """What a step multiplies by, the head apart or with it."""
    named = {weight.name: weight for weight in plan.weights}
    found = []
    for phase in plan.phases:
        for call in phase:
            read = [named[o.name] for o in call.operands if o.space == "weights" and named[o.name].rows > 1]
            is_head = any(o.name == "logits" for o in call.operands)
            if read and not call.kernel.startswith(("embedding", "rope")) and (head or not is_head):
                weight = read[0]
                layout = _layout(weight.format, weight.layout.removesuffix("_gated"))
                found.append(Weights(layout, weight.bytes, weight.rows * weight.columns))
    return found


def _layout(format_: str, packed: str) -> Layout:
    if packed in LAYOUTS:
        return LAYOUTS[packed]
    return LAYOUTS[format_[1] if format_[0] == "q" else "float"]


def decode(plan: Plan, machine_: Machine, threads: int) -> float:
    """Tokens/s of generating one sequence from an empty context."""
    work = step_work(plan, [(GENERATED // 2, 1)], 1)
    bandwidth = machine_.bandwidth(work.bytes, threads) * READ_SHARE
    each = weights(plan, head=True)
    seconds = sum(max(w.bytes / bandwidth, w.bytes / (w.layout.decode * machine_.cycles(threads))) for w in each)
    seconds += (work.bytes - sum(w.bytes for w in each)) / bandwidth
    return 1 / (seconds + _overhead(plan, threads))


def prefill(plan: Plan, machine_: Machine, threads: int) -> float:
    """Tokens/s of taking in a prompt of :data:`PROMPT` tokens."""
    peak = machine_.int8(threads)
    work = step_work(plan, [(0, PROMPT)], 1)
    seconds = sum(PROMPT * w.macs / (peak * w.layout.prefill) for w in weights(plan, head=False))
    seconds += work.attention_macs / (peak / 4 * FLOAT_SHARE)
    return PROMPT / (seconds + _overhead(plan, threads))


def _overhead(plan: Plan, threads: int) -> float:
    return PYTHON + (len(plan.phases) * BARRIER if threads > 1 else 0)


def table(plan: Plan) -> str:
    """Markdown: the desktops, all cores of each."""
    lines = ["| | cores | GB/s | int8 TMAC/s | prefill tok/s | decode tok/s |", "|---|--:|--:|--:|--:|--:|"]
    nbytes = step_work(plan, [(0, 1)], 1).bytes
    for cpu in DESKTOPS:
        it = Machine(cpu.bandwidth, cpu.int8, cpu.cycles)
        lines.append(
            f"| {cpu.name} (Zen {cpu.zen}) | {cpu.cores} | {cpu.bandwidth(nbytes, cpu.cores) / 1e9:.0f}"
            f" | {cpu.int8(cpu.cores) / 1e12:.1f} | {prefill(plan, it, cpu.cores):,.0f}"
            f" | {decode(plan, it, cpu.cores):,.0f} |"
        )
    return "\n".join(lines)


def check(bundles: list[Path], threads: list[int], repetitions: int) -> tuple[str, bool]:
    """Markdown: predictions beside measurements on this machine; and whether all are within the tolerance."""
    lines = ["| | threads | test | predicted | measured | off by |", "|---|--:|---|--:|--:|--:|"]
    good = True
    for path in bundles:
        plan = Bundle.open(path).plan
        for count in threads:
            wanted = bench.workloads([PROMPT], [GENERATED], [0], [count])
            found = list(bench.run(path, wanted, repetitions=repetitions))
            it = _here(path, count, found)
            for one, guess in zip(found, (prefill(plan, it, count), decode(plan, it, count)), strict=True):
                off = guess / one.mean - 1
                good &= abs(off) <= TOLERANCE
                lines.append(
                    f"| {path.stem} | {count} | {one.workload.name} | {guess:,.1f} | {one.mean:,.1f} | {off:+.1%} |"
                )
    return "\n".join(lines), good


def _here(path: Path, threads: int, found: list[bench.Measurement]) -> Machine:
    """This machine as it was while a bundle was measured on it."""
    with CompiledModel(path, context=1, threads=threads) as model:
        nbytes = int(step_work(model.plan, [(0, 1)], 1).bytes)
        read = max(nbytes / model.probe_read(nbytes, plain=True) for _ in range(5))
        lanes = 64 if model.target.vector_bits == 512 else 32
    int8 = found[0].int8
    return Machine(lambda _, __: read, lambda _: int8, lambda _: int8 / lanes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.predict", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="measure here, and compare")
    parser.add_argument("-t", "--threads", default="1,2")
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    asked = parser.parse_args()
    texts = [f"{path.stem}\n\n{table(Bundle.open(path).plan)}" for path in asked.bundles]
    good = True
    if asked.check:
        checked, good = check(asked.bundles, [int(n) for n in asked.threads.split(",")], asked.repetitions)
        facts = machine.facts()
        texts.append(f"Checked here ({facts['cpu']}, ryzc {facts['commit']}, {facts['date']}):\n\n{checked}")
    text = "\n\n".join(texts)
    print(text)
    if asked.write:
        marks.put(PAGE, text, "predictions")
    if not good:
        sys.exit(f"error: a prediction is off by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
