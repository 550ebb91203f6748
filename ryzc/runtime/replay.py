"""Replaying a trace of requests: what users of a busy engine wait for, and how much it gets done.

A trace is JSON lines. Each has ``timestamp`` (milliseconds from the start), ``input_length`` and ``output_length``
(tokens), and optionally ``hash_ids``: one number a block of 512 tokens of the prompt, equal numbers standing for equal
blocks behind equal beginnings. This is the format of the traces that Mooncake published (Qin et al., "Mooncake",
FAST 2025); further keys are ignored. Prompts are made of pseudo-random tokens, answers are exactly as long as asked.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ryzc.errors import OverloadError, RyzcError, UserError
from ryzc.runtime.engine import Engine
from ryzc.runtime.request import Options
from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.stream import Stream

BLOCK = 512
"""Tokens that one of the ``hash_ids`` stands for."""


@dataclass(frozen=True)
class Arrival:
    """A request of a trace: seconds after its start, tokens, and the blocks that its prompt begins with."""

    seconds: float
    input_length: int
    output_length: int
    blocks: tuple[int, ...] = ()


def read(path: Path) -> list[Arrival]:
    """The requests of a trace, by arrival.

    Raises:
        UserError: a line is none.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            arrival = Arrival(
                float(entry["timestamp"]) / 1000,
                int(entry["input_length"]),
                int(entry["output_length"]),
                tuple(int(block) for block in entry.get("hash_ids", ())),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number}: {error!r}",
                hint="a line is an object with timestamp, input_length, output_length",
            ) from error
        if arrival.seconds < 0 or arrival.input_length < 1 or arrival.output_length < 1:
            raise UserError(f"{path}, line {number}: times and lengths must be positive", hint="mend the line")
        found.append(arrival)
    if not found:
        raise UserError(f"{path} holds no requests", hint="see docs/measuring.md for the format")
    return sorted(found, key=lambda arrival: arrival.seconds)


def prompt(arrival: Arrival, number: int, vocab_size: int) -> list[int]:
    """Tokens that are alike where the trace says so, and else only in this request."""
    blocks = [np.random.default_rng((1, block)) for block in arrival.blocks]
    missing = -(-arrival.input_length // BLOCK) - len(blocks)
    blocks += [np.random.default_rng((2, number, i)) for i in range(max(0, missing))]
    ids = np.concatenate([block.integers(0, vocab_size, BLOCK) for block in blocks])
    return [int(id_) for id_ in ids[: arrival.input_length]]


@dataclass(frozen=True)
class Outcome:
    """What became of a request; seconds from its arrival, ``None`` for a first token that never came."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reason: str
    first_token: float | None
    gaps: tuple[float, ...]
    total: float


@dataclass(frozen=True)
class Summary:
    """Figures of a replay; times in seconds, percentiles 50, 95 and 99.

    Attributes:
        requests, refused, failed: counts.
        seconds: from the first arrival to the last end.
        time_to_first_token, inter_token, total: percentiles.
        output_per_second, prompt_per_second: tokens.
        cached_share: of the prompts' tokens that were found in the prefix cache.
        schedule_share: of the engine's time that was spent outside native code.
    """

    requests: int
    refused: int
    failed: int
    seconds: float
    time_to_first_token: tuple[float, float, float]
    inter_token: tuple[float, float, float]
    total: tuple[float, float, float]
    output_per_second: float
    prompt_per_second: float
    cached_share: float
    schedule_share: float


def replay(
    engine: Engine, trace: Sequence[Arrival], *, speed: float = 1.0, tell: Callable[[int, int], None] | None = None
) -> Summary:
    """Send every request at its time (divided by ``speed``) and wait for all.

    Args:
        engine: with a thread of its own.
        tell: called with how many requests have ended, and of how many.

    Raises:
        ContextError: a request does not fit into the engine's context.
    """
    vocab = engine.compiled.vocab_size
    prompts = [prompt(arrival, i, vocab) for i, arrival in enumerate(trace)]
    for ids, arrival in zip(prompts, trace, strict=True):
        engine.check_length(len(ids) + arrival.output_length - 1)
    outcomes: list[Outcome | None] = [None] * len(trace)
    ended = threading.Semaphore(0)
    readers = []
    before = (engine.metrics.schedule_seconds.total, engine.metrics.step_seconds.total)
    start = time.perf_counter()
    for i, (ids, arrival) in enumerate(zip(prompts, trace, strict=True)):
        time.sleep(max(0.0, start + arrival.seconds / speed - time.perf_counter()))
        options = Options(sampling=SamplingParams(temperature=0), max_tokens=arrival.output_length, ignore_eos=True)
        arrived = time.perf_counter()
        try:
            stream = engine.enqueue(ids, options)
        except OverloadError:
            outcomes[i] = Outcome(len(ids), 0, 0, "refused", None, (), 0.0)
            ended.release()
            continue
        reader = threading.Thread(target=_follow, args=(stream, arrived, outcomes, i, ended), daemon=True)
        reader.start()
        readers.append(reader)
    for done in range(len(trace)):
        ended.acquire()
        if tell is not None:
            tell(done + 1, len(trace))
    seconds = time.perf_counter() - start - trace[0].seconds / speed
    schedule, native = (
        now - then
        for now, then in zip(
            (engine.metrics.schedule_seconds.total, engine.metrics.step_seconds.total), before, strict=True
        )
    )
    return summarize([o for o in outcomes if o is not None], seconds, schedule / (schedule + native))


def _follow(
    stream: Stream, arrived: float, outcomes: list[Outcome | None], number: int, ended: threading.Semaphore
) -> None:
    """Read a stream to its end."""
    times: list[float] = []
    tokens, reason = 0, "failed"
    try:
        for delta in stream:
            if delta.ids:
                times.append(time.perf_counter())
                tokens += len(delta.ids)
            reason = delta.finish_reason or reason
    except RyzcError:
        reason = "failed"
    finally:
        gaps = tuple(b - a for a, b in pairwise(times))
        outcomes[number] = Outcome(
            stream.usage.prompt_tokens,
            stream.usage.cached_tokens,
            tokens,
            reason,
            times[0] - arrived if times else None,
            gaps,
            time.perf_counter() - arrived,
        )
        ended.release()


def summarize(outcomes: Sequence[Outcome], seconds: float, schedule_share: float) -> Summary:
    """The figures of a replay."""
    answered = [o for o in outcomes if o.first_token is not None]
    prompts = sum(o.prompt_tokens for o in answered)
    return Summary(
        len(outcomes),
        sum(o.reason == "refused" for o in outcomes),
        sum(o.reason not in {"refused", "length", "stop"} for o in outcomes),
        seconds,
        _percentiles([o.first_token for o in answered if o.first_token is not None]),
        _percentiles([gap for o in answered for gap in o.gaps]),
        _percentiles([o.total for o in answered]),
        sum(o.output_tokens for o in answered) / seconds,
        prompts / seconds,
        sum(o.cached_tokens for o in answered) / prompts if prompts else 0.0,
        schedule_share,
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3 if values else (0.0, 0.0, 0.0)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[94], cuts[98]
