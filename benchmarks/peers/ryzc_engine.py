"""ryzc's engine: what many callers get together, scheduler, sampler and detokenizer included."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from ryzc.runtime.engine import Engine
from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.stream import Stream

GREEDY = SamplingParams(temperature=0)


class RyzcEngine:
    """An engine without speculation, so that a token is a token of a step.

    Args:
        model: a bundle.
        threads: of the pool.
        context, sequences, each: see :class:`benchmarks.peers.Loader`.
    """

    def __init__(self, model: Path, *, threads: int, context: int, sequences: int = 1, each: int = 0) -> None:
        self._engine = Engine(
            model, context=max(context, each), sequences=sequences, threads=threads, background=False, speculate="off"
        )
        # As in an engine that has run for a while: a page's first use is the time of the system that hands out memory.
        self._engine.compiled.kv.fill(0)
        self._random = np.random.default_rng(0)

    def _ids(self, count: int) -> list[int]:
        return [int(id_) for id_ in self._random.integers(0, self._engine.compiled.vocab_size, count)]

    def together(self, requests: int, depth: int, tokens: int) -> dict[str, float]:
        """Greedy answers of ``tokens`` tokens to ``requests`` prompts of ``depth`` tokens, at once.

        Returns:
            ``seconds`` from when all have their first token to the last one, ``tokens`` made meanwhile, and how much of
            the time was spent in ``native`` code and outside of it (``schedule``).
        """
        engine, metrics = self._engine, self._engine.metrics
        streams = [
            engine.submit(self._ids(depth), sampling=GREEDY, max_tokens=tokens, ignore_eos=True)
            for _ in range(requests)
        ]
        while not all(_begun(stream) for stream in streams):
            engine.step()
        before = (metrics.generation_tokens, metrics.step_seconds.total, metrics.schedule_seconds.total)
        while engine.step():
            pass
        after = (metrics.generation_tokens, metrics.step_seconds.total, metrics.schedule_seconds.total)
        made, native, schedule = (b - a for a, b in zip(before, after, strict=True))
        for stream in streams:
            stream.collect()
        return {"seconds": native + schedule, "tokens": made, "native": native, "schedule": schedule}

    def first_tokens(self, requests: int, shared: int, own: int) -> dict[str, float]:
        """Seconds to the first token of prompts with a common beginning.

        Returns:
            That of the ``first``; the median of the ``later`` ones, one after the other; the median of as many more,
            ``beside`` all of those before that still answer; and the ``pages`` of the pool that these hold together.
        """
        beginning = self._ids(shared)
        waits: list[float] = []
        streams = []
        for tokens in [2] * requests + [128] * requests:
            start = time.perf_counter()
            prompt = beginning + self._ids(own)
            stream = self._engine.submit(prompt, sampling=GREEDY, max_tokens=tokens, ignore_eos=True)
            while not _begun(stream):
                self._engine.step()
            waits.append(time.perf_counter() - start)
            if tokens == 2:
                stream.collect()
            streams.append(stream)
        pages = self._engine.pool.used
        for stream in streams[requests:]:
            stream.collect()
        later, beside = statistics.median(waits[1:requests]), statistics.median(waits[requests:])
        return {"first": waits[0], "later": later, "beside": beside, "pages": pages}

    def about(self) -> dict[str, str | int | float]:
        """What a reader has to know."""
        return {"engine": "ryzc engine", "threads": self._engine.compiled.threads}

    def close(self) -> None:
        """Free the model."""
        self._engine.close()


def _begun(stream: Stream) -> bool:
    return bool(stream.request.sequences) and all(s.new_tokens > 0 for s in stream.request.sequences)


load = RyzcEngine
