"""Which layout ternary weights take, shape by shape, measured on this CPU; see :mod:`ryzc.formats.trits`.

A dense layout has fewer bytes and takes more work to read, so it pays where a step waits for memory; one that is looked
up in tables takes less, but each thread makes the tables first. That depends on the CPU, and on how many of its cores
share the memory. So a single token is multiplied in each layout, by one thread and by all of them at once, in turns.
What all of them do is what counts: that is how the model will be run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from ryzc.bundle.tuning import LayoutChoice
from ryzc.bundle.tuning import Trial as Record
from ryzc.codegen import isa as instruction_sets
from ryzc.formats.trits import USUAL
from ryzc.lower import tuner
from ryzc.lower.planner import Lowered
from ryzc.lower.trial import Subject, Trial
from ryzc.targets import Target
from ryzc.templates.kernels import bit_linear, from_spec

GAIN: Final = 0.03
"""By how much another layout must be faster to be taken: with more tokens at a time it is the slower one."""
ROUNDS: Final = 5

Shape = tuple[int, int]
Layouts = Mapping[Shape, str]
"""Layouts by rows and columns of the packed weights; those that are not in it take :data:`USUAL`."""


def choose(plans: Callable[[str], Lowered], target: Target, threads: int, cold_bytes: int) -> tuple[LayoutChoice, ...]:
    """Measure every shape of ternary weights that a model has.

    Args:
        plans: gives the model with all ternary weights in one layout.
        target: this CPU runs it.
        threads: that share the work, as they will when the model runs.
        cold_bytes: size of the region that weights are read from in turn.
    """
    layouts = bit_linear.layouts(instruction_sets.BY_NAME[target.isa])
    lowered = {layout: plans(layout) for layout in layouts}
    if not present(lowered[USUAL]):
        return ()
    subjects = {layout: _subjects(each, target) for layout, each in lowered.items()}
    counts = sorted({1, threads})
    return tuple(
        choice
        for symbol in subjects[USUAL]
        for choice in _measure({layout: s[symbol] for layout, s in subjects.items()}, target, counts, cold_bytes)
    )


def present(lowered: Lowered) -> bool:
    """Whether a model has ternary weights."""
    return any(spec.family == "bit_linear" for spec in lowered.plan.kernels)


def by_shape(choices: Sequence[LayoutChoice]) -> Layouts:
    """What came out on the most threads."""
    return {(choice.rows, choice.columns): choice.chosen for choice in choices}


def _measure(
    subjects: Mapping[str, Subject], target: Target, counts: Sequence[int], cold_bytes: int
) -> list[LayoutChoice]:
    found: list[LayoutChoice] = []
    with ExitStack() as stack:
        trials = {layout: stack.enter_context(Trial(s, target, cold_bytes)) for layout, s in subjects.items()}
        for threads in counts:
            samples: dict[str, list[float]] = {layout: [] for layout in trials}
            for _ in range(ROUNDS):
                for layout, trial in trials.items():
                    samples[layout].append(min(trial.together(method, threads) for method in trial.methods))
            records = tuple(Record(layout, round(statistics.median(times))) for layout, times in samples.items())
            found.append(_choice(subjects[USUAL], threads, records))
    return found


def _choice(subject: Subject, threads: int, records: tuple[Record, ...]) -> LayoutChoice:
    ns = {record.method: record.ns for record in records}
    best = min(ns, key=lambda layout: ns[layout])
    chosen = USUAL if ns[USUAL] <= ns[best] * (1 + GAIN) else best
    weight = subject.weight
    return LayoutChoice(subject.spec.symbol, weight.rows, weight.columns, threads, records, chosen)


def _subjects(lowered: Lowered, target: Target) -> dict[str, Subject]:
    """The kernels of ternary weights, each with the methods for a single token that come into question."""
    isa, produce = instruction_sets.BY_NAME[target.isa], {w.name: packed for w, packed in lowered.weights}
    found = {}
    for spec, call, weight, _ in tuner.subjects(lowered, target):
        if spec.family == "bit_linear":
            usual = from_spec(spec).default_schedule(isa)[0].partition(":")[2]
            methods = (usual, usual.partition("-p")[0])
            found[spec.symbol] = Subject(lowered.plan, spec, call, weight, produce[weight.name](), methods)
    return found
