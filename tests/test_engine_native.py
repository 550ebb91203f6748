"""The engine over compiled models: what a request gets does not depend on its neighbours, bit by bit."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_chat

from ryzc.compiler import build
from ryzc.runtime.engine import Engine
from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.stream import Stream

GREEDY = SamplingParams(temperature=0)
SOAK_SECONDS = float(os.environ.get("RYZC_SOAK_SECONDS", "90"))
"""Of the soak test; 3600 for an hour."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.write(tmp_path_factory.mktemp("engine") / "tiny.ryzc", context=2048)


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(smollm2_path, tmp_path_factory.mktemp("engine") / "smollm2.ryzc")


def options(draw: random.Random, most: int) -> dict[str, Any]:
    """How to answer a request."""
    sampling = draw.choice(
        [
            GREEDY,
            SamplingParams(temperature=0.7, seed=draw.randrange(5)),
            SamplingParams(temperature=1.3, top_k=0, top_p=1.0, min_p=0.0, seed=draw.randrange(5)),
            SamplingParams(temperature=0.9, top_k=0, top_p=0.9, seed=1, repeat_penalty=1.2, frequency_penalty=0.3),
        ]
    )
    return {"sampling": sampling, "max_tokens": draw.randrange(1, most), "n": draw.choice([1, 1, 2])}


def prompts(draw: random.Random, vocab: int, count: int) -> list[list[int]]:
    """Prompts many of which begin alike."""
    beginnings = [[draw.randrange(vocab) for _ in range(150)] for _ in range(3)]
    return [
        draw.choice(beginnings)[: draw.randrange(1, 150)]
        + [draw.randrange(vocab) for _ in range(draw.randrange(1, 40))]
        for _ in range(count)
    ]


def answers(stream: Stream) -> list[tuple[tuple[int, ...], str, str]]:
    return [(choice.ids, choice.text, choice.finish_reason) for choice in stream.collect()]


@pytest.mark.parametrize("seed", range(8))
def test_a_storm_over_native_code(tiny: Path, seed: int) -> None:
    draw = random.Random(seed)
    with (
        Engine(tiny, context=512, sequences=1, threads=1, background=False, speculate="off") as alone,
        # Pages for two sequences and a bit: preemption is part of the storm.
        Engine(
            tiny,
            context=512,
            sequences=6,
            threads=2,
            kv_memory=36 * alone.compiled.plan.kv.page_bytes,
            background=False,
            eviction=draw.choice(["lru", "arc", "w_tinylfu"]),
            speculate=draw.choice(["auto", "lookup", "recycling"]),
        ) as engine,
    ):
        vocab = alone.compiled.vocab_size
        waiting = [(ids, options(draw, 120)) for ids in prompts(draw, vocab, 60)]
        running: list[tuple[list[int], dict[str, Any], Stream]] = []
        cancelled: set[int] = set()
        while waiting or engine.scheduler.busy:
            if waiting and draw.random() < 0.3:
                ids, wanted = waiting.pop()
                running.append((ids, wanted, engine.submit(ids, priority=draw.randrange(3), **wanted)))
            if running and draw.random() < 0.01:
                cancelled.add(victim := draw.randrange(len(running)))
                running[victim][2].cancel()
            engine.step()
            engine.pool.check_integrity()
        assert engine.pool.used == 0
        assert engine.metrics.preemptions > 0
        assert engine.metrics.cached_tokens > 0
        for i, (ids, wanted, stream) in enumerate(running):
            expected = answers(alone.submit(ids, **wanted))
            for found, right in zip(answers(stream), expected, strict=True):
                if i in cancelled and found[2] == "cancelled":
                    assert found[0] == right[0][: len(found[0])]
                else:
                    assert found == right


def test_a_prefix_on_disk_survives_its_engine(tiny: Path, tmp_path: Path) -> None:
    ids = [5 + i % 90 for i in range(200)]
    with Engine(tiny, context=512, sequences=2, threads=1, background=False) as engine:
        before = answers(engine.submit(ids, sampling=GREEDY, max_tokens=30))
        assert engine.save_prefix(tmp_path / "prefix", ids) == 192
    with Engine(tiny, context=512, sequences=2, threads=1, background=False) as engine:
        assert engine.restore_prefix(tmp_path / "prefix") == 192
        stream = engine.submit(ids, sampling=GREEDY, max_tokens=30)
        assert answers(stream) == before
        assert stream.usage.cached_tokens == 192


