"""What rounds of a test say: speeds, ratios and shares of the roofline."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks import peers
from benchmarks.workload import Test
from ryzc.runtime.bench import Work


@dataclass(frozen=True)
class Round:
    """What one round of a test measured.

    Attributes:
        bandwidth: bytes a second on all threads, from memory.
        near_bandwidth: the same over no more bytes than a step reads, of which a large cache may hold a part.
        int8_peak: multiply-accumulates a second on all threads.
        block_peak: the same where every 32 are scaled and added as floats, the limit of weights with block scales.
        scaling: ``int8_peak`` over that of one thread times the threads.
        seconds: by engine.
        singles: by engine, seconds of as many steps of one token; of tests that verify drafts.
    """

    bandwidth: float
    near_bandwidth: float
    int8_peak: float
    block_peak: float
    scaling: float
    seconds: dict[str, float] = field(default_factory=dict)
    singles: dict[str, float] = field(default_factory=dict)


@dataclass
class Result:
    """A test's rounds.

    Attributes:
        work: what it has to do at least.
        rounds: the good ones.
        thrown_away: how many were not.
        failures: by engine, why it has no figures.
    """

    test: Test
    work: Work
    rounds: list[Round] = field(default_factory=list)
    thrown_away: int = 0
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """How an engine did in a test.

    Attributes:
        median, slowest, fastest: tokens a second.
        behind: how many times as long as ryzc it took; 1 for ryzc itself.
        share: of the roofline, attention's arithmetic left out.
        share_with_attention: the same with it.
        share_of_blocks: as ``share``, with the peak of weights with block scales in place of the int8 peak.
        step_cost: of a step that verifies drafts, in steps of one token; 0 in other tests.
    """

    median: float
    slowest: float
    fastest: float
    behind: float
    share: float
    share_with_attention: float
    share_of_blocks: float
    step_cost: float


@dataclass(frozen=True)
class Row:
    """A test's line.

    Attributes:
        limit: tokens a second that the roofline allows, attention's arithmetic left out.
        bound: which limit that is, ``read`` or ``int8``.
        speeds: by engine, ryzc first.
        failures: by engine, why it has no figures.
    """

    test: str
    limit: float
    bound: str
    speeds: dict[str, Speed]
    failures: dict[str, str]

    @property
    def ours(self) -> str | None:
        """Name of the engine that is ryzc, where it has figures."""
        return next(filter(peers.is_ours, self.speeds), None)

    @property
    def best_peer(self) -> str | None:
        """The fastest of the others."""
        others = [name for name in self.speeds if not peers.is_ours(name)]
        return min(others, key=lambda name: self.speeds[name].behind, default=None)


def from_json(fields: Mapping[str, Any]) -> Result:
    """A result as :func:`dataclasses.asdict` and JSON left it."""
    return Result(
        Test(**fields["test"]),
        Work(**fields["work"]),
        [Round(**one) for one in fields["rounds"]],
        fields["thrown_away"],
        dict(fields["failures"]),
    )


class Limits(NamedTuple):
    """Seconds that a test needs at least.

    Attributes:
        read: for all that is read.
        linear: for the linear layers' arithmetic.
        attention: for theirs and attention's.
        blocks: for theirs, where weights have block scales.
    """

    read: float
    linear: float
    attention: float
    blocks: float


def limits(work: Work, one: Round) -> Limits:
    """What the machine, as it was in a round, allows."""
    return Limits(
        work.bytes / one.bandwidth,
        work.linear_macs / one.int8_peak,
        (work.linear_macs + work.attention_macs) / one.int8_peak,
        work.linear_macs / one.block_peak,
    )


def row(result: Result) -> Row:
    """A test's line from its rounds."""
    rounds, total = result.rounds, result.test.total
    bounds = [limits(result.work, one) for one in rounds]
    speeds = {}
    names = [name for name in (rounds[0].seconds if rounds else ()) if name not in result.failures]
    ours = next(filter(peers.is_ours, names), None)
    for name in names:
        times = [one.seconds[name] for one in rounds]
        singles = [one.singles[name] for one in rounds]
        pairs = list(zip(times, bounds, strict=True))
        each = [total / seconds for seconds in times]
        speeds[name] = Speed(
            median=statistics.median(each),
            slowest=min(each),
            fastest=max(each),
            behind=statistics.median(one.seconds[name] / one.seconds[ours] for one in rounds) if ours else 0.0,
            share=statistics.median(max(least.read, least.linear) / t for t, least in pairs),
            share_with_attention=statistics.median(max(least.read, least.attention) / t for t, least in pairs),
            share_of_blocks=statistics.median(max(least.read, least.blocks) / t for t, least in pairs),
            step_cost=statistics.median(t / s for t, s in zip(times, singles, strict=True)) if all(singles) else 0.0,
        )
    read, linear = (statistics.median(b[i] for b in bounds) if bounds else 0.0 for i in (0, 1))
    limit = total / max(read, linear) if bounds else 0.0
    return Row(result.test.name, limit, "read" if read >= linear else "int8", speeds, dict(result.failures))
