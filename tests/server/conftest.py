"""A server in this process, around an engine that says what a test wants."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_chat
import uvicorn
from fake_engine import FakeEngine

from ryzc.bundle import Bundle
from ryzc.runtime.loading import read_tokenizer
from ryzc.runtime.server.app import create_app
from ryzc.runtime.server.config import Config
from ryzc.runtime.server.log import log
from ryzc.runtime.server.models import Entry, Models
from ryzc.runtime.server.service import Service
from ryzc.runtime.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if tools %}[tools: {{ tools | tojson }}]{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""In the manner of Qwen 3."""


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose template knows tools and thoughts."""
    return tiny_chat.write(tmp_path_factory.mktemp("server") / "tiny.ryzc", template=CHATML, context=2048)


@pytest.fixture(scope="session")
def tokenizer(bundle: Path) -> Tokenizer:
    return read_tokenizer(Bundle.open(bundle))


@dataclass
class Running:
    """A server that listens.

    Attributes:
        url: where.
        http: a client of it.
        engine: what answers.
        service: its parts.
    """

    url: str
    http: httpx.Client
    engine: FakeEngine
    service: Service
    server: uvicorn.Server
    thread: threading.Thread

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def chat(self, text: str = "Hi", **fields: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", messages=[{"role": "user", "content": text}], **fields)

    def prompt(self, number: int = -1) -> str:
        """What the engine was asked."""
        return self.engine.tokenizer.decode(self.engine.requests[number].prompt, special=True)


Start = Callable[..., Running]


def wait(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Until something holds.

    Raises:
        AssertionError: it does not in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def start_session(bundle: Path, tokenizer: Tokenizer) -> Iterator[Start]:
    """Starts servers that live as long as the tests."""
    yield from _starting(bundle, tokenizer)


@pytest.fixture
def start(bundle: Path, tokenizer: Tokenizer) -> Iterator[Start]:
    """Starts servers: settings by name, ``engine`` to answer, ``models`` by name beside the first."""
    yield from _starting(bundle, tokenizer)


@pytest.fixture(scope="session")
def shared(start_session: Start) -> Running:
    """A server for tests that change nothing of it but what it says."""
    return start_session()


@pytest.fixture
def server(shared: Running) -> Running:
    """The shared server, saying its usual text."""
    shared.engine.say, shared.engine.pause, shared.engine.fail_after = "Hello world!", 0.0, None
    return shared


def _starting(bundle: Path, tokenizer: Tokenizer) -> Iterator[Start]:
    running: list[Running] = []

    def begin(
        engine: FakeEngine | None = None, models: Mapping[str, FakeEngine] | None = None, **config: Any
    ) -> Running:
        chosen = engine or FakeEngine(tokenizer)
        running.append(listen(bundle, {"tiny": chosen, **(models or {})}, Config(port=0, **config)))
        return running[-1]

    yield begin
    for each in running:
        each.server.should_exit = True
    for each in running:
        each.thread.join(10)
        each.http.close()


def listen(bundle: Path, engines: Mapping[str, FakeEngine], config: Config, budget: int | None = None) -> Running:
    """A server in a thread."""
    log.level = "error"
    first = next(iter(engines.values()))
    entries = [Entry(name, bundle, 100, 1_700_000_000, engine.context) for name, engine in engines.items()]
    made: list[Any] = []
    ready = threading.Event()

    async def life() -> None:
        models = Models(entries, lambda entry: engines[entry.name], ThreadPoolExecutor(1), budget=budget, patience=5)
        models.release(await models.lease(None))
        service = Service(config, models)
        settings = uvicorn.Config(create_app(service), port=0, log_config=None, ws="none", lifespan="on")
        server = uvicorn.Server(settings)
        made.extend((service, server))
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        ready.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(life()), daemon=True)
    thread.start()
    assert ready.wait(10)
    service, server = made
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    return Running(url, httpx.Client(base_url=url, timeout=20), first, service, server, thread)
