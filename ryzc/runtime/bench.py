"""How fast a bundle is, and how fast this machine could be.

The tests are llama-bench's: ``pp`` feeds a prompt of pseudo-random tokens, ``tg`` feeds one token a
step, both behind ``depth`` tokens that are already there. Before and after every repetition the
machine's read bandwidth and int8 peak are measured on as many threads, because both drift; a
repetition's share is its speed against the mean of the two.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ryzc.bundle import Bundle
from ryzc.bundle.plan import Call, KVSpec, Plan
from ryzc.errors import UsageError
from ryzc.runtime.kv import PagePool
from ryzc.runtime.step import CompiledModel


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
        kind: ``pp`` (prompt) or ``tg`` (generation).
        tokens: how many.
        depth: tokens before them.
        threads: of the pool.
    """

    kind: str
    tokens: int
    depth: int
    threads: int

    @property
    def name(self) -> str:
        """As llama-bench writes it, e.g. ``tg128 @ d512``."""
        return f"{self.kind}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Sample:
    """One repetition.

    Attributes:
        tokens_per_second: its speed.
        read: the machine's read bandwidth around it, bytes/s.
        int8: the machine's int8 peak around it, multiply-accumulates/s.
    """

    tokens_per_second: float
    read: float
    int8: float


@dataclass(frozen=True)
class Measurement:
    """A workload's repetitions.

    Attributes:
        workload: what was measured.
        samples: one a repetition.
        bytes_per_token: weights, keys and values that a token has to read; a prompt's share a step's weights.
        macs_per_token: multiply-accumulates of the linear layers for one token.
    """

    workload: Workload
    samples: tuple[Sample, ...]
    bytes_per_token: float
    macs_per_token: float

    @property
    def mean(self) -> float:
        """Tokens/s."""
        return statistics.fmean(s.tokens_per_second for s in self.samples)

    @property
    def deviation(self) -> float:
        """Standard deviation of the tokens/s; 0 for one repetition."""
        values = [s.tokens_per_second for s in self.samples]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    @property
    def read(self) -> float:
        """Mean read bandwidth, bytes/s."""
        return statistics.fmean(s.read for s in self.samples)

    @property
    def int8(self) -> float:
        """Mean int8 peak, multiply-accumulates/s."""
        return statistics.fmean(s.int8 for s in self.samples)

    @property
    def read_share(self) -> float:
        """What part of the read bandwidth this speed needs."""
        return statistics.fmean(s.tokens_per_second * self.bytes_per_token / s.read for s in self.samples)

    @property
    def int8_share(self) -> float:
        """What part of the int8 peak this speed needs."""
        return statistics.fmean(s.tokens_per_second * self.macs_per_token / s.int8 for s in self.samples)


def workloads(
    prompts: Sequence[int], generations: Sequence[int], depths: Sequence[int], threads: Sequence[int]
) -> list[Workload]:
    """Every combination, grouped by threads as llama-bench does; lengths of 0 are left out.

    Raises:
        UsageError: nothing is left.
    """
    kinds = [*(("pp", n) for n in prompts), *(("tg", n) for n in generations)]
    result = [Workload(kind, n, depth, count) for count in threads for depth in depths for kind, n in kinds if n > 0]
    if not result:
        raise UsageError("there is nothing to measure", hint="set -p or -n above 0")
    return result


