"""The process: it drains when it is told to stop, and is back at once after it was killed."""

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
from processes import Process


@pytest.fixture
def process(bundle: Path) -> Iterator[Process]:
    made = Process(bundle, 0.02)
    yield made
    made.process.kill()
    made.process.wait()


BODY = {"messages": [{"role": "user", "content": "Hi"}]}


def test_what_was_accepted_is_answered(process: Process) -> None:
    def ask(stream: bool) -> str:
        return httpx.post(f"{process.url}/v1/chat/completions", json={**BODY, "stream": stream}, timeout=20).text

    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(ask, number % 2 == 0) for number in range(8)]
        while "http_requests_open 9" not in httpx.get(f"{process.url}/metrics").text:  # the question itself is one
            time.sleep(0.01)
        assert process.stop() == 0
        for number, answer in enumerate(answers):
            text = answer.result()
            assert text.endswith("data: [DONE]\n\n") if number % 2 == 0 else '"finish_reason":"stop"' in text
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{process.url}/health")


def test_an_idle_connection_does_not_hold_it(process: Process) -> None:
    with httpx.Client() as client:
        client.get(f"{process.url}/health")
        begin = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - begin < 3


def test_a_second_signal_ends_at_once(bundle: Path) -> None:
    process = Process(bundle, 0.5)
    with httpx.stream("POST", f"{process.url}/v1/chat/completions", json={**BODY, "stream": True}) as answer:
        next(answer.iter_lines())
        process.process.send_signal(signal.SIGTERM)
        time.sleep(0.15)
        begin = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - begin < 1.5


def test_it_is_back_at_once_after_it_was_killed(process: Process, bundle: Path) -> None:
    process.process.kill()
    process.process.wait()
    begin = time.monotonic()
    again = Process(bundle, 0.0)
    try:
        assert httpx.post(f"{again.url}/v1/chat/completions", json=BODY).status_code == 200
        assert time.monotonic() - begin < 5
    finally:
        again.process.kill()
        again.process.wait()


def test_https(bundle: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    process = Process(bundle, 0.0, RYZC_SSL_KEYFILE=key, RYZC_SSL_CERTFILE=certificate)
    context = ssl.create_default_context(cafile=certificate)
    assert process.url.startswith("https://")
    url = process.url.replace("127.0.0.1", "localhost")
    assert httpx.post(f"{url}/v1/chat/completions", json=BODY, verify=context).status_code == 200
    assert process.stop() == 0


@pytest.mark.slow
def test_a_hundred_stops_under_load_lose_nothing(bundle: Path) -> None:
    accepted = 0
    for _ in range(100):
        process = Process(bundle, 0.002)
        ends: list[str] = []
        stopping = threading.Event()

        def ask(url: str = process.url, ends: list[str] = ends, stopping: threading.Event = stopping) -> None:
            while not stopping.is_set():
                begun = False
                try:
                    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "stream": True}) as answer:
                        if answer.status_code == 200:  # accepted: from here on nothing may be lost
                            begun = True
                            ends.append("".join(answer.iter_text())[-14:])
                except httpx.NetworkError:  # nobody listens any more
                    if begun:
                        ends.append("lost")

        with ThreadPoolExecutor(8) as clients:
            asked = [clients.submit(ask) for _ in range(8)]
            time.sleep(0.2)
            assert process.stop() == 0
            stopping.set()
            for one in asked:
                one.result()
        assert set(ends) <= {"data: [DONE]\n\n"}
        accepted += len(ends)
    assert accepted > 100
