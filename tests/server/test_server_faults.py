"""What goes wrong around a server: it is killed, asked for too much, read too slowly, left in the middle."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Start, wait
from fake_engine import FakeEngine
from listening import Listening

from ryzc.runtime.tokenizer import Tokenizer

SLOTS, QUEUE = 4, 8
MESSAGES = [{"role": "user", "content": "Hi"}]
DROPPED = 'http_requests_total{path="/v1/chat/completions",status="499"}'
STEP = 0.04
"""Seconds of a step of the stand-in engine: long beside what a busy machine needs to notice a closed connection."""


def serving(bundle: Path, port: int = 0) -> Listening:
    """``ryzc serve`` with few slots."""
    settings = {"RYZC_PARALLEL": str(SLOTS), "RYZC_MAX_QUEUE": str(QUEUE), "RYZC_SEND_TIMEOUT": "2"}
    return Listening(["-m", "ryzc", "serve", str(bundle), "--port", str(port), "-c", "2048", "-t", "1"], settings)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Listening]:
    with serving(bundle) as made:
        yield made
        assert made.stop() == 0


def memory(server: Listening) -> int:
    """Bytes of a process that are resident."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def metric(server: Listening, name: str) -> float:
    """A metric's value; the sum, where labels tell several apart that are not named."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"ryzc_{name}"))


def begin(url: str, **fields: Any) -> socket.socket:
    """A chat that streams, asked for by somebody with as small a buffer for the answer as there is."""
    body = json.dumps({"messages": MESSAGES, "stream": True, **fields}).encode()
    address = httpx.URL(url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect((address.host, address.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.host}\r\ncontent-type: application/json\r\n"
    client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return client


def read_to_the_end(client: socket.socket) -> bytes:
    """What comes until the connection is closed, in order or not."""
    parts = []
    with closing(client), suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def test_it_is_back_at_once_after_it_was_killed_under_load(bundle: Path) -> None:
    with serving(bundle) as first:
        readers = [begin(first.url, ignore_eos=True) for _ in range(SLOTS + QUEUE)]
        wait(lambda: metric(first, "num_requests_running") == SLOTS)
        first.kill()
        # They are told, and none takes what it has for a whole answer.
        assert all(not read_to_the_end(reader).endswith(b"[DONE]\n\n\r\n0\r\n\r\n") for reader in readers)
    start = time.monotonic()
    with serving(bundle, httpx.URL(first.url).port or 0) as again:
        assert httpx.get(f"{again.url}/ready").status_code == 200
        answer = httpx.post(f"{again.url}/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 3})
        assert answer.json()["usage"]["completion_tokens"] > 0
        assert time.monotonic() - start < 5


def test_one_who_reads_nothing_holds_up_nobody(server: Listening) -> None:
    body = {"messages": MESSAGES, "max_tokens": 200, "ignore_eos": True}
    httpx.post(f"{server.url}/v1/chat/completions", json={**body, "n": SLOTS})  # what it takes anyhow
    before, dropped = memory(server), metric(server, DROPPED)
    # Some ten megabytes, of which the kernel takes a few.
    fields = {"n": 3, "logprobs": True, "top_logprobs": 20, "ignore_eos": True, "max_tokens": 1500}
    with closing(begin(server.url, **fields)):
        wait(lambda: metric(server, "num_requests_running") == 3)
        moments = [time.monotonic()]
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={**body, "stream": True}) as other:
            moments += [time.monotonic() for _ in other.iter_lines()]
        assert len(moments) > 200
        assert max(later - earlier for earlier, later in pairwise(moments)) < 1.5
        wait(lambda: metric(server, DROPPED) == dropped + 1, 20)
    wait(lambda: metric(server, "num_requests_running") == 0)
    assert memory(server) - before < 64 << 20


def test_one_who_reads_nothing_holds_up_no_stop(bundle: Path) -> None:
    with serving(bundle) as server:
        fields = {"n": 3, "logprobs": True, "top_logprobs": 20, "ignore_eos": True, "max_tokens": 1500}
        with closing(begin(server.url, **fields)):
            wait(lambda: metric(server, DROPPED) == 1, 20)
            assert server.stop() == 0


def test_ten_times_as_many_as_fit(server: Listening) -> None:
    before = memory(server)
    fields = {"messages": MESSAGES, "max_tokens": 48, "ignore_eos": True, "stream": True}
    with httpx.Client(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:

        def ask(_: int) -> tuple[int, str, str]:
            answer = client.post("/v1/chat/completions", json=fields)
            return answer.status_code, answer.text, answer.headers.get("retry-after", "")

        with ThreadPoolExecutor(64) as clients:
            answers = list(clients.map(ask, range(10 * (SLOTS + QUEUE))))
    accepted = [text for status, text, _ in answers if status == 200]
    refused = [after for status, _, after in answers if status == 429]
    assert len(accepted) + len(refused) == len(answers)
    assert len(accepted) >= SLOTS + QUEUE
    assert refused
    assert all(text.endswith('"finish_reason":"length"}]}\n\ndata: [DONE]\n\n') for text in accepted)
    assert all(int(after) >= 1 for after in refused)
    assert memory(server) - before < 64 << 20


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_costs_a_step_or_two(start: Start, tokenizer: Tokenizer, stream: bool) -> None:
    server = start(engine=FakeEngine(tokenizer, "word " * 1000, pause=STEP))
    client = begin(server.url, stream=stream)
    wait(lambda: server.engine.requests and server.engine.requests[0].usage.completion_tokens >= 3)
    client.close()
    tokens = server.engine.requests[0].usage.completion_tokens
    wait(lambda: server.engine.running == 0)
    assert server.engine.requests[0].usage.completion_tokens <= tokens + 2
    wait(lambda: server.service.models.loaded["tiny"].leases == 0)


def test_a_slot_is_free_again_when_its_client_has_left(server: Listening) -> None:
    with closing(begin(server.url, n=SLOTS, ignore_eos=True)):
        wait(lambda: metric(server, "num_requests_running") == SLOTS)
    wait(lambda: metric(server, "num_requests_running") == 0)
    assert metric(server, "kv_cache_usage_perc") == 0
