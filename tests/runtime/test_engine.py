"""The engine around a toy step: storms of requests must leave every answer as it would be alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import EOS, FIRST_LETTER, VOCAB, ToyStep, greedy, toy_engine

from ryzc.errors import ContextError, InternalError, OverloadError, UsageError
from ryzc.runtime.engine import Engine
from ryzc.runtime.request import Delta
from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.scheduler import AGING, PATIENCE
from ryzc.runtime.stream import Stream

GREEDY = SamplingParams(temperature=0)
PREFIXES = [[FIRST_LETTER + (7 * i + j) % 20 for j in range(24)] for i in range(2)]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Ask:
    """A request of a storm."""

    prompt: list[int]
    options: dict[str, Any]
    deltas: list[Delta] = field(default_factory=list)
    cancelled: bool = False

    def ids(self, index: int) -> list[int]:
        return [id_ for delta in self.deltas if delta.index == index for id_ in delta.ids]

    def text(self, index: int) -> str:
        return "".join(delta.text for delta in self.deltas if delta.index == index)

    def reason(self, index: int) -> str | None:
        return next((d.finish_reason for d in self.deltas if d.index == index and d.finish_reason), None)


SAMPLING = st.one_of(
    st.just(GREEDY),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.5, 1.0, 3.0]),
        top_k=st.sampled_from([0, 3, 5]),
        seed=st.integers(0, 5),
        repeat_penalty=st.sampled_from([1.0, 1.3]),
    ),
)
ASKS = st.builds(
    Ask,
    prompt=st.builds(
        lambda prefix, count, tail: PREFIXES[prefix][:count] + tail,
        st.integers(0, 1),
        st.integers(1, 24),
        st.lists(st.integers(FIRST_LETTER, FIRST_LETTER + 5), max_size=6),
    ),
    options=st.fixed_dictionaries(
        {
            "sampling": SAMPLING,
            "max_tokens": st.integers(0, 14),
            "n": st.integers(1, 3),
            "priority": st.integers(-2, 2),
            "stop": st.sampled_from([(), ("a",), ("bc", "ef")]),
            "logprobs": st.sampled_from([None, None, 2]),
            "salt": st.sampled_from(["", "", "tenant"]),
        }
    ),
)
STEPS = st.tuples(st.just("step"), st.integers(1, 5))
CAPACITY = st.tuples(st.sampled_from(["shrink", "grow"]), st.integers(16, 40))
CANCELS = st.tuples(st.just("cancel"), st.integers(0, 20))
OPERATIONS = st.lists(st.one_of(ASKS, ASKS, STEPS, STEPS, CANCELS, CAPACITY), min_size=3, max_size=25)


def drain(engine: Engine, asks: list[tuple[Ask, Stream]]) -> None:
    """Run until all have ended, checking the pool after every step."""
    while engine.scheduler.busy or engine.step():
        engine.step()
        engine.pool.check_integrity()
    for ask, stream in asks:
        ask.deltas += list(stream)


def alone(ask: Ask) -> Ask:
    """The same request with nobody beside it."""
    engine, _ = toy_engine(ToyStep(sequences=4, pages=60, max_tokens=64, max_rows=16))
    result = Ask(ask.prompt, ask.options)
    drain(engine, [(result, engine.submit(ask.prompt, **ask.options))])
    return result


@settings(max_examples=150)
@given(
    OPERATIONS,
    st.integers(16, 40),
    st.integers(2, 6),
    st.integers(2, 9),
    st.integers(2, 8),
    st.sampled_from(["off", "auto", "lookup", "recycling"]),
)
def test_a_storm_changes_no_answer(
    operations: list[Any], pages: int, sequences: int, max_tokens: int, max_rows: int, speculate: str
) -> None:
    step = ToyStep(sequences=sequences + 1, pages=pages, max_tokens=max(max_tokens, max_rows), max_rows=max_rows)
    engine, _ = toy_engine(step, sequences=sequences, speculate=speculate)
    asks: list[tuple[Ask, Stream]] = []
    for operation in operations:
        if isinstance(operation, Ask):
            ask = Ask(operation.prompt, operation.options)
            asks.append((ask, engine.submit(ask.prompt, **ask.options)))
        elif operation[0] == "cancel" and asks:
            ask, stream = asks[operation[1] % len(asks)]
            ask.cancelled = True
            stream.cancel()
        elif operation[0] == "shrink":
            engine.pool.shrink(operation[1], engine.compiled.give_back)
        elif operation[0] == "grow":
            engine.pool.grow(operation[1])
        elif operation[0] == "step":
            for _ in range(operation[1]):
                engine.step()
                engine.pool.check_integrity()
    drain(engine, asks)
    assert engine.pool.used == 0
    assert not engine.scheduler.busy
    for ask, stream in asks:
        expected = alone(ask)
        for index in range(ask.options["n"]):
            if ask.cancelled and ask.reason(index) == "cancelled":
                count = len(ask.ids(index))
                assert ask.ids(index) == expected.ids(index)[:count]
            else:
                assert (ask.ids(index), ask.text(index)) == (expected.ids(index), expected.text(index))
                assert ask.reason(index) == expected.reason(index)
        assert stream.usage.completion_tokens == sum(len(delta.ids) for delta in ask.deltas)


def test_greedy_answers_are_the_models() -> None:
    engine, step = toy_engine(ToyStep(sequences=5, pages=80, max_tokens=16, max_rows=8), sequences=4)
    prompts = [[FIRST_LETTER + i, FIRST_LETTER + 2 * i, FIRST_LETTER] for i in range(9)]
    streams = [engine.submit(prompt, sampling=GREEDY, max_tokens=12) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        (choice,) = stream.collect()
        assert list(choice.ids) == list(greedy(step, prompt, 12))


def test_a_shared_prompt_is_computed_once() -> None:
    engine, step = toy_engine(ToyStep(context=128, sequences=17, pages=200, max_tokens=32, max_rows=16), sequences=16)
    system = [FIRST_LETTER + i % 17 for i in range(80)]
    streams = [engine.submit([*system, FIRST_LETTER + i], sampling=GREEDY, max_tokens=2) for i in range(16)]
    for stream in streams:
        stream.collect()
    fed = sum(len(batch.tokens) for batch in step.batches)
    assert fed <= 80 + 16 * 2
    assert sum(stream.usage.cached_tokens for stream in streams) == 15 * 80


def test_tenants_do_not_share() -> None:
    engine, step = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=32, max_rows=4), sequences=2)
    prompt = [FIRST_LETTER + i % 9 for i in range(32)]
    for salt in ("a", "b", "a"):
        stream = engine.submit(prompt, sampling=GREEDY, max_tokens=1, salt=salt)
        stream.collect()
    assert stream.usage.cached_tokens == 28
    assert sum(len(batch.tokens) for batch in step.batches) == 32 + 32 + 4


def test_a_request_ends_within_a_step_of_its_cancel() -> None:
    engine, step = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4, script=[FIRST_LETTER]))
    stream = engine.submit([FIRST_LETTER] * 5, sampling=GREEDY)
    for _ in range(4):
        engine.step()
    stream.cancel()
    before = len(step.batches)
    engine.step()
    assert len(step.batches) == before
    assert [d.finish_reason for d in stream][-1] == "cancelled"
    assert engine.pool.used == 0


def test_a_stream_that_nobody_reads_is_cancelled() -> None:
    engine, _ = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4, script=[FIRST_LETTER]))
    stream = engine.submit([FIRST_LETTER] * 5, sampling=GREEDY)
    engine.step()
    del stream
    gc.collect()
    assert not engine.step()
    assert engine.metrics.requests_finished == {"cancelled": 1}


def test_deadlines() -> None:
    clock = Clock()
    engine, _ = toy_engine(
        ToyStep(sequences=2, pages=60, max_tokens=8, max_rows=4, script=[FIRST_LETTER]), sequences=1, clock=clock
    )
    running = engine.submit([FIRST_LETTER] * 5, sampling=GREEDY, timeout=3)
    waiting = engine.submit([FIRST_LETTER] * 4, sampling=GREEDY, timeout=3, max_tokens=30)
    engine.step()
    clock.now += 4
    assert not engine.step()
    for stream in (running, waiting):
        assert [d.finish_reason for d in stream][-1] == "timeout"


def finish_order(engine: Engine, streams: dict[str, Stream], clock: Clock, seconds: float) -> list[str]:
    order: list[str] = []
    while engine.step():
        clock.now += seconds
        for name, stream in streams.items():
            if name not in order and all(s.finish_reason for s in stream.request.sequences or [_Unfinished()]):
                order.append(name)
    return order


class _Unfinished:
    finish_reason = None


def test_higher_priority_first() -> None:
    clock = Clock()
    engine, _ = toy_engine(
        ToyStep(sequences=2, pages=60, max_tokens=8, max_rows=4, script=[FIRST_LETTER]), sequences=1, clock=clock
    )
    streams = {
        name: engine.submit([FIRST_LETTER] * 4, sampling=GREEDY, max_tokens=6, priority=priority)
        for name, priority in (("low", -1), ("plain", 0), ("high", 1), ("plain again", 0))
    }
    assert finish_order(engine, streams, clock, 0.01) == ["high", "plain", "plain again", "low"]


def test_high_priority_displaces_and_loses_nothing() -> None:
    clock = Clock()
    engine, step = toy_engine(ToyStep(sequences=2, pages=60, max_tokens=8, max_rows=4), sequences=1, clock=clock)
    prompt = [FIRST_LETTER + 1] * 6
    low = engine.submit(prompt, sampling=GREEDY, max_tokens=10)
    for _ in range(4):
        engine.step()
    high = engine.submit([FIRST_LETTER + 2] * 6, sampling=GREEDY, max_tokens=3, priority=5)
    (choice,) = high.collect()
    assert low.request.usage.completion_tokens < 10
    assert engine.metrics.preemptions == 1
    (choice,) = low.collect()
    assert list(choice.ids) == list(greedy(step, prompt, 10))


def test_nobody_starves_under_sustained_high_priority() -> None:
    clock = Clock()
    engine, _ = toy_engine(
        ToyStep(sequences=2, pages=60, max_tokens=8, max_rows=4, script=[FIRST_LETTER]), sequences=1, clock=clock
    )
    low = engine.submit([FIRST_LETTER] * 4, sampling=GREEDY, max_tokens=4, priority=-2)
    others = []
    start = clock.now
    while not low.request.sequences or low.request.sequences[0].finish_reason is None:
        if engine.scheduler.waiting < 3:
            others.append(engine.submit([FIRST_LETTER] * 4, sampling=GREEDY, max_tokens=4, priority=2))
        engine.step()
        clock.now += 0.2
        assert clock.now - start < PATIENCE + 5 * AGING
    assert len(others) > 10


def test_the_queue_is_bounded() -> None:
    engine, _ = toy_engine(ToyStep(sequences=2, pages=60, max_tokens=8, max_rows=4), sequences=1, queue=2)
    streams = [engine.submit([FIRST_LETTER] * 4, sampling=GREEDY, max_tokens=2) for _ in range(3)]
    with pytest.raises(OverloadError) as caught:
        engine.submit([FIRST_LETTER] * 4)
    assert caught.value.retry_after >= 1
    for stream in streams:
        stream.collect()
    engine.submit([FIRST_LETTER] * 4, max_tokens=1).collect()
    assert engine.metrics.requests_refused == 1


def test_memory_is_never_promised_twice() -> None:
    """Four long answers where pages suffice for one and a half: all come, and nobody is told to go."""
    step = ToyStep(sequences=5, pages=24, max_tokens=16, max_rows=4)
    engine, _ = toy_engine(step, sequences=4)
    prompts = [[FIRST_LETTER + i] * 20 for i in range(4)]
    streams = [engine.submit(prompt, sampling=GREEDY, max_tokens=40) for prompt in prompts]
    asks = [(Ask(prompt, {}), stream) for prompt, stream in zip(prompts, streams, strict=True)]
    drain(engine, asks)
    for ask, _ in asks:
        assert ask.ids(0) == list(greedy(step, ask.prompt, 40))


def test_what_does_not_fit_is_refused() -> None:
    engine, _ = toy_engine(ToyStep(context=64, sequences=3, pages=8, max_tokens=8, max_rows=4))
    assert engine.context == 32
    with pytest.raises(ContextError, match="33 tokens, but the context has 32"):
        engine.submit([FIRST_LETTER] * 33)
    for options in (
        {"n": 0},
        {"max_tokens": -1},
        {"stop": ("",)},
        {"timeout": 0},
        {"priority": 10**6},
        {"logprobs": -1},
    ):
        with pytest.raises(UsageError):
            engine.submit([FIRST_LETTER], **options)
    with pytest.raises(TypeError):
        engine.submit([FIRST_LETTER], nonsense=1)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    engine, step = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=16, max_rows=8))
    prompt = [FIRST_LETTER + 1, FIRST_LETTER + 2, FIRST_LETTER + 3]
    sampling = SamplingParams(temperature=0.7, seed=1, repeat_penalty=1.5, logit_bias={FIRST_LETTER: 3.0})
    (choice,) = engine.submit(prompt, sampling=sampling, max_tokens=8, logprobs=3, prompt_logprobs=2).collect()
    import numpy as np

    ids = list(prompt)
    for id_, entry in zip(choice.ids, choice.logprobs, strict=True):
        row = step.logits(ids).astype(np.float64)
        logs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert entry.id == id_
        assert entry.logprob == pytest.approx(logs[id_], abs=1e-5)
        assert [i for i, _ in entry.top] == np.argsort(-row, kind="stable")[:3].tolist()
        assert [p for _, p in entry.top] == pytest.approx(np.sort(logs)[::-1][:3], abs=1e-5)
        ids.append(id_)


def test_logprobs_of_the_prompt() -> None:
    engine, step = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=5, max_rows=4))
    prompt = [FIRST_LETTER + i % 7 for i in range(19)]
    for max_tokens in (0, 2):
        stream = engine.submit(prompt, sampling=GREEDY, max_tokens=max_tokens, prompt_logprobs=1)
        (choice,) = stream.collect()
        assert len(choice.ids) == max_tokens
        assert [entry.id for entry in stream.prompt_logprobs] == prompt[1:]
        for i, entry in enumerate(stream.prompt_logprobs):
            row = step.logits(prompt[: i + 1])
            assert entry.top[0][0] == row.argmax()


def test_stop_ids_and_ignored_ends() -> None:
    ids = [FIRST_LETTER, FIRST_LETTER + 1, EOS, FIRST_LETTER + 2, FIRST_LETTER + 3]

    def run(**options: Any) -> Any:
        step = ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4, script=ids)
        step.prompt_length = 2
        engine, _ = toy_engine(step)
        (choice,) = engine.submit([FIRST_LETTER] * 2, sampling=GREEDY, max_tokens=5, **options).collect()
        return choice

    assert (run().ids, run().finish_reason, run().stop_hit) == (tuple(ids[:3]), "stop", None)
    assert run(ignore_eos=True).finish_reason == "length"
    stopped = run(stop_ids=frozenset([FIRST_LETTER + 1]))
    assert (stopped.text, stopped.finish_reason, stopped.stop_hit) == ("a", "stop", FIRST_LETTER + 1)
    assert run(stop=("b",)).stop_hit == "b"


def test_a_failed_step_ends_its_requests_only() -> None:
    engine, step = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4))
    stream = engine.submit([FIRST_LETTER] * 3, max_tokens=4)
    step.fail_next = True
    with pytest.raises(RuntimeError):
        engine.step()
    with pytest.raises(InternalError, match="the step failed"):
        stream.collect()
    assert engine.pool.used == 0
    assert len(engine.submit([FIRST_LETTER] * 3, sampling=GREEDY, max_tokens=4).collect()[0].ids) >= 1


def test_a_fault_in_planning_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4), background=True)

    def broken(*_: object) -> None:
        raise RuntimeError("no plan")

    with engine, monkeypatch.context() as patch:
        patch.setattr(engine.scheduler, "plan", broken)
        with pytest.raises(InternalError, match="no plan"):
            engine.submit([FIRST_LETTER] * 3, max_tokens=4).collect()


def test_a_thread_of_its_own() -> None:
    engine, step = toy_engine(ToyStep(sequences=5, pages=80, max_tokens=16, max_rows=8), sequences=4, background=True)
    prompts = [[FIRST_LETTER + i] * 3 for i in range(8)]
    results: dict[int, list[int]] = {}

    def work(i: int) -> None:
        results[i] = list(engine.submit(prompts[i], sampling=GREEDY, max_tokens=10).collect()[0].ids)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    with engine:
        assert results == {i: list(greedy(step, prompts[i], 10)) for i in range(8)}
    assert step.closed
    with pytest.raises(OverloadError):
        engine.submit([FIRST_LETTER])


@pytest.mark.parametrize("background", [False, True])
def test_asyncio(background: bool) -> None:
    engine, step = toy_engine(
        ToyStep(sequences=5, pages=80, max_tokens=16, max_rows=8), sequences=4, background=background
    )
    prompts = [[FIRST_LETTER + i] * 3 for i in range(6)]

    async def one(prompt: list[int]) -> list[int]:
        return [id_ async for delta in engine.submit(prompt, sampling=GREEDY, max_tokens=10) for id_ in delta.ids]

    async def everyone() -> list[list[int]]:
        return await asyncio.wait_for(asyncio.gather(*map(one, prompts)), 20)

    with engine:
        assert asyncio.run(everyone()) == [list(greedy(step, prompt, 10)) for prompt in prompts]


def test_an_idle_thread_wakes_for_a_deadline_and_for_the_end() -> None:
    step = ToyStep(sequences=2, pages=60, max_tokens=8, max_rows=4, script=[FIRST_LETTER])
    engine, _ = toy_engine(step, sequences=1, background=True)
    start = time.monotonic()
    stream = engine.submit([FIRST_LETTER] * 3, sampling=GREEDY, timeout=0.2, ignore_eos=True, max_tokens=60)
    reasons = [delta.finish_reason for delta in stream]
    assert reasons[-1] in {"timeout", "length"}
    engine.close()
    assert time.monotonic() - start < 10


def test_drains() -> None:
    engine, _ = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4), background=True)
    streams = [engine.submit([FIRST_LETTER + i] * 3, sampling=GREEDY, max_tokens=20) for i in range(6)]
    engine.close(drain=True)
    assert all(stream.collect()[0].finish_reason in {"stop", "length"} for stream in streams)


def test_closing_cancels() -> None:
    engine, _ = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4, script=[FIRST_LETTER]))
    streams = [engine.submit([FIRST_LETTER + i] * 3, sampling=GREEDY) for i in range(4)]
    engine.step()
    engine.close()
    assert [stream.collect()[0].finish_reason for stream in streams] == ["cancelled"] * 4


def test_closing_is_heard_at_the_worst_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, step = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4), background=True)
    closer = threading.Thread(target=engine.close, daemon=True)
    attention = engine._attention
    clear = attention.clear

    def clear_late() -> None:
        if not closer.ident:
            closer.start()
            while engine._thread is not None or not attention.is_set():
                time.sleep(0.001)
        clear()

    monkeypatch.setattr(attention, "clear", clear_late)
    attention.set()
    while not closer.ident:
        time.sleep(0.001)
    closer.join(20)
    assert step.closed


def test_a_request_that_comes_while_the_engine_closes_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4), background=True)

    def closes() -> float:  # asked after the question whether it is open, before the request is in the inbox
        monkeypatch.undo()
        engine.close()
        return 1.0

    monkeypatch.setattr(engine, "_clock", closes)
    assert engine.submit([FIRST_LETTER] * 3).collect()[0].finish_reason == "cancelled"


def test_a_request_that_cannot_begin_fails_alone() -> None:
    engine, _ = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4))

    class NoGrammar:
        def __getattr__(self, name: str) -> None:
            raise RuntimeError("no grammar")

    good = engine.submit([FIRST_LETTER] * 3, sampling=GREEDY, max_tokens=4)
    bad = engine.submit([FIRST_LETTER] * 3, max_tokens=4, n=2, grammar=NoGrammar())
    with pytest.raises(InternalError, match="no grammar"):
        bad.collect()
    assert good.collect()[0].finish_reason == "length"
    assert engine.metrics.requests_submitted == sum(engine.metrics.requests_finished.values()) == 2


def test_metrics_add_up() -> None:
    engine, _ = toy_engine(ToyStep(sequences=3, pages=60, max_tokens=8, max_rows=4), sequences=2)
    prompts = [[FIRST_LETTER + i] * 9 for i in range(3)]
    streams = [engine.submit(prompt, sampling=GREEDY, max_tokens=5) for prompt in prompts]
    tokens = sum(len(stream.collect()[0].ids) for stream in streams)
    metrics = engine.metrics
    assert metrics.generation_tokens == tokens
    assert metrics.prompt_tokens == 27
    assert metrics.requests_submitted == sum(metrics.requests_finished.values()) == 3
    assert metrics.time_to_first_token_seconds.count == metrics.queue_seconds.count == 3
    assert metrics.inter_token_seconds.count == tokens - 3
    assert metrics.steps == metrics.step_seconds.count
    assert (metrics.requests_running, metrics.requests_waiting, metrics.kv_pages_used) == (0, 0, 0)
    assert VOCAB > 0
