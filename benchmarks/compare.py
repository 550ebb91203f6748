"""ryzc against its peers, interleaved in one run.

``python -m benchmarks.compare MODEL.gguf BUNDLE [-p 512 -n 128 -d 0 -t 1 -r 5 -o md]``

Every engine runs in a process of its own and idles while another is timed. A round measures, one after the other,
the read bandwidth, the int8 peak, and each test in each engine; then comes the next round. A machine's speed drifts,
so every ratio is taken within a round, and its median over the rounds is what counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.worker import PeerError, Worker

OURS = "ryzc"
PAUSE = 0.05
"""Seconds of rest before each measurement, in which the peer before it falls asleep.

llama.cpp's OpenMP threads spin for about 10 ms after their work. ``OMP_WAIT_POLICY=passive`` would send them to sleep
at once, but costs llama.cpp two thirds of its speed at two threads, which would flatter us.
"""
SCALING = 0.8
"""Share of perfect scaling below which a round is thrown away: it had not the cores that it asked for."""
ROUNDS_AT_MOST = 3
"""Times the rounds asked for, where some are thrown away."""


@dataclass(frozen=True)
class Test:
    """What is timed: ``prompt`` tokens taken in at once, or ``generate`` tokens one by one after ``depth`` others."""

    prompt: int = 0
    generate: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench calls it."""
        work = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        return f"{work} @ d{self.depth}" if self.depth else work

    @property
    def tokens(self) -> int:
        """How many tokens are timed."""
        return self.prompt or self.generate


@dataclass(frozen=True)
class Round:
    """What one round measured.

    Attributes:
        bandwidth: bytes a second on all threads.
        int8_peak: multiply-accumulates a second on all threads.
        scaling: ``int8_peak`` over that of one thread times the threads.
        seconds: by test and engine.
    """

    bandwidth: float
    int8_peak: float
    scaling: float
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        speed, slowest, fastest: tokens a second: median and extremes of the rounds.
        ratio: how many times as fast ryzc is: median of the rounds' ratios, 1 for ryzc itself.
        roofline: median share of the read bandwidth (generating) or of the int8 peak (prompts).
    """

    test: str
    engine: str
    speed: float
    slowest: float
    fastest: float
    ratio: float
    roofline: float


def measure(
    workers: Sequence[Worker], tests: Sequence[Test], *, threads: int, rounds: int, vocab_size: int
) -> tuple[list[Round], int]:
    """The good rounds, and how many were thrown away; one more goes before them as a warm-up."""
    ours = next(worker for worker in workers if worker.name == OURS)
    draw = random.Random(0)
    longest = max(test.depth + test.tokens for test in tests) + 1
    tokens = [draw.randrange(vocab_size) for _ in range(longest)]
    good: list[Round] = []
    for attempt in range(1 + ROUNDS_AT_MOST * rounds):
        single = ours.call("int8_peak", threads=1)
        peak = ours.call("int8_peak", threads=threads) if threads > 1 else single
        result = Round(ours.call("bandwidth", threads=threads), peak, peak / (single * threads))
        for test in tests:
            times = result.seconds[test.name] = {}
            for worker in workers:
                time.sleep(PAUSE)
                times[worker.name] = _time(worker, test, tokens)
        if attempt and result.scaling >= SCALING:
            good.append(result)
        if len(good) == rounds:
            break
        _say(f"round {len(good)} of {rounds}" if attempt else "warm")
    return good, attempt - len(good)


def _time(worker: Worker, test: Test, tokens: Sequence[int]) -> float:
    if test.prompt:
        return float(worker.call("prefill", tokens=tokens[: test.prompt]))
    # At least one token goes first: a sequence has to be cleared by something.
    start = max(test.depth, 1)
    worker.call("prefill", tokens=tokens[:start])
    return float(worker.call("decode", tokens=tokens[start : start + test.generate]))


def summarise(tests: Iterable[Test], rounds: Sequence[Round], work: Mapping[str, float]) -> list[Row]:
    """The table's rows; ``work`` is what each test has to read in bytes, or compute in multiply-accumulates."""
    rows = []
    for test in tests:
        limits = [one.int8_peak if test.prompt else one.bandwidth for one in rounds]
        times = [one.seconds[test.name] for one in rounds]
        for engine in times[0]:
            speeds = [test.tokens / t[engine] for t in times]
            rows.append(
                Row(
                    test.name,
                    engine,
                    statistics.median(speeds),
                    min(speeds),
                    max(speeds),
                    statistics.median(t[engine] / t[OURS] for t in times),
                    statistics.median(
                        work[test.name] / t[engine] / limit for t, limit in zip(times, limits, strict=True)
                    ),
                )
            )
    return rows


