"""How many threads to step with while other processes use the same CPUs.

Threads that meet at every barrier are as slow as the slowest of them. One that shares its CPU with a
busy process is off it half of the time, and the others stand still meanwhile: on a crowded machine
fewer threads are faster. So several times a second, between two steps, the time that the CPUs were
neither idle nor ours is read off the kernel's books, and the next steps take the number of threads
that suits what is left. It needs no trials, sees a neighbour come and go, and several pools side by
side share a machine out among them. Only the time of the pool's own steps counts: who used the CPUs while
it had nothing to do says nothing about the next step.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WINDOW = 5
"""Ticks of the kernel's books between two looks, times the root of the CPUs: each is off by up to a tick."""
STALL = 1.5
"""Time that a pool loses for each bit of a CPU that it lacks: what the neighbour takes, and waking up late."""
TICKS = os.sysconf("SC_CLK_TCK")
"""A second has so many."""


@dataclass(frozen=True)
class Sample:
    """Seconds: of the clock, of the CPUs' time that is free for the asking, of this process's own CPU time."""

    clock: float
    free: float
    own: float


def read(cpus: frozenset[int], stat: Path = Path("/proc/stat")) -> Sample | None:
    """The books of these CPUs now; ``None`` where the kernel doesn't show them.

    Free is what was idle, what ran at a lower priority than a process usually has, for it makes way, and
    what the machine below took (``steal``), which fewer threads would not bring back.
    """
    makes_way = os.nice(0) <= 0
    ticks = seen = 0
    try:
        for line in stat.read_text("ascii").splitlines():
            name, *words = line.split()
            if name[3:].isdecimal() and int(name[3:]) in cpus:
                nice, idle, iowait, steal = (int(words[i]) for i in (1, 3, 4, 7))
                ticks += idle + iowait + steal + (nice if makes_way else 0)
                seen += 1
    except (OSError, ValueError, IndexError):
        return None
    if seen != len(cpus):
        return None
    return Sample(time.perf_counter(), ticks / TICKS, time.process_time())


def suitable(wanted: int, cpus: int, taken: float) -> int:
    """How many of ``wanted`` threads to step with on ``cpus`` of which others take ``taken`` (in CPUs).

    Either all of them, slowed down by what they lack, or as many as find a CPU to themselves.
    """
    free = cpus - taken
    lack = wanted - free
    alone = max(1, int(free))
    if lack <= 0 or wanted <= alone:
        return wanted
    return wanted if wanted * (1 - STALL * lack) > alone else alone


class Neighbours:
    """Adapts a pool to the other processes of its machine.

    Args:
        wanted: threads of the pool.
        cpus: logical CPUs that it may use.
        sample: reads the books.
    """

    def __init__(
        self, wanted: int, cpus: frozenset[int], sample: Callable[[frozenset[int]], Sample | None] = read
    ) -> None:
        self._wanted = self._threads = wanted
        self._cpus = cpus
        self._sample = sample
        self._window = WINDOW * math.sqrt(len(cpus)) / TICKS
        self._since = sample(cpus) if wanted > 1 else None
        self._stopped = time.perf_counter()

    def threads(self) -> int:
        """How many threads to take the next step with."""
        since, now = self._since, time.perf_counter()
        if since is None:
            return self._threads
        if now - self._stopped > self._window:
            self._since, self._threads = self._sample(self._cpus), self._wanted
        elif now - since.clock > self._window:
            found = self._since = self._sample(self._cpus)
            if found is not None:
                ours = found.free - since.free + found.own - since.own
                taken = len(self._cpus) - ours / (found.clock - since.clock)
                self._threads = suitable(self._wanted, len(self._cpus), max(0.0, taken))
        return self._threads

    def stepped(self) -> None:
        """A step has ended."""
        self._stopped = time.perf_counter()
