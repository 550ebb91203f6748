"""ryzc itself, at the level of its step, and the rooflines that it measures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ryzc
from ryzc.bundle.plan import Plan
from ryzc.runtime import bench
from ryzc.runtime.step import CompiledModel


class Ryzc:
    """One bundle and one sequence. Its times include everything that a step costs in Python."""

    def __init__(self, model: Path, *, threads: int, context: int) -> None:
        self._model = CompiledModel(model, context=context, threads=threads)
        self._model.page_table[0] = np.arange(self._model.page_table.shape[1])
        self._length = 0

    def prefill(self, tokens: Sequence[int]) -> float:
        self._length = 0
        start = time.perf_counter()
        for first in range(0, len(tokens), self._model.max_tokens):
            part = tokens[first : first + self._model.max_tokens]
            self._append(part, last=first + len(part) == len(tokens))
        return time.perf_counter() - start

    def decode(self, tokens: Sequence[int]) -> float:
        start = time.perf_counter()
        for token in tokens:
            self._append([token], last=True)
        return time.perf_counter() - start

    def _append(self, tokens: Sequence[int], *, last: bool) -> None:
        count = len(tokens)
        positions = range(self._length, self._length + count)
        self._model.step(tokens, positions, [0] * count, [count - 1] if last else [])
        self._length += count

    def bandwidth(self, threads: int) -> float:
        """Bytes a second that ``threads`` threads read from memory."""
        size = 1 << 29
        return size / self._model.probe_read(size, threads)

    def int8_peak(self, threads: int) -> float:
        """int8 multiply-accumulates a second that ``threads`` threads make at most."""
        seconds, macs = self._model.probe_int8(threads=threads)
        return macs / seconds

    def work(self, prompt: int, generate: int, depth: int) -> float:
        """What a test needs at least: multiply-accumulates of a prompt, or bytes read by tokens generated singly."""
        plan, tokens = self._model.plan, prompt or generate
        workload = bench.Workload("pp" if prompt else "tg", tokens, depth, self._model.threads)
        return tokens * (bench.macs_per_token(plan, workload) if prompt else bench.bytes_per_token(plan, workload))

    def about(self) -> dict[str, str | int | float]:
        plan = self._model.plan
        return {
            "engine": "ryzc",
            "version": ryzc.__version__,
            "threads": self._model.threads,
            "target": self._model.target.name,
            "kv": plan.kv.dtype,
            "activations": plan.activations,
            "formats": _formats(plan),
            "vocab_size": plan.vocab_size,
        }

    def close(self) -> None:
        self._model.close()


def _formats(plan: Plan) -> str:
    sizes: Counter[str] = Counter()
    for weight in plan.weights:
        sizes[weight.format] += weight.bytes
    return ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.most_common())


load = Ryzc