def test_speculation_never_changes_smollm2(smollm2: Path) -> None:
    """With and without, greedy and drawn: the same tokens."""
    asked = ["Count from one to thirty, one number a line.", "Repeat after me, five times: the cat sat on the mat."]
    chosen = [GREEDY, SamplingParams(temperature=0.8, seed=3)]
    found = {}
    for method in ("off", "lookup", "recycling", "auto"):
        with Engine(smollm2, context=512, sequences=4, background=False, speculate=method) as engine:
            streams = [engine.submit(text, sampling=s, max_tokens=60) for text in asked for s in chosen]
            found[method] = [answers(stream) for stream in streams]
            assert (engine.metrics.drafts_accepted > 0) == (method != "off")
    assert found["lookup"] == found["recycling"] == found["auto"] == found["off"]


def test_a_bundle_drafts_for_another(smollm2: Path) -> None:
    """Drafting for itself it is always right, drawn tokens included: both draw with the same noise."""
    for sampling in (GREEDY, SamplingParams(temperature=1.0, seed=3)):
        found = []
        for draft in (None, smollm2):
            with Engine(
                smollm2, context=512, sequences=1, threads=1, background=False, speculate="off", draft=draft
            ) as engine:
                if engine.speculator is not None:  # whatever it costs: this is about what is drawn
                    engine.speculator.cost.curve.measured(1, 1.0)
                    engine.speculator.cost.curve.measured(2, 1.0)
                found.append(answers(engine.submit("Tell me about the sea.", sampling=sampling, max_tokens=40)))
                if draft is not None and engine.metrics.drafts_proposed:
                    assert engine.metrics.drafts_accepted >= 0.9 * engine.metrics.drafts_proposed
        assert found[0] == found[1]


def memory() -> int:
    """Bytes of this process that lie in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lookup", "recycling", "auto"])
def test_a_hundred_thousand_tokens_with_and_without_speculation(tiny: Path, method: str) -> None:
    draw = random.Random(7)
    tokens = 0
    with (
        Engine(tiny, context=2048, sequences=16, threads=1, background=False, speculate="off") as plain,
        Engine(tiny, context=2048, sequences=16, threads=1, background=False, speculate=method) as guessing,
    ):
        while tokens < 100_000:
            asked = prompts(draw, plain.compiled.vocab_size, 16)
            wanted = {"max_tokens": 1600, "ignore_eos": True, "sampling": GREEDY}
            both = [[engine.submit(ids, **wanted) for ids in asked] for engine in (plain, guessing)]
            for one, other in zip(*both, strict=True):
                found = answers(one)
                assert found == answers(other)
                tokens += len(found[0][0])
        assert guessing.metrics.drafts_accepted > 1000


@pytest.mark.slow
def test_memory_does_not_grow(tiny: Path) -> None:
    draw = random.Random(1)
    with Engine(tiny, context=256, sequences=8, threads=1, background=False) as engine:
        streams: list[Stream] = []

        def steps(count: int) -> None:
            end = engine.metrics.steps + count
            while engine.metrics.steps < end:
                if engine.scheduler.waiting + len(engine.scheduler.running) < 8:
                    (ids,) = prompts(draw, engine.compiled.vocab_size, 1)
                    streams.append(engine.submit(ids[:100], sampling=GREEDY, max_tokens=draw.randrange(1, 100)))
                engine.step()
                if len(streams) > 64:
                    streams.pop(0).collect()

        steps(20_000)
        before = memory()
        steps(100_000)
        assert memory() - before < 16 << 20
        engine.pool.check_integrity()


@pytest.mark.slow
def test_soak(smollm2: Path) -> None:
    """Callers come and go, for as long as ``RYZC_SOAK_SECONDS`` says: no error, no stall, nothing lost."""
    draw = random.Random(3)
    end = time.monotonic() + SOAK_SECONDS
    with Engine(smollm2, context=1024, sequences=8, queue=64) as engine:
        vocab = engine.compiled.vocab_size
        live: list[tuple[Stream, Iterator[Any]]] = []
        done = 0
        while time.monotonic() < end or live:
            while time.monotonic() < end and len(live) < 16:
                (ids,) = prompts(draw, vocab, 1)
                wanted = options(draw, 40)
                stream = engine.submit(ids, timeout=60, priority=draw.randrange(3), **wanted)
                live.append((stream, iter(stream)))
            stream, deltas = live[draw.randrange(len(live))]
            if draw.random() < 0.02:
                stream.cancel()
            try:
                delta = next(deltas)
                assert delta.finish_reason in {None, "stop", "length", "cancelled"}
            except StopIteration:
                live.remove((stream, deltas))
                done += 1
        assert done > 10
        assert engine.metrics.requests_submitted == sum(engine.metrics.requests_finished.values()) == done
        time.sleep(0.1)
        assert engine.pool.used == 0
        engine.pool.check_integrity()
