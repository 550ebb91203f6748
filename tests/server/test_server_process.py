"""The process: it drains when it is told to stop."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import wait
from processes import Process


@pytest.fixture
def process(bundle: Path) -> Iterator[Process]:
    with Process(bundle, 0.02) as made:
        yield made


BODY = {"messages": [{"role": "user", "content": "Hi"}]}


def test_what_was_accepted_is_answered(bundle: Path) -> None:
    with Process(bundle, 0.1) as process, httpx.Client(base_url=process.url, timeout=20) as client:

        def ask(stream: bool) -> str:
            return client.post("/v1/chat/completions", json={**BODY, "stream": stream}).text

        def all_are_open() -> bool:
            return "http_requests_open 9" in client.get("/metrics").text  # the question itself is one

        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(ask, number % 2 == 0) for number in range(8)]
            wait(all_are_open, 20)
            assert process.stop() == 0
            for number, answer in enumerate(answers):
                text = answer.result()
                assert text.endswith("data: [DONE]\n\n") if number % 2 == 0 else '"finish_reason":"stop"' in text
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


def test_an_idle_connection_does_not_hold_it(process: Process) -> None:
    with httpx.Client() as client:
        client.get(f"{process.url}/health")
        begin = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - begin < 3


def test_a_second_signal_ends_at_once(bundle: Path) -> None:
    with (
        Process(bundle, 0.5) as process,
        httpx.stream("POST", f"{process.url}/v1/chat/completions", json={**BODY, "stream": True}) as answer,
    ):
        next(answer.iter_lines())
        process.process.send_signal(signal.SIGTERM)
        time.sleep(0.15)
        begin = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - begin < 1.5


def test_https(bundle: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    context = ssl.create_default_context(cafile=certificate)
    with Process(bundle, 0.0, RYZC_SSL_KEYFILE=key, RYZC_SSL_CERTFILE=certificate) as process:
        assert process.url.startswith("https://")
        url = process.url.replace("127.0.0.1", "localhost")
        assert httpx.post(f"{url}/v1/chat/completions", json=BODY, verify=context).status_code == 200
        assert process.stop() == 0


@pytest.mark.slow
def test_a_hundred_stops_under_load_lose_nothing(bundle: Path) -> None:
    accepted = 0
    for _ in range(100):
        ends: list[str] = []
        stopping = threading.Event()

        def ask(client: httpx.Client, ends: list[str] = ends, stopping: threading.Event = stopping) -> None:
            while not stopping.is_set():
                begun = False
                try:
                    with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as answer:
                        if answer.status_code == 200:  # accepted: from here on nothing may be lost
                            begun = True
                            ends.append("".join(answer.iter_text())[-14:])
                except (httpx.NetworkError, httpx.RemoteProtocolError):  # nobody listens any more
                    if begun:
                        ends.append("lost")

        with (
            Process(bundle, 0.002) as process,
            # Each on a connection of its own: one that is kept may be closed while the next request is on its way.
            httpx.Client(base_url=process.url, timeout=20, limits=httpx.Limits(max_keepalive_connections=0)) as client,
            ThreadPoolExecutor(8) as clients,
        ):
            asked = [clients.submit(ask, client) for _ in range(8)]
            time.sleep(0.2)
            assert process.stop() == 0
            stopping.set()
            for one in asked:
                one.result(30)
        assert set(ends) <= {"data: [DONE]\n\n"}
        accepted += len(ends)
    assert accepted > 100
