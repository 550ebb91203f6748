"""ryzc itself, at the level of its step, and the rooflines that it measures."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import ryzc
from ryzc.bundle import Bundle
from ryzc.bundle.plan import Plan
from ryzc.runtime import bench
from ryzc.runtime.kv import PagePool
from ryzc.runtime.prompts import first_token
from ryzc.runtime.step import CompiledModel
from ryzc.runtime.tokenizer import SETTINGS_FILE, TOKENIZER_FILE, Tokenizer

SAMPLE = 512
"""Tokens that an imitated context repeats."""


class Ryzc:
    """One bundle. Its times include everything that a step costs in Python.

    Args:
        model: a bundle.
        threads: of the pool.
        context, sequences, each: see :class:`benchmarks.peers.Loader`.
    """

    def __init__(self, model: Path, *, threads: int, context: int, sequences: int = 1, each: int = 0) -> None:
        page_tokens = Bundle.open(model).plan.kv.page_tokens
        pages = max(-(-context // page_tokens), sequences * -(-each // page_tokens))
        self._model = CompiledModel(
            model, context=max(context, each), sequences=sequences, threads=threads, pages=pages
        )
        self._pool = PagePool(pages, page_tokens, self._model.page_table)
        self._held: list[list[int]] = [[] for _ in range(sequences)]

    def prefill(self, tokens: Sequence[int]) -> float:
        self._forget()
        return self._prompt(0, tokens)

    def fill(self, tokens: Sequence[int], sequences: int, imitate: bool) -> None:
        if sequences == 1 and self._held[0][: len(tokens)] == list(tokens):
            del self._held[0][len(tokens) :]
            for other in range(1, len(self._held)):
                self._pool.resize(other, 0)
                self._held[other] = []
            return
        self._forget()
        if imitate:
            self._imitate(tokens)
            return
        for sequence in range(sequences):
            self._prompt(sequence, tokens)

    def _imitate(self, tokens: Sequence[int]) -> None:
        """Let the pages of the first tokens stand for all others."""
        self._prompt(0, tokens[:SAMPLE])
        whole = SAMPLE // self._model.page_tokens
        self._pool.resize(0, len(tokens))
        pages = self._model._kv[: self._pool.pages * self._model.plan.kv.page_bytes].reshape(self._pool.pages, -1)
        table = self._model.page_table[0, : self._pool.held(0)]
        for i in range(whole, len(table)):
            pages[table[i]] = pages[table[i % whole]]
        self._held[0] = list(tokens)

    def decode(self, tokens: Sequence[int], sequences: int, at_once: int) -> float:
        first = len(self._held[0])
        for sequence in range(sequences):
            self._pool.resize(sequence, first + len(tokens))
            self._held[sequence] += tokens
        rows = range(at_once * sequences)
        ids = [i for i in range(sequences) for _ in range(at_once)]
        start = time.perf_counter()
        for i in range(0, len(tokens), at_once):
            positions = range(first + i, first + i + at_once)
            self._model.step(list(tokens[i : i + at_once]) * sequences, list(positions) * sequences, ids, rows)
        return time.perf_counter() - start

    def _forget(self) -> None:
        for sequence in range(len(self._held)):
            self._pool.resize(sequence, 0)
            self._held[sequence] = []

    def _prompt(self, sequence: int, tokens: Sequence[int]) -> float:
        """Take in the prompt of an empty sequence; logits of its last token."""
        self._pool.resize(sequence, len(tokens))
        self._held[sequence] = list(tokens)
        start, end, most = time.perf_counter(), len(tokens), self._model.max_tokens
        for first in range(0, end, most):
            part = tokens[first : first + most]
            rows = [len(part) - 1] if first + len(part) == end else []
            self._model.step(part, range(first, first + len(part)), [sequence] * len(part), rows)
        return time.perf_counter() - start

    def windows(self, text: str, context: int, count: int) -> list[list[int]]:
        """The first ``count`` windows of a text in tokens, each with the model's first token where it has one."""
        bundle = self._model.bundle
        tokenizer = Tokenizer(bundle.text(TOKENIZER_FILE), json.loads(bundle.text(SETTINGS_FILE)))
        ids, bos = tokenizer.encode(text, parse_special=False), first_token(tokenizer)
        cut = [ids[i : i + context] for i in range(0, min(len(ids) // context, count) * context, context)]
        return [[window[0] if bos is None else bos, *window[1:]] for window in cut]

    def nll(self, windows: Sequence[Sequence[int]]) -> float:
        costs: list[float] = []
        for window in windows:
            self._forget()
            self._pool.resize(0, len(window))
            scored, most = len(window) // 2, min(self._model.max_tokens, self._model.max_rows)
            for first in range(0, len(window) - 1, most):
                part = window[first : min(first + most, len(window) - 1)]
                rows = [i for i in range(len(part)) if first + i >= scored]
                result = self._model.step(part, range(first, first + len(part)), [0] * len(part), rows)
                for row, i in enumerate(rows):
                    logit = float(result.full(row)[window[first + i + 1]])
                    costs.append(math.log(float(result.row_sum[row])) + float(result.row_max[row]) - logit)
        return statistics.fmean(costs)

    def bandwidth(self, threads: int, size: int) -> float:
        """Bytes a second that ``threads`` threads read of ``size`` bytes that were just written."""
        return size / self._model.probe_read(size, threads)

    def int8_peak(self, threads: int, *, blocks: bool = False) -> float:
        """int8 multiply-accumulates a second that ``threads`` threads make at most; ``blocks``: scaled by blocks."""
        seconds, macs = self._model.probe_int8(threads=threads, blocks=blocks)
        return macs / seconds

    def work(self, spans: Sequence[Sequence[Sequence[int]]], rows: Sequence[int]) -> dict[str, float]:
        """What steps need at least, see :func:`ryzc.runtime.bench.step_work`: one entry of both lists a step."""
        each = [bench.step_work(self._model.plan, step, count) for step, count in zip(spans, rows, strict=True)]
        return asdict(sum(each, bench.Work(0, 0, 0)))

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
            "context_length": plan.context_length,
            "max_tokens": self._model.max_tokens,
            "windowed": any(plan.kv.windows),
        }

    def close(self) -> None:
        self._model.close()


def _formats(plan: Plan) -> str:
    sizes: Counter[str] = Counter()
    for weight in plan.weights:
        sizes[weight.format] += weight.bytes
    return ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.most_common())


load = Ryzc