def run(bundle: Bundle | str | Path, wanted: Sequence[Workload], *, repetitions: int = 5) -> Iterator[Measurement]:
    """Measure one workload after the other.

    Raises:
        UsageError: a workload does not fit into the model's context, or an argument is out of range.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if repetitions < 1:
        raise UsageError(f"{repetitions} repetitions measure nothing", hint="set -r to 1 or more")
    context = max(workload.depth + workload.tokens for workload in wanted)
    if min(min(workload.tokens, workload.depth + 1) for workload in wanted) < 1:
        raise UsageError("a workload needs at least one token and no negative depth")
    if context > opened.plan.context_length:
        raise UsageError(
            f"a workload of {context} tokens does not fit into this model's context of {opened.plan.context_length}",
            hint="lower -p, -n or -d",
        )
    for threads in dict.fromkeys(workload.threads for workload in wanted):
        with CompiledModel(opened, context=context, threads=threads) as model:
            runner = _Runner(model)
            for workload in wanted:
                if workload.threads == threads:
                    yield runner.measure(workload, repetitions)


class _Runner:
    """Runs tests on one loaded model."""

    def __init__(self, model: CompiledModel) -> None:
        self.model = model
        PagePool(model.pages, model.page_tokens, model.page_table).resize(0, model.context)
        self.ids: npt.NDArray[np.int32] = (
            np.random.default_rng(0).integers(0, model.vocab_size, model.context).astype(np.int32)
        )

    def measure(self, workload: Workload, repetitions: int) -> Measurement:
        self._prompt(0, workload.depth)
        self._prompt(workload.depth, min(workload.tokens, self.model.max_tokens))  # warms up
        samples = []
        before = self._roofline()
        for _ in range(repetitions):
            start = time.perf_counter()
            if workload.kind == "pp":
                self._prompt(workload.depth, workload.tokens)
            else:
                self._generate(workload.depth, workload.tokens)
            seconds = time.perf_counter() - start
            after = self._roofline()
            read, int8 = ((a + b) / 2 for a, b in zip(before, after, strict=True))
            samples.append(Sample(workload.tokens / seconds, read, int8))
            before = after
        return Measurement(
            workload,
            tuple(samples),
            bytes_per_token(self.model.plan, workload),
            macs_per_token(self.model.plan, workload),
        )

    def _prompt(self, start: int, count: int) -> None:
        end = start + count
        for first in range(start, end, self.model.max_tokens):
            last = min(first + self.model.max_tokens, end)
            self._step(first, last, [last - first - 1] if last == end else [])

    def _generate(self, start: int, count: int) -> None:
        for position in range(start, start + count):
            self._step(position, position + 1, [0])

    def _step(self, first: int, last: int, rows: list[int]) -> None:
        positions = np.arange(first, last, dtype=np.int32)
        self.model.step(self.ids[first:last], positions, np.zeros_like(positions), rows)

    def _roofline(self) -> tuple[float, float]:
        """Read bandwidth in bytes/s and int8 peak in multiply-accumulates/s, right now."""
        nbytes = 1 << 28
        read = nbytes / self.model.probe_read(nbytes)
        seconds, macs = self.model.probe_int8()
        return read, macs / seconds


@dataclass(frozen=True)
class Work:
    """What has to be done at least, whatever the kernels.

    Attributes:
        bytes: read from memory: weights once a step, and each sequence's visible keys and values once a step.
        linear_macs: multiply-accumulates of the linear layers, the head's for the rows asked for.
        attention_macs: those of queries with keys and of probabilities with values, of visible tokens alone.
    """

    bytes: float
    linear_macs: float
    attention_macs: float

    def __add__(self, other: Work) -> Work:
        return Work(
            self.bytes + other.bytes,
            self.linear_macs + other.linear_macs,
            self.attention_macs + other.attention_macs,
        )


def step_work(plan: Plan, spans: Sequence[Sequence[int]], rows: int) -> Work:
    """What one step has to do.

    Args:
        spans: of each sequence in the step, the first position and the number of its tokens.
        rows: tokens whose logits are made.
    """
    tokens = sum(count for _, count in spans)
    weights = weight_bytes(plan) - (0 if rows else _head_bytes(plan))
    return Work(
        weights + sum(kv_bytes(plan.kv, first, count) for first, count in spans),
        plan.macs_per_token * tokens + plan.head_macs * rows,
        sum(attention_macs(plan, first, count) for first, count in spans),
    )


def weight_bytes(plan: Plan) -> int:
    """Bytes of weights that a step of one token reads; the embedding's single row does not count."""
    tables = {kernel.symbol for kernel in plan.kernels if kernel.family == "embedding"}
    return _weights_of(plan, [call for phase in plan.phases for call in phase if call.kernel not in tables])


def _head_bytes(plan: Plan) -> int:
    """Bytes of the weights that only rows of logits need."""
    calls = [call for phase in plan.phases for call in phase]
    return _weights_of(plan, [call for call in calls if any(o.name == "logits" for o in call.operands)])


def _weights_of(plan: Plan, calls: Sequence[Call]) -> int:
    sizes = {weight.name: weight.bytes for weight in plan.weights}
    return sum(sizes[operand.name] for call in calls for operand in call.operands if operand.space == "weights")


def kv_bytes(kv: KVSpec, first: int, count: int = 1) -> float:
    """Bytes of keys and values that ``count`` tokens from a position on see together, their own included."""
    last = first + count
    visible = sum(min(last, window + count - 1) if window else last for window in kv.windows)
    return visible * kv.page_bytes / (kv.page_tokens * kv.layers)


def attention_macs(plan: Plan, first: int, count: int = 1) -> int:
    """Multiply-accumulates of attention over all layers for ``count`` tokens from a position on."""
    heads = next(k.parameters["heads"] for k in plan.kernels if "heads" in k.parameters)
    assert isinstance(heads, int)
    pairs = 0
    for window, layers in Counter(plan.kv.windows).items():
        full = max(0, min(count, window - first)) if window else count  # tokens that see all before them
        pairs += layers * (full * first + full * (full + 1) // 2 + (count - full) * window)
    return pairs * 2 * heads * plan.kv.head_dim


def bytes_per_token(plan: Plan, workload: Workload) -> float:
    """Mean bytes that a token of a workload has to read: its share of the weights, once a step, and the cache."""
    return _work(plan, workload).bytes / workload.tokens


def macs_per_token(plan: Plan, workload: Workload) -> float:
    """Mean multiply-accumulates of the linear layers for a token of a workload; a prompt has one row of logits."""
    return _work(plan, workload).linear_macs / workload.tokens


def _work(plan: Plan, workload: Workload) -> Work:
    end, size = workload.depth + workload.tokens, plan.max_tokens if workload.kind == "pp" else 1
    total = Work(0, 0, 0)
    for first in range(workload.depth, end, size):
        count = min(size, end - first)
        wanted = 1 if workload.kind == "tg" or first + count == end else 0
        total += step_work(plan, [(first, count)], wanted)
    return total
