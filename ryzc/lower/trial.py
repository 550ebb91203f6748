"""A kernel of a plan compiled in several methods and run on this machine: do they agree, and how long do they take.

A kernel is called as a step calls it, but on one thread. Its weights lie in memory again and again until they fill
a region of the size that the caller gives, and calls go through the copies in turn: where that is the size of the
model, weights are found in caches exactly as far as a step finds them there.
"""

from __future__ import annotations

import _ctypes
import ctypes
import mmap
import os
import statistics
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc.bundle import abi
from ryzc.bundle.plan import Call, KernelSpec, Operand, PackedWeight, Plan
from ryzc.codegen import isa as instruction_sets
from ryzc.errors import InternalError
from ryzc.lower.module import trial_object
from ryzc.targets import Target
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels import from_spec, probes
from ryzc.templates.kernels import token_activations as token_act

Bytes: TypeAlias = npt.NDArray[np.uint8]

SAMPLE_NS = 1_000_000
"""A sample is as many calls as take about this long: the clock and Python then count for nothing."""
TOGETHER_NS = 32 * SAMPLE_NS
"""A sample of several threads: a new one may begin on the core of another, and moves within some milliseconds."""
LARGEST_CALL = 1 << 29
"""Multiply-accumulates of a call; of a larger kernel, a call does the share of one thread among several."""
ROUNDS = 7
PATIENCE = 1.3
"""After two rounds, methods this many times slower than the best are out."""
CHECKED_TOKENS = 37
"""On which methods must agree: whole register tiles, and a rest."""
_PROBE_BYTES = 1 << 24
_PROBE_ITERATIONS = 100_000
_PAGE = 4096
_HUGE = 1 << 21


