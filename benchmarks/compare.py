"""ryzc against its peers, interleaved in one run.

``python -m benchmarks.compare MODEL [--tests pp512,tg128,batch8 -t 1 -r 5 -o md]``, where MODEL is a GGUF file or a
name of :mod:`benchmarks.models`.

Every engine runs in a process of its own and idles while another is timed. A round of a test measures, one after the
other, the read bandwidth, the int8 peak, and the test in each engine, and both limits once more after ryzc's turn,
which is the first; then comes the next round. A machine's speed drifts, so every ratio is taken within a round, and its
median over the rounds is what counts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import machine, models, peers, quality, table, workload
from benchmarks.results import Result, Round
from benchmarks.worker import PeerError, Worker
from benchmarks.workload import Test
from ryzc.runtime.bench import Work

PAUSE = 0.05
"""Seconds of rest before each measurement, in which the peer before it falls asleep.

llama.cpp's OpenMP threads spin for about 10 ms after their work. ``OMP_WAIT_POLICY=passive`` would send them to sleep
at once, but costs llama.cpp two thirds of its speed at two threads, which would flatter us.
"""
BEYOND_CACHE = 1 << 29
"""Bytes that are read to learn the bandwidth of memory."""
SCALING = 0.8
"""Share of perfect scaling below which a round is thrown away: it had not the cores that it asked for."""
ROUNDS_AT_MOST = 3
"""Times the rounds asked for, where some are thrown away."""
PATIENCE = 30.0
"""Seconds after which a test gets no more rounds, if it has :data:`ENOUGH`."""
ENOUGH = 3


class Comparison:
    """A model loaded in every engine.

    Args:
        model: the GGUF file, for the peers.
        bundle: what ryzc made of it.
        tests: what shall fit.
        names: engines, one of them ryzc.
        threads: of each.

    Attributes:
        facts: what a reader has to know about the run.
        absent: by engine, why it is not there.
    """

    def __init__(self, model: Path, bundle: Path, tests: Sequence[Test], *, names: Sequence[str], threads: int) -> None:
        self._stack, self.threads = ExitStack(), threads
        self.workers: list[Worker] = []
        self.absent: dict[str, str] = {}
        together = [test for test in tests if test.sequences > 1]
        room = {
            "context": max(512, *(test.reach for test in tests if test.sequences == 1)),
            "sequences": max((test.sequences for test in together), default=1),
            "each": max((test.reach for test in together), default=0),
        }
        with ExitStack() as stack:
            for name in sorted(names, key=peers.is_ours, reverse=True):  # ours first, between its two limits
                path = bundle if peers.is_ours(name) else models.for_engine(model, name)
                try:
                    self.workers.append(stack.enter_context(Worker(name, path, threads=threads, **room)))
                except (PeerError, FileNotFoundError) as error:
                    if peers.is_ours(name):
                        raise
                    self.absent[name] = str(error)
            self.ours = next(worker for worker in self.workers if peers.is_ours(worker.name))
            engines = {worker.name: worker.call("about") for worker in self.workers}
            self._stack = stack.pop_all()
        self.about: dict[str, Any] = engines[self.ours.name]
        self.facts = machine.facts() | {"model": model.name, "threads": threads, "engines": engines}
        draw = random.Random(0)
        length = max(test.reach for test in tests)
        self._tokens = [draw.randrange(self.about["vocab_size"]) for _ in range(length)]

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, test: Test, rounds: int) -> Result:
        """Measure a test; one round goes before the others as a warm-up."""
        spans, rows = test.steps(self.about["max_tokens"])
        result = Result(test, Work(**self.ours.call("work", spans=spans, rows=rows)), failures=dict(self.absent))
        if test.reach > self.about["context_length"]:
            reason = f"this model was trained for {self.about['context_length']} tokens"
            result.failures = {worker.name: reason for worker in self.workers}
            return result
        start = time.perf_counter()
        for attempt in range(1 + ROUNDS_AT_MOST * rounds):
            seconds: dict[str, float] = {}
            singles: dict[str, float] = {}
            step_bytes = int(result.work.bytes / len(spans))
            limits = [self._limits(step_bytes)]
            for worker in self.workers:
                if worker.name in result.failures:
                    continue
                time.sleep(PAUSE)
                try:
                    seconds[worker.name], singles[worker.name] = self._time(worker, test)
                except PeerError as error:
                    result.failures[worker.name] = str(error)
                if worker is self.ours:
                    limits.append(self._limits(step_bytes))
            far, near, peak, blocks, scaling = map(statistics.fmean, zip(*limits, strict=True))
            one = Round(far, near, peak, blocks, scaling, seconds, singles)
            if attempt and one.scaling >= SCALING:
                result.rounds.append(one)
            else:
                result.thrown_away += bool(attempt)
            enough = len(result.rounds) >= ENOUGH and time.perf_counter() - start > PATIENCE
            if enough or len(result.rounds) == rounds:
                break
        return result

    def _limits(self, step_bytes: int) -> tuple[float, ...]:
        """What the machine can do right now, in the order of :class:`.Round`."""
        single = self.ours.call("int8_peak", threads=1)
        peak = self.ours.call("int8_peak", threads=self.threads) if self.threads > 1 else single
        far, near = (self.ours.call("bandwidth", threads=self.threads, size=n) for n in (BEYOND_CACHE, step_bytes))
        blocks = self.ours.call("int8_peak", threads=self.threads, blocks=True)
        return far, near, peak, blocks, peak / (single * self.threads)

    def _time(self, worker: Worker, test: Test) -> tuple[float, float]:
        """Seconds of a test, and of as many steps of one token where it verifies drafts (else 0)."""
        tokens = self._tokens
        if test.is_prompt:
            return worker.call("prefill", tokens=tokens[: test.tokens]), 0.0
        single = 0.0
        if test.drafts:
            worker.call("fill", tokens=tokens[: test.start], sequences=1, imitate=False)
            few = tokens[test.start : test.start + test.tokens // test.at_once]
            single = worker.call("decode", tokens=few, sequences=1, at_once=1)
        imitate = test.start >= workload.DEEP and not self.about["windowed"]
        worker.call("fill", tokens=tokens[: test.start], sequences=test.sequences, imitate=imitate)
        timed = tokens[test.start : test.reach]
        return worker.call("decode", tokens=timed, sequences=test.sequences, at_once=test.at_once), single

    def perplexities(self, windows: int | Sequence[Sequence[int]]) -> dict[str, float | str]:
        """By engine: perplexity on the first so many windows of :mod:`benchmarks.quality` or on these, or why not."""
        cut = quality.windows(self.ours, windows) if isinstance(windows, int) else windows
        return quality.perplexities(self.workers, cut) | self.absent


def compare(
    model: Path,
    bundle: Path,
    tests: Sequence[Test],
    *,
    names: Sequence[str] = peers.NATIVE,
    threads: int = 1,
    rounds: int = 5,
    windows: int = 0,
) -> tuple[dict[str, Any], list[Result]]:
    """Measure a model in all engines: facts about the run, and a result for each test."""
    results: list[Result] = []
    with Comparison(model, bundle, tests, names=names, threads=threads) as comparison:
        facts = comparison.facts
        if windows:
            say("perplexity")
            facts["perplexity"] = comparison.perplexities(windows)
        for test in tests:
            say(test.name)
            results.append(comparison.run(test, rounds))
    return facts, results


def say(text: str) -> None:
    """Talk to whoever waits."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help=f"a GGUF file, or one of {', '.join(models.NAMES)}")
    parser.add_argument("--bundle", type=Path, help="what ryzc built from it; by default it is built now")
    parser.add_argument("--tests", default=",".join(workload.QUICK), help=f"by comma, e.g. {workload.FORM}")
    parser.add_argument("-t", type=int, default=1, help="threads")
    parser.add_argument("-r", type=int, default=5, help="rounds")
    parser.add_argument("-w", type=int, default=10, help="windows of 512 tokens for the perplexity; 0 for none")
    parser.add_argument("-o", choices=["md", "json"], default="md", help="output")
    parser.add_argument("--engines", default=",".join(peers.NATIVE), help=f"of {', '.join(peers.NAMES)}")
    arguments = parser.parse_args()
    names = arguments.engines.split(",")
    if set(names) - set(peers.NAMES) or sum(map(peers.is_ours, names)) != 1:
        parser.error(f"--engines names some of {', '.join(peers.NAMES)}, with one ryzc among them")
    try:
        wanted = workload.tests(arguments.tests.split(","))
    except ValueError as error:
        parser.error(str(error))
    try:
        model = models.find(arguments.model)
        bundle = arguments.bundle or models.bundle(model.path, names)
        facts, results = compare(
            model.path,
            bundle.resolve(),
            wanted,
            names=names,
            threads=arguments.t,
            rounds=arguments.r,
            windows=arguments.w if model.speaks else 0,
        )
    except (PeerError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if arguments.o == "json":
        print(json.dumps(table.as_json(facts, results), indent=1))
    else:
        print(table.as_markdown(facts, results))


if __name__ == "__main__":
    main()
