"""How many threads a pool steps with beside other processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ryzc.compiler import build
from ryzc.runtime import neighbours
from ryzc.runtime.kv import PagePool
from ryzc.runtime.neighbours import TICKS, Neighbours, Sample, read, suitable
from ryzc.runtime.step import CompiledModel


@pytest.mark.parametrize(
    ("wanted", "cpus", "taken", "expected"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.1, 2),  # a little noise
        (2, 2, 0.5, 1),  # a neighbour that two threads squeeze to half a CPU
        (2, 2, 1.0, 1),
        (2, 2, 2.0, 1),  # never none
        (1, 2, 2.0, 1),
        (1, 2, 0.5, 1),
        (2, 4, 1.0, 2),  # there is room beside it
        (2, 4, 2.0, 2),
        (8, 8, 0.05, 8),
        (8, 8, 0.5, 7),
        (8, 8, 1.0, 7),
        (8, 8, 3.2, 4),
        (16, 32, 16.0, 16),  # second hardware threads are CPUs too
        (16, 32, 20.0, 12),
        (4, 2, 0.0, 2),  # more than there are CPUs
        (3, 2, 0.0, 2),
        (64, 2, 1.0, 1),
    ],
)
def test_what_suits(wanted: int, cpus: int, taken: float, expected: int) -> None:
    assert suitable(wanted, cpus, taken) == expected


def _books(root: Path, *rows: str) -> Path:
    path = root / "stat"
    path.write_text("cpu  9 9 9 9 9 9 9 9 9 9\n" + "".join(f"{row}\n" for row in rows) + "intr 1 2 3\n")
    return path


def test_the_kernels_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.nice", lambda change: 0)  # whatever priority the tests run at
    #              user nice system idle iowait irq softirq steal guest guest_nice
    path = _books(
        tmp_path, "cpu0 1 20 3 400 5000 6 7 80000 0 0", "cpu1 9 9 9 9 9 9 9 9 9 9", "cpu12 0 0 0 1 0 0 0 0 0 0"
    )
    found = read(frozenset({0, 12}), path)
    assert found is not None
    assert found.free == pytest.approx((20 + 400 + 5000 + 80000 + 1) / TICKS)
    assert found.own == pytest.approx(time.process_time(), abs=0.5)


@pytest.mark.parametrize("rows", [[], ["cpu0 1 2"], ["cpu0 a b c d e f g h i"], ["cpu0 1 1 1 1 1 1 1 1 1 1"]])
def test_strange_books_say_nothing(tmp_path: Path, rows: list[str]) -> None:
    assert read(frozenset({0, 1}), _books(tmp_path, *rows)) is None
    assert read(frozenset({0}), tmp_path / "missing") is None


def test_this_machine_keeps_books() -> None:
    cpus = frozenset({0})
    first, second = read(cpus), read(cpus)
    assert first is not None
    assert second is not None
    assert second.free >= first.free
    assert second.clock > first.clock


class _Clock:
    """Time that passes only when told to, on a machine whose CPUs are busy as told."""

    def __init__(self, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cpus, self.now, self.free, self.own, self.readable = cpus, 0.0, 0.0, 0.0, True
        monkeypatch.setattr(neighbours.time, "perf_counter", lambda: self.now)

    def run(self, seconds: float, *, ours: float, others: float) -> None:
        """``ours`` and ``others`` in CPUs."""
        self.now += seconds
        self.own += seconds * ours
        self.free += seconds * (self.cpus - ours - others)

    def sample(self, cpus: frozenset[int]) -> Sample | None:
        assert len(cpus) == self.cpus
        return Sample(self.now, self.free, self.own) if self.readable else None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Clock]:
    return _Clock(2, monkeypatch)


def _two(clock: _Clock, wanted: int = 2) -> Neighbours:
    return Neighbours(wanted, frozenset({0, 1}), clock.sample)


def test_a_neighbour_comes_and_goes(clock: _Clock) -> None:
    pool = _two(clock)
    for ours, others, expected in [(2, 0, 2), (1.4, 0.6, 1), (1, 1, 1), (1, 1, 1), (1, 0, 2), (2, 0, 2)]:
        clock.run(0.3, ours=ours, others=others)
        pool.stepped()
        assert pool.threads() == expected


def test_what_others_did_while_it_rested_does_not_count(clock: _Clock) -> None:
    pool = _two(clock)
    clock.run(0.3, ours=1, others=1)
    pool.stepped()
    assert pool.threads() == 1
    clock.run(5, ours=0, others=2)
    assert pool.threads() == 2
    clock.run(0.3, ours=2, others=0)
    pool.stepped()
    assert pool.threads() == 2


def test_it_looks_a_few_times_a_second_at_most(clock: _Clock) -> None:
    pool = _two(clock)
    clock.run(0.01, ours=0, others=2)
    pool.stepped()
    assert pool.threads() == 2
    clock.run(0.2, ours=0, others=2)
    pool.stepped()
    assert pool.threads() == 1


def test_without_books_nothing_changes(clock: _Clock) -> None:
    clock.readable = False
    pool = _two(clock)
    clock.run(1, ours=0, others=2)
    pool.stepped()
    assert pool.threads() == 2
    clock.readable = True
    pool = _two(clock)
    clock.readable = False
    clock.run(1, ours=0, others=2)
    pool.stepped()
    assert pool.threads() == 2


def test_one_thread_never_looks(clock: _Clock) -> None:
    pool = Neighbours(1, frozenset({0}), lambda cpus: pytest.fail("looked"))
    clock.run(1, ours=0, others=2)
    assert pool.threads() == 1


SPIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def _speed(model: CompiledModel, batch: int, seconds: float) -> float:
    """Tokens a second of steps of so many tokens, after the pool has had time to look around."""
    places = np.arange(batch)
    for spell in (0.2, seconds):
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < spell:
            model.step(places + 7, places, np.zeros(batch, int), [batch - 1])
            steps += 1
    return batch * steps / (time.perf_counter() - start)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 128], ids=["decode", "prompt"])
def test_two_threads_beside_a_busy_process_are_no_slower_than_one(
    batch: int, smollm2_path: Path, tmp_path: Path
) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    bundle = build(smollm2_path, tmp_path / "smollm2.ryzc")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        with CompiledModel(bundle, context=256, threads=1) as one, CompiledModel(bundle, context=256, threads=2) as two:
            PagePool(one.pages, one.page_tokens, one.page_table).resize(0, 256)
            PagePool(two.pages, two.page_tokens, two.page_table).resize(0, 256)
            busy = subprocess.Popen([sys.executable, "-c", SPIN, str(cpus[1])])
            try:
                # Each spell of two threads beside the spells of one before and after it, for the machine's own clock
                # and memory swing by more than what is at stake; and no verdict against two from a few bad minutes.
                ones, ratios = [_speed(one, batch, 0.2)], list[float]()
                while len(ratios) < 40 or (statistics.median(ratios) <= 0.9 and len(ratios) < 160):
                    speed = _speed(two, batch, 0.2)
                    ones.append(_speed(one, batch, 0.2))
                    ratios.append(speed / statistics.mean(ones[-2:]))
            finally:
                busy.kill()
                busy.wait()
    finally:
        os.sched_setaffinity(0, before)
    # Two that wait for each other reach about 0.7 and 0.85.
    assert statistics.median(ratios) > 0.9