@dataclass(frozen=True)
class Subject:
    """A kernel to try.

    Attributes:
        plan: the model.
        spec: the kernel.
        call: one of its calls in the plan.
        weight, packed: what that call reads.
        methods: names, see :meth:`ryzc.templates.kernels.Kernel.methods`.
    """

    plan: Plan
    spec: KernelSpec
    call: Call
    weight: PackedWeight
    packed: Bytes
    methods: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for a token."""
        return self.weight.rows * self.weight.columns


@dataclass(frozen=True)
class Times:
    """Medians at one batch size, nanoseconds a call; the last two as in :class:`ryzc.bundle.tuning.Choice`."""

    by_method: dict[str, int]
    read_ns: int
    int8_ns: int


class Trial:
    """A subject, compiled and with its memory; a context manager.

    Args:
        subject: what to try.
        target: what to compile it for; this CPU must run it.
        cold_bytes: size of the region of weights; a weight that is larger lies there once.
    """

    def __init__(self, subject: Subject, target: Target, cold_bytes: int) -> None:
        self._subject = subject
        self._macs_per_probe = _PROBE_ITERATIONS * probes.macs_per_iteration(instruction_sets.BY_NAME[target.isa])
        stride = -(-subject.weight.bytes // _PAGE) * _PAGE
        self._copies = max(1, cold_bytes // stride)
        self._weights = _memory(self._copies * stride)
        self._weights.reshape(self._copies, stride)[:, : subject.weight.bytes] = subject.packed
        self._arena = _memory(subject.plan.arena_bytes)
        self._out = _fill(self._arena, subject)
        self._table = np.array([self._row(copy * stride) for copy in range(self._copies)], np.uint64)
        self._context, self._sink = _memory(_PAGE), _memory(_PAGE)
        self._at = self._probe_at = 0
        variants = tuple(_variant(subject.spec, i, method) for i, method in enumerate(subject.methods))
        self._code = _Code(trial_object(variants, target, len(subject.call.operands)))
        self._entries = {m: self._code.address(v.symbol) for m, v in zip(subject.methods, variants, strict=True)}

    @property
    def methods(self) -> tuple[str, ...]:
        """What is tried."""
        return self._subject.methods

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._code.close()

    def check(self, most: int) -> None:
        """See that all methods give the same bits.

        Args:
            most: tokens that the kernel's output has room for; fewer are computed.

        Raises:
            InternalError: where they do not.
        """
        batch = min(CHECKED_TOKENS, most)
        out = self._out[: len(self._out) // most * batch]
        before, expected = out.copy(), None
        for method in self.methods:
            out[:], self._at = before, 0
            self._call(method, batch, 1, self._shares(batch))
            expected = out.copy() if expected is None else expected
            if not np.array_equal(out, expected):
                first = self.methods[0]
                raise InternalError(f"{self._subject.spec.symbol}: {method} gives other bits than {first}")
        out[:] = before

    def times(self, batch: int, keep: str) -> Times:
        """Time the methods in turn, several rounds; ``keep`` stays in however slow it is."""
        shares = self._shares(batch)
        for method in self.methods:
            self._call(method, batch, 1, shares)  # code and activations into the caches
        once = min(self._call(keep, batch, 1, shares) for _ in range(3))  # the scheduler may have taken one away
        calls = max(1, SAMPLE_NS // max(1, once))
        samples: dict[str, list[float]] = {method: [] for method in self.methods}
        reads, peaks = [], []
        left = list(samples)
        for round_ in range(ROUNDS):
            reads.append(self._read_probe())
            peaks.append(self._int8_probe())
            if round_ == 2:
                best = min(min(times) for times in samples.values())
                left = [m for m in left if m == keep or min(samples[m]) <= PATIENCE * best]
            turn = round_ % len(left)
            for method in left[turn:] + left[:turn]:
                samples[method].append(self._call(method, batch, calls, shares) * shares / calls)
        return Times(
            {method: max(1, round(statistics.median(times))) for method, times in samples.items()},
            round(self._subject.weight.bytes * statistics.median(reads)),
            round(self._subject.macs * batch * statistics.median(peaks)),
        )

    def together(self, method: str, threads: int) -> float:
        """Nanoseconds of a call at one token whose work so many threads share, all of them at it at once."""
        pieces = self._copies * threads
        entry = self._entries[method]
        self._call(method, 1, 1, 1)  # which also says that there is one token
        calls = max(1, TOGETHER_NS // max(1, self._call(method, 1, 1, threads)))
        start_at, self._at = self._at, self._at + calls  # go on where the last call ended, in memory not just read
        meet, ended = threading.Barrier(threads), [0] * threads

        def work(number: int) -> None:
            first = (start_at + pieces * number // threads) % pieces
            meet.wait()
            start = time.perf_counter_ns()
            self._code.repeat(entry, self._context.ctypes.data, calls, first, pieces, threads, self._table.ctypes.data)
            ended[number] = time.perf_counter_ns() - start

        workers = [threading.Thread(target=work, args=(number,)) for number in range(1, threads)]
        for worker in workers:
            worker.start()
        work(0)
        for worker in workers:
            worker.join()
        return max(ended) / calls

    def _shares(self, batch: int) -> int:
        return max(1, min(self._subject.macs * batch // LARGEST_CALL, self._subject.weight.rows // 64))

    def _call(self, method: str, batch: int, calls: int, shares: int) -> int:
        """Nanoseconds of so many calls, each of a share of the kernel."""
        for name in ("token_count", "row_count"):
            self._context[abi.BY_NAME[name].offset :][:8].view(np.int64)[0] = batch
        pieces = self._copies * shares
        first, self._at = self._at % pieces, (self._at + calls) % pieces
        start = time.perf_counter_ns()
        self._code.repeat(
            self._entries[method], self._context.ctypes.data, calls, first, pieces, shares, self._table.ctypes.data
        )
        return time.perf_counter_ns() - start

    def _read_probe(self) -> float:
        """Nanoseconds to read a byte of the region in the better way, further on at each call."""
        size = min(_PROBE_BYTES, self._weights.nbytes) // probes.READ_CHUNK * probes.READ_CHUNK
        found = []
        for read in (self._code.probe_read, self._code.probe_read_ahead):
            self._probe_at = self._probe_at + size if self._probe_at + 2 * size <= self._weights.nbytes else 0
            start = time.perf_counter_ns()
            read(self._weights.ctypes.data + self._probe_at, size, self._sink.ctypes.data)
            found.append((time.perf_counter_ns() - start) / size)
        return min(found)

    def _int8_probe(self) -> float:
        """Nanoseconds for a multiply-accumulate at the machine's peak."""
        start = time.perf_counter_ns()
        self._code.probe_int8(_PROBE_ITERATIONS, self._sink.ctypes.data)
        return (time.perf_counter_ns() - start) / self._macs_per_probe

    def _row(self, copy: int) -> list[int]:
        """Addresses of the operands with the weights at ``copy``."""

        def address(operand: Operand) -> int:
            if operand.space == "weights":
                return int(self._weights.ctypes.data) + copy + operand.offset - self._subject.weight.offset
            return int(self._arena.ctypes.data) + operand.offset

        return [address(operand) for operand in self._subject.call.operands]


