"""A bundle loaded and ready to step: the native code, its memory and its threads.

This is the only module that talks to native code. Everything that it hands over is checked here
first, so that no input can make the code read or write outside its buffers.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import threading
import time
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc import targets
from ryzc.bundle import Bundle, abi
from ryzc.bundle.plan import Plan
from ryzc.errors import BundleError, ContextError, UsageError
from ryzc.runtime import memory
from ryzc.runtime.neighbours import Neighbours
from ryzc.runtime.sampling.rows import RowParameters

I32: TypeAlias = npt.NDArray[np.int32]
F32: TypeAlias = npt.NDArray[np.float32]
Native: TypeAlias = Callable[..., None]
SPIN_PAUSES = 20_000
"""Pauses an idle worker makes before it sleeps: a few times what the caller needs between steps."""


def _word(name: str) -> int:
    """Which 64-bit word of the context a member is."""
    return abi.BY_NAME[name].offset >> 3


_TOKEN_COUNT, _ROW_COUNT, _CANDIDATE_COUNT, _THREADS = map(
    _word, ("token_count", "row_count", "candidate_count", "threads")
)


class StepResult(NamedTuple):
    """What a step says about the rows that were asked for; valid until the next step.

    Attributes:
        ids: ``int32 [R, C]``, the C best token ids of each row, best first.
        logits: ``float32 [R, C]``, their logits.
        row_max: ``float32 [R]``, the largest logit.
        row_sum: ``float32 [R]``, sum of ``exp(logit - row_max)`` over the vocabulary.
        all_logits: ``float32 [R, V]``, a view. Where a row's parameters adjust or mask logits, these and all
            of the above are the adjusted ones.
        drawn: ``int32 [R]``, the token drawn from each row; -1 where its largest logit is not finite.
        seconds: of the native call.
    """

    ids: I32
    logits: F32
    row_max: F32
    row_sum: F32
    all_logits: F32
    drawn: I32
    seconds: float = 0.0

    def full(self, row: int) -> F32:
        """The logits of a row over the whole vocabulary, ``float32 [V]``, a view."""
        view: F32 = self.all_logits[row]
        return view


class CompiledModel:
    """A bundle's step, callable.

    Args:
        bundle: an opened bundle or its path.
        context: tokens that a sequence may hold.
        sequences: sequences that may be in flight.
        threads: worker threads, the caller included; by default the usable physical cores.
        pages: pages of the KV pool; by default enough for all sequences at full context.
        weights: ``map`` reads the file in place, ``copy`` copies it into huge pages, ``auto`` copies
            where there is memory enough.

    Attributes:
        threads: as asked for; steps take fewer while other processes use the CPUs.
        weights: how they are held, ``map`` or ``copy``.
        row_parameters: how the rows of the next step are drawn from; a step uses them up.

    Raises:
        BundleError, TargetError, UsageError.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        context: int,
        sequences: int = 1,
        threads: int | None = None,
        pages: int | None = None,
        weights: str = "auto",
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
        self.plan: Plan = self.bundle.plan
        plan = self.plan
        if context < 1 or sequences < 1:
            raise UsageError(f"a context of {context} tokens for {sequences} sequences makes no sense")
        cpu = targets.detect()
        self.target = self.bundle.choose(cpu)
        self.threads = cpu.threads if threads is None else threads
        if not 1 <= self.threads <= 1024:
            raise UsageError(
                f"{self.threads} threads are not possible", hint="choose 1 to 1024 (-t); more than the cores slow down"
            )
        self.weights = memory.choose(weights, sum(weight.bytes for weight in plan.weights))
        self.vocab_size = plan.vocab_size
        self.max_tokens, self.max_rows, self.max_candidates = plan.max_tokens, plan.max_rows, plan.max_candidates
        self.page_tokens = plan.kv.page_tokens
        per_sequence = -(-context // self.page_tokens)
        self.context = context
        self.pages = per_sequence * sequences if pages is None else pages
        self.page_table: I32 = np.zeros((sequences, per_sequence), np.int32)
        self._library = _Library(self.bundle.kernel_path(self.target.name))
        self._weights = memory.read_weights(self.bundle, self.weights, self.threads)
        self._arena = memory.anonymous(plan.arena_bytes)
        self._kv = memory.anonymous(self.pages * plan.kv.page_bytes)
        batch = [np.zeros(size, np.int32) for size in (*[plan.max_tokens] * 3, plan.max_rows)]
        self._inputs = [values.data for values in batch]
        """Tokens, positions, sequences and rows of a step."""
        self._ids = np.zeros((plan.max_rows, plan.max_candidates), np.int32)
        self._best = np.zeros((plan.max_rows, plan.max_candidates), np.float32)
        self._row_max, self._row_sum = (np.zeros(plan.max_rows, np.float32) for _ in range(2))
        self._drawn = np.zeros(plan.max_rows, np.int32)
        self._views: dict[tuple[int, int], tuple[I32, F32, F32, F32, F32, I32]] = {}
        self._logits = self._find_logits()
        self.row_parameters = RowParameters(plan.max_rows, plan.logits_stride)
        self._context = memory.anonymous(abi.SIZE)
        self._words = self._context.data.cast("q")
        pointers = self._set_up_context(batch)
        self._neighbours = Neighbours(self.threads, cpu.topology.usable)
        seats = cpu.topology.seats(self.threads)
        crowd = max(Counter(seats).values())
        self._set("group", max(crowd, -(-self.threads // abi.MAX_GROUPS)))
        self._step = self._library.entry("step", ctypes.c_void_p)
        self._address = self._context.ctypes.data
        work = self._library.entry("worker", ctypes.c_void_p, ctypes.c_int64)
        self._workers = [
            threading.Thread(
                target=_worker, args=(work, self._address, i, seats[i]), name=f"ryzc-worker-{i}", daemon=True
            )
            for i in range(1, self.threads)
        ]
        self._lock = threading.Lock()
        for worker in self._workers:
            worker.start()
        # Also runs where nobody called close(): native threads must never outlive the memory they poll.
        held = (*pointers, self._context)
        self._finalizer = weakref.finalize(self, _shut_down, self._library, self._address, self._workers, held)

    def _find_logits(self) -> F32:
        buffer = next(b for b in self.plan.buffers if b.name == "logits")
        region = self._arena[buffer.offset : buffer.offset + 4 * self.plan.max_rows * self.plan.logits_stride]
        logits: F32 = region.view(np.float32).reshape(self.plan.max_rows, self.plan.logits_stride)
        logits[:, self.vocab_size :] = -np.inf  # kernels never write the tail, and must never choose it
        return logits

    def _set(self, name: str, value: int) -> None:
        self._words[_word(name)] = value

    def _set_up_context(self, batch: Sequence[I32]) -> list[npt.NDArray[Any]]:
        """Fill in all that stays the same from step to step; returns the memory that the context points to."""
        pointers: dict[str, npt.NDArray[Any]] = {
            "weights": self._weights,
            "arena": self._arena,
            "kv": self._kv,
            "page_table": self.page_table,
            **dict(zip(("tokens", "positions", "sequences", "rows"), batch, strict=True)),
            "logits": self._logits,
            "candidate_ids": self._ids,
            "candidate_logits": self._best,
            "row_max": self._row_max,
            "row_sum": self._row_sum,
            "row_parameters": self.row_parameters.records,
            "token_masks": self.row_parameters.masks,
            "drawn": self._drawn,
        }
        for name, region in pointers.items():
            self._set(name, region.ctypes.data)
        # Read as unsigned, what is below 0 is above every page: one look at a table finds both.
        self._unsigned_table = self.page_table.view(np.uint32)
        self._set("spin", SPIN_PAUSES)
        self._set("page_table_stride", self.page_table.shape[1])
        self._bind_adjustments()
        return list(pointers.values())

    def _bind_adjustments(self) -> None:
        rows = self.row_parameters
        for name, region in (("ids", rows.ids), ("factors", rows.factors), ("offsets", rows.offsets)):
            self._set(f"adjustment_{name}", region.ctypes.data)
        self._set("adjustment_capacity", len(rows.ids))
        self._bound = rows.generation

    def step(
        self,
        tokens: Sequence[int] | I32,
        positions: Sequence[int] | I32,
        sequences: Sequence[int] | I32,
        rows: Sequence[int] | I32,
        candidates: int = 1,
    ) -> StepResult:
        """Run one batch.

        Args:
            tokens: ``T <= max_tokens`` ids.
            positions: the place of each token in its sequence.
            sequences: the row of ``page_table`` of each token.
            rows: indices into the batch of the ``R <= max_rows`` tokens whose logits are wanted.
            candidates: how many best tokens to find in each row.

        Returns:
            Views into buffers that the next step overwrites.

        Raises:
            ContextError: where a token does not fit into the context or its page is not in the pool.
            UsageError: where an argument is out of range.
        """
        try:
            return self._stepped(*self._checked(tokens, positions, sequences, rows, candidates), candidates)
        finally:
            self.row_parameters.clear()

    def _stepped(self, batch: tuple[array[int], ...], rows: array[int], candidates: int) -> StepResult:
        with self._lock:
            if not self._finalizer.alive:
                raise UsageError("the model is closed")
            count, r = len(batch[0]), len(rows)
            for target, values in zip(self._inputs, (*batch, rows), strict=True):
                target[: len(values)] = values
            words = self._words
            words[_TOKEN_COUNT], words[_ROW_COUNT], words[_CANDIDATE_COUNT] = count, r, candidates
            if self.row_parameters.generation != self._bound:
                self._bind_adjustments()
            words[_THREADS] = self._neighbours.threads()
            start = time.perf_counter()
            self._step(self._address)
            seconds = time.perf_counter() - start
            self._neighbours.stepped()
        views = self._views.get((r, candidates))
        if views is None:
            views = self._views[r, candidates] = (
                self._ids[:r, :candidates],
                self._best[:r, :candidates],
                self._row_max[:r],
                self._row_sum[:r],
                self._logits[:r, : self.vocab_size],
                self._drawn[:r],
            )
        return StepResult(*views, seconds)

    def _checked(
        self,
        tokens: Sequence[int] | I32,
        positions: Sequence[int] | I32,
        sequences: Sequence[int] | I32,
        rows: Sequence[int] | I32,
        candidates: int,
    ) -> tuple[tuple[array[int], ...], array[int]]:
        # Small batches come many times a second, when numpy's overhead would be most of the time between two steps.
        try:
            batch = tuple(_integers(values) for values in (tokens, positions, sequences))
            wanted = _integers(rows)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"a batch holds 32-bit integers in one dimension: {error}") from error
        ids, places, owners = batch
        count = len(ids)
        if not count == len(places) == len(owners):
            raise UsageError("a batch needs as many positions and sequences as tokens")
        if not 1 <= count <= self.max_tokens or len(wanted) > self.max_rows:
            raise UsageError(
                f"a batch of {count} tokens and {len(wanted)} rows: this bundle steps 1 to {self.max_tokens} tokens"
                f" and up to {self.max_rows} rows"
            )
        if not 1 <= candidates <= self.max_candidates:
            raise UsageError(f"{candidates} candidates: 1 to {self.max_candidates} are possible")
        needed = self.row_parameters.most_candidates(len(wanted))
        if candidates < needed <= self.max_candidates:
            raise UsageError(f"a row is drawn from its {needed} best tokens, but the step finds {candidates}")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise UsageError(f"token ids must be in 0 .. {self.vocab_size - 1}")
        if min(owners) < 0 or max(owners) >= len(self.page_table):
            raise UsageError(f"sequences must be in 0 .. {len(self.page_table) - 1}")
        high = max(places)
        if min(places) < 0 or high >= self.context:
            raise ContextError(
                f"position {high} lies outside the context of {self.context} tokens",
                hint="set a larger context (-c)",
            )
        if wanted and (min(wanted) < 0 or max(wanted) >= count):
            raise UsageError(f"rows must be in 0 .. {count - 1}")
        # Attention reads every page of a sequence up to its last position. One look at all of them usually shows that
        # there is nothing to see; what lies behind a shorter sequence's end may be anything.
        if self._unsigned_table[:, : high // self.page_tokens + 1].max() >= self.pages:
            self._check_pages(np.asarray(places), np.asarray(owners))
        return batch, wanted

    def _check_pages(self, positions: I32, sequences: I32) -> None:
        for sequence in np.unique(sequences):
            used = self.page_table[sequence, : int(positions[sequences == sequence].max()) // self.page_tokens + 1]
            if used.min() < 0 or used.max() >= self.pages:
                raise ContextError(f"sequence {sequence} names a page outside the pool of {self.pages}")

    @property
    def kv(self) -> npt.NDArray[np.uint8]:
        """The KV pool's bytes, page by page; to be read or written between steps only."""
        return self._kv

    def give_back(self, pages: Sequence[int]) -> None:
        """Return the memory of pages that hold nothing to the system."""
        with self._lock:
            memory.give_back(self._kv, pages, self.plan.kv.page_bytes)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page of keys and values over another one.

        Raises:
            UsageError: one of them is not in the pool.
        """
        if not (0 <= source < self.pages and 0 <= target < self.pages):
            raise UsageError(f"page {source} or {target} lies outside the pool of {self.pages}")
        pages = self._kv[: self.pages * self.plan.kv.page_bytes].reshape(self.pages, -1)
        with self._lock:
            pages[target] = pages[source]

    def probe_read(self, nbytes: int = 1 << 28, threads: int | None = None, *, plain: bool = False) -> float:
        """Seconds to read ``nbytes`` of memory (beyond every cache) on ``threads`` threads, once each part.

        The faster one of two loops: plain loads, and loads that ask for memory ahead; with ``plain`` the first.
        """
        count = threads or self.threads
        part = nbytes // count // 4096 * 4096
        region = memory.anonymous(part * count)
        region[::512] = 1  # touch every page: unwritten ones would all be the same page of zeros
        sinks = [memory.anonymous(4096) for _ in range(count)]
        base, found = region.ctypes.data, []
        for name in ("probe_read",) if plain else ("probe_read", "probe_read_ahead"):
            call = self._library.entry(name, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
            found.append(_parallel([(call, (base + i * part, part, sinks[i].ctypes.data)) for i in range(count)]))
        return min(found) * nbytes / (part * count)

    def probe_int8(
        self, iterations: int = 20_000_000, threads: int | None = None, *, blocks: bool = False
    ) -> tuple[float, int]:
        """Seconds and multiply-accumulates of the int8 dot product at full rate on ``threads`` threads.

        By default for long enough to see what work of seconds sees of a clock that is not steady, or shared.
        With ``blocks`` every 32 products are scaled and added as floats, as weights with block scales need.
        """
        count = threads or self.threads
        sinks = [memory.anonymous(4096) for _ in range(count)]
        call = self._library.entry("probe_blocks" if blocks else "probe_int8", ctypes.c_int64, ctypes.c_void_p)
        seconds = _parallel([(call, (iterations, sink.ctypes.data)) for sink in sinks])
        return seconds, count * iterations * PROBE_MACS[self.target.isa]

    def close(self) -> None:
        """Stop the workers; the model cannot step afterwards."""
        with self._lock:
            self._finalizer()

    def __enter__(self) -> CompiledModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _integers(values: Sequence[int] | I32) -> array[int]:
    return array("i", values.astype(np.int64).tolist() if isinstance(values, np.ndarray) else values)


def _worker(work: Native, context: int, number: int, cpus: frozenset[int]) -> None:
    """A worker thread, on the CPUs of its seat; the caller's own thread is left as it is."""
    if cpus != os.sched_getaffinity(0):
        with suppress(OSError):  # a CPU went offline, or a cgroup changed: then it runs anywhere
            os.sched_setaffinity(0, cpus)
    work(context, number)


def _shut_down(
    library: _Library, context: int, workers: list[threading.Thread], memory: Sequence[npt.NDArray[Any]]
) -> None:
    """Stop the workers and unload the code; ``memory`` is held until they are gone."""
    library.entry("stop", ctypes.c_void_p)(context)
    for worker in workers:
        worker.join()
    library.close()
    del memory


class _Library:
    """A shared object, loaded apart from any other of the same path.

    The system's loader knows libraries by their path and would give a bundle that was rebuilt in its
    place the code of the old one. So the file is loaded by its descriptor, which stays open as long.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._library = ctypes.CDLL(f"/proc/self/fd/{self._descriptor}")
        except OSError as error:
            os.close(self._descriptor)
            raise BundleError(f"{path}: cannot be loaded: {error}", hint="build the bundle again") from error

    def entry(self, name: str, *arguments: type) -> Native:
        """A function of the library that returns nothing."""
        function = self._library[name]
        function.argtypes, function.restype = list(arguments), None
        native: Native = function
        return native

    def close(self) -> None:
        """Unload; no function of it may be called any more."""
        _ctypes.dlclose(self._library._handle)
        os.close(self._descriptor)


PROBE_MACS = {"avx512_vnni": 16 * 16 * 4, "avx2": 6 * 8 * 4}
"""Multiply-accumulates of one iteration of ``probe_int8``, by instruction set."""


def _parallel(calls: list[tuple[Native, tuple[int, ...]]]) -> float:
    """Wall seconds of calls that start together, each on a thread."""
    barrier = threading.Barrier(len(calls))
    spans: list[tuple[float, float]] = [(0.0, 0.0)] * len(calls)

    def run(i: int) -> None:
        call, arguments = calls[i]
        barrier.wait()
        start = time.perf_counter()
        call(*arguments)
        spans[i] = (start, time.perf_counter())

    others = [threading.Thread(target=run, args=(i,)) for i in range(1, len(calls))]
    for thread in others:
        thread.start()
    run(0)
    for thread in others:
        thread.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)