def as_markdown(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The table with what a reader needs to judge it."""
    lines = [
        f"{facts['cpu']}, {facts['threads']} thread{'s' * (facts['threads'] > 1)}; {facts['model']}"
        f" ({facts['engines'][OURS]['formats']}); ryzc {facts['commit']}; {facts['date']}",
        f"{facts['rounds']} rounds ({facts['thrown_away']} thrown away), read bandwidth {facts['bandwidth'] / 1e9:.1f}"
        f" GB/s, int8 peak {facts['int8_peak'] / 1e9:.0f} GMAC/s",
        "",
        "| test | engine | tokens/s | min – max | ryzc is × as fast | share of roofline |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio = "" if row.engine == OURS else f"{row.ratio:.2f}"
        lines.append(
            f"| {row.test} | {row.engine} | {row.speed:.1f} | {row.slowest:.1f} – {row.fastest:.1f} | {ratio}"
            f" | {row.roofline:.1%} |"
        )
    return "\n".join(lines)


def compare(
    model: Path, bundle: Path, tests: Sequence[Test], *, names: Sequence[str], threads: int, rounds: int
) -> tuple[dict[str, Any], list[Row]]:
    """Measure a model in all engines: facts about the run, and the table's rows."""
    context = max(test.depth + test.tokens for test in tests) + 1
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(name, bundle if name == OURS else model, threads=threads, context=context))
            for name in names
        ]
        about = {worker.name: worker.call("about") for worker in workers}
        ours = next(worker for worker in workers if worker.name == OURS)
        work = {test.name: ours.call("work", **asdict(test)) for test in tests}
        good, thrown_away = measure(
            workers, tests, threads=threads, rounds=rounds, vocab_size=about[OURS]["vocab_size"]
        )
    if not good:
        raise PeerError(f"no round had {threads} cores to itself: the machine is busy or shares its cores")
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "system": platform.platform(),
        "model": model.name,
        "commit": _commit(),
        "threads": threads,
        "rounds": len(good),
        "thrown_away": thrown_away,
        "bandwidth": statistics.median(one.bandwidth for one in good),
        "int8_peak": statistics.median(one.int8_peak for one in good),
        "engines": about,
        "measured": [asdict(one) for one in good],
    }
    return facts, summarise(tests, good, work)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() or "unknown commit"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if int(part)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="the GGUF file, for the peers")
    parser.add_argument("bundle", type=Path, help="what ryzc built from it")
    parser.add_argument("-p", type=_numbers, default=[512], help="prompt lengths, by comma; 0 for none")
    parser.add_argument("-n", type=_numbers, default=[128], help="tokens to generate, by comma; 0 for none")
    parser.add_argument("-d", type=int, default=0, help="tokens before the generated ones")
    parser.add_argument("-t", type=int, default=1, help="threads")
    parser.add_argument("-r", type=int, default=5, help="rounds")
    parser.add_argument("-o", choices=["md", "json"], default="md", help="output")
    parser.add_argument("--peers", default=",".join(peers.NAMES), help="engines, in the order of a round")
    arguments = parser.parse_args()
    tests = [Test(prompt=p) for p in arguments.p] + [Test(generate=n, depth=arguments.d) for n in arguments.n]
    if not tests:
        parser.error("nothing to measure: -p and -n are both 0")
    names = arguments.peers.split(",")
    if OURS not in names or set(names) - set(peers.NAMES):
        parser.error(f"--peers names some of {', '.join(peers.NAMES)}, with {OURS} among them")
    try:
        facts, rows = compare(
            arguments.model.resolve(),
            arguments.bundle.resolve(),
            tests,
            names=names,
            threads=arguments.t,
            rounds=arguments.r,
        )
    except PeerError as error:
        sys.exit(f"error: {error}")
    if arguments.o == "json":
        print(json.dumps(facts | {"table": [asdict(row) for row in rows]}, indent=1))
    else:
        print(as_markdown(facts, rows))


if __name__ == "__main__":
    main()