def _variant(spec: KernelSpec, number: int, method: str) -> KernelSpec:
    """The kernel with one method for batches of any size."""
    return replace(spec, symbol=f"method{number}", parameters={**spec.parameters, "schedule": (f"1:{method}",)})


def _fill(arena: Bytes, subject: Subject) -> Bytes:
    """Put plausible values into the buffers of a call: ``codes`` with their ``records``, floats into all others.

    Returns:
        The buffer of the operand ``out``.
    """
    rng = np.random.default_rng(0)
    names = from_spec(subject.spec).operands
    buffers = {buffer.name: buffer for buffer in subject.plan.buffers}
    found: dict[str, Bytes] = {}
    for name, operand in zip(names, subject.call.operands, strict=True):
        if operand.space == "arena":
            buffer = buffers[operand.name]
            found[name] = arena[buffer.offset : buffer.offset + buffer.bytes]
    for region in found.values():
        region.view(np.float32)[:] = rng.standard_normal(region.nbytes // 4, np.float32)
    if "codes" in found:
        columns, per_token = subject.weight.columns, subject.spec.family == "bit_linear"
        tokens = len(found["codes"]) // (columns if per_token else act.code_bytes(columns))
        codes = rng.integers(-127, 128, (tokens, columns)).astype(np.int8)
        scales = rng.uniform(0.001, 0.01, (tokens, 1 if per_token else columns // act.BLOCK)).astype(np.float32)
        if per_token:
            rows = codes.view(np.uint8), token_act.records(codes, scales)
        else:
            rows = act.rows(codes), act.rows(act.records(codes, scales))
        for name, values in zip(("codes", "records"), rows, strict=True):
            found[name][: values.size] = values.reshape(-1)
    return found["out"]


class _Code:
    """A shared object out of memory, loaded into this process."""

    def __init__(self, code: bytes) -> None:
        self._descriptor = os.memfd_create("ryzc-trial", os.MFD_CLOEXEC)
        os.write(self._descriptor, code)
        self._library = ctypes.CDLL(f"/proc/self/fd/{self._descriptor}")
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        self.repeat = self._entry("repeat", pointer, pointer, number, number, number, number, pointer)
        self.probe_read, self.probe_read_ahead = (
            self._entry(name, pointer, number, pointer) for name in ("probe_read", "probe_read_ahead")
        )
        self.probe_int8 = self._entry("probe_int8", number, pointer)

    def address(self, symbol: str) -> int:
        """Where a function lies."""
        return int(ctypes.cast(self._library[symbol], ctypes.c_void_p).value or 0)

    def close(self) -> None:
        """Unload; nothing of it may be called any more."""
        _ctypes.dlclose(self._library._handle)
        os.close(self._descriptor)

    def _entry(self, name: str, *arguments: type) -> Any:
        function = self._library[name]
        function.argtypes, function.restype = list(arguments), None
        return function


def _memory(nbytes: int) -> Bytes:
    """Zeroed memory, aligned to huge pages and in them where the system gives them, as weights are at run time."""
    region = mmap.mmap(-1, nbytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(region, np.uint8)
    start = -raw.ctypes.data % _HUGE
    return raw[start : start + nbytes]
