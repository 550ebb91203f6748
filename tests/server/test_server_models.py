"""Several models in one server: loaded on demand, unloaded when idle, never under a request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Start
from fake_engine import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzc.errors import BundleError
from ryzc.runtime.server.backend import Engine
from ryzc.runtime.server.errors import ApiError
from ryzc.runtime.server.models import Entry, Loaded, Models
from ryzc.runtime.tokenizer import Tokenizer

SIZES = {"a": 10, "b": 20, "c": 30, "d": 5}


class House:
    """A registry of four models in a budget, which notes what is in memory."""

    def __init__(self, bundle: Path, tokenizer: Tokenizer, budget: int | None, patience: float = 5.0) -> None:
        self.open: dict[str, FakeEngine] = {}
        self.most = 0
        self.lock = threading.Lock()
        self.tokenizer = tokenizer
        self.broken: set[str] = set()
        entries = [Entry(name, bundle, size, 0, 100) for name, size in SIZES.items()]
        self.executor = ThreadPoolExecutor(1)
        self.models = Models(entries, self.load, self.executor, budget=budget, patience=patience)

    def load(self, entry: Entry) -> Engine:
        if entry.name in self.broken:
            raise BundleError("it is damaged")
        house = self

        class Kept(FakeEngine):
            def close(self, *, drain: bool = False) -> None:
                with house.lock:
                    del house.open[entry.name]

        engine = Kept(self.tokenizer)
        with self.lock:
            assert entry.name not in self.open
            self.open[entry.name] = engine
            self.most = max(self.most, sum(SIZES[name] for name in self.open))
        return engine


Run = Callable[[Callable[[House], Awaitable[Any]]], Any]


@pytest.fixture
def house(bundle: Path, tokenizer: Tokenizer) -> Callable[..., Any]:
    def run(test: Callable[[House], Awaitable[Any]], budget: int | None = 45, patience: float = 5.0) -> Any:
        async def whole() -> Any:
            made = House(bundle, tokenizer, budget, patience)
            return await test(made)

        return asyncio.run(asyncio.wait_for(whole(), 20))

    return run


async def use(house: House, name: str) -> None:
    house.models.release(await house.models.lease(name))


def test_the_least_recently_used_goes(house: Any) -> None:
    async def test(house: House) -> None:
        for name in ("a", "b", "a", "c"):
            await use(house, name)
        assert set(house.open) == {"a", "c"}
        await use(house, "d")
        assert set(house.open) == {"a", "c", "d"}
        assert (house.models.loads, house.models.unloads) == (4, 1)

    house(test)


def test_without_a_budget_all_stay(house: Any) -> None:
    async def test(house: House) -> None:
        for name in SIZES:
            await use(house, name)
        assert set(house.open) == set(SIZES)

    house(test, budget=None)


def test_a_model_in_use_stays_and_others_wait_for_it(house: Any) -> None:
    async def test(house: House) -> None:
        used = await house.models.lease("c")
        waiting = asyncio.create_task(house.models.lease("b"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        late = asyncio.create_task(house.models.lease("c"))  # must not keep the other waiting for ever
        await asyncio.sleep(0.05)
        assert set(house.open) == {"c"}
        assert not late.done()
        house.models.release(used)
        model = await waiting
        assert set(house.open) == {"b"}
        house.models.release(model)
        house.models.release(await late)
        assert set(house.open) == {"c"}

    house(test)


def test_patience_ends(house: Any) -> None:
    async def test(house: House) -> None:
        used = await house.models.lease("c")
        with pytest.raises(ApiError) as raised:
            await house.models.lease("b")
        assert (raised.value.status, raised.value.code) == (503, "model_not_ready")
        house.models.release(await house.models.lease("c"))
        house.models.release(used)
        await use(house, "b")

    house(test, patience=0.1)


def test_what_takes_longer_than_anybody_waits_is_loaded_all_the_same(house: Any) -> None:
    async def test(house: House) -> None:
        load, begin = house.models._load, threading.Event()
        house.models._load = lambda entry: (begin.wait(5), load(entry))[1]
        with pytest.raises(ApiError):
            await house.models.lease("a")
        begin.set()
        house.models.release(await house.models.lease("a"))
        assert house.models.loads == 1

    house(test, patience=0.2)


def test_others_are_served_while_a_model_is_read(house: Any) -> None:
    async def test(house: House) -> None:
        await use(house, "a")
        load, begin = house.models._load, threading.Event()
        house.models._load = lambda entry: (begin.wait(5), load(entry))[1]
        waiting = asyncio.create_task(house.models.lease("b"))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(use(house, "a"), 1)
        assert not waiting.done()
        begin.set()
        house.models.release(await waiting)

    house(test)


def test_a_model_that_cannot_be_loaded(house: Any) -> None:
    async def test(house: House) -> None:
        house.broken.add("a")
        with pytest.raises(ApiError) as raised:
            await house.models.lease("a")
        assert raised.value.status == 503
        await use(house, "b")
        house.broken.clear()
        await use(house, "a")

    house(test)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from(sorted(SIZES)), st.integers(0, 3)), max_size=40), st.integers(30, 65))
def test_any_load_keeps_the_budget(
    bundle: Path, tokenizer: Tokenizer, asked: list[tuple[str, int]], budget: int
) -> None:
    async def test() -> None:
        house = House(bundle, tokenizer, budget)

        async def one(name: str, ticks: int) -> None:
            model: Loaded = await house.models.lease(name)
            for _ in range(ticks):
                assert house.open[name] is model.engine
                await asyncio.sleep(0)
            house.models.release(model)

        await asyncio.wait_for(asyncio.gather(*(one(*request) for request in asked)), 20)
        assert house.most <= budget
        assert all(not model.leases for model in house.models.loaded.values())
        await house.models.close()
        assert not house.open
        house.executor.shutdown()

    asyncio.run(test())


def test_by_name_over_http(start: Start, tokenizer: Tokenizer) -> None:
    server = start(models={"other": FakeEngine(tokenizer, "I am another.")})
    assert server.chat(model="other").json()["choices"][0]["message"]["content"] == "I am another."
    answer = server.chat(model="tiny").json()
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("tiny", "Hello world!")
    assert [model["loaded"] for model in server.http.get("/v1/models").json()["data"]] == [True, True]
    assert 'model_name="other"' in server.http.get("/metrics").text
