"""Keys, hosts, limits, clients that vanish, and what those who run a server look at."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from conftest import Running, Start, wait
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families

from ryzc.runtime.request import Delta
from ryzc.runtime.server.gate import Keys
from ryzc.runtime.tokenizer import Tokenizer


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/props", "/v1/unknown", "/openapi.json"])
def test_keys(start: Start, path: str) -> None:
    server = start(api_key=("first", "second"))
    assert server.http.get(path).status_code == 401
    assert server.http.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert server.http.get(path, headers={"authorization": "Basic first"}).status_code == 401
    for headers in ({"authorization": "Bearer second"}, {"x-api-key": "first"}):
        assert server.http.get(path, headers=headers).status_code != 401
    assert server.http.get("/health").status_code == server.http.get("/ready").status_code == 200


def test_keys_are_compared_in_constant_time() -> None:
    # All of them, whole: what is measured is that no prefix and no position is quicker than another.
    from starlette.datastructures import Headers

    keys = Keys(["a" * 64, "b" * 64])
    times = {}
    for given in ("a" * 63 + "x", "x" + "a" * 63, "b" * 63 + "x", "b" * 64, "a" * 64):
        headers = Headers({"authorization": f"Bearer {given}"})
        best = []
        for _ in range(300):
            begin = time.perf_counter()
            keys.accept(headers)
            best.append(time.perf_counter() - begin)
        times[given] = sorted(best)[30]
    assert max(times.values()) < 2 * min(times.values())


def test_foreign_host_names_do_not_pass_on_loopback(server: Running) -> None:
    assert server.http.get("/health", headers={"host": "evil.example"}).status_code == 403
    for host in ("localhost:8080", "127.0.0.1", "127.0.0.2:1", "[::1]:8080"):
        assert server.http.get("/health", headers={"host": host}).status_code == 200


def test_host_names_that_are_allowed(start: Start) -> None:
    server = start(allowed_host=("my.example",))
    assert server.http.get("/health", headers={"host": "my.example:80"}).status_code == 200
    assert server.http.get("/health", headers={"host": "other.example"}).status_code == 403


def test_web_pages_of_others(start: Start) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    closed, open_ = start(), start(cors_origin=("https://a.example",), api_key=("k",))
    assert "access-control-allow-origin" not in closed.http.options("/v1/chat/completions", headers=asked).headers
    assert open_.http.options("/v1/chat/completions", headers=asked).headers["access-control-allow-origin"]
    other = {**asked, "origin": "https://b.example"}
    assert "access-control-allow-origin" not in open_.http.options("/v1/chat/completions", headers=other).headers


def test_a_body_over_the_limit(start: Start) -> None:
    server = start(max_body=1000)
    answer = server.chat("x" * 2000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

    def chunks() -> Any:
        yield from [b" " * 600] * 3

    headers = {"content-type": "application/json"}
    assert server.http.post("/v1/chat/completions", content=chunks(), headers=headers).status_code == 413


def test_a_body_that_does_not_come(start: Start) -> None:
    server = start(body_timeout=0.1)
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        assert b" 408 " in client.recv(4096).split(b"\r\n")[0]


def test_limits_of_a_request(start: Start) -> None:
    server = start(max_prompt=20, max_tokens=5, max_n=2, request_timeout=7)
    assert server.chat("x" * 50).json()["error"]["code"] == "context_length_exceeded"
    assert server.post("/v1/completions", prompt="a", n=3).status_code == 400
    assert server.post("/v1/completions", prompt="a", max_tokens=50).status_code == 200
    assert server.engine.requests[-1].options.max_tokens == 5
    assert server.engine.requests[-1].options.timeout == 7
    server.post("/v1/completions", prompt="a", max_tokens=3)
    assert server.engine.requests[-1].options.max_tokens == 3


def test_a_text_far_too_long_is_not_tokenized_as_a_whole(start: Start, tokenizer: Tokenizer) -> None:
    server = start(engine=FakeEngine(tokenizer, context=500))
    longest: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def encode(self, text: str, **options: Any) -> list[int]:
            longest.append(len(text))
            return tokenizer.encode(text, **options)

    server.engine.tokenizer = cast(Tokenizer, Watched())
    for answer in (server.chat("x" * 1_000_000), server.post("/v1/completions", prompt="x" * 1_000_000)):
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert max(longest) < 10_000
    spaces = " " * 100_000  # two of them are a token: it still does not fit, and is not said to have more than it has
    assert server.post("/v1/completions", prompt=spaces).json()["error"]["code"] == "context_length_exceeded"
    assert server.post("/v1/completions", prompt="x" * 490).status_code == 200
    assert server.post("/tokenize", prompt="x" * (1 << 20 | 1)).status_code == 400


def test_a_full_queue(start: Start, tokenizer: Tokenizer) -> None:
    server = start(engine=FakeEngine(tokenizer, queue=0))
    answer = server.chat()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_ten_times_as_many_as_can_be_taken(start: Start, tokenizer: Tokenizer) -> None:
    server = start(engine=FakeEngine(tokenizer, pause=0.02, queue=4), max_queue=4, parallel=4)
    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda _: server.chat(), range(40)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(
        answer.json()["choices"][0]["message"]["content"] == "Hello world!" for answer in answers if answer.is_success
    )
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
    wait(lambda: server.engine.running == 0)
    assert server.service.models.loaded["tiny"].leases == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_cancels(start: Start, tokenizer: Tokenizer, stream: bool) -> None:
    server = start(engine=FakeEngine(tokenizer, "word " * 1000, pause=0.005))
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"  # noqa: E501
        client.sendall(head.encode() + body)
        wait(lambda: server.engine.requests and server.engine.requests[0].usage.completion_tokens > 3)
    wait(lambda: server.engine.requests[0].cancelled)
    assert server.engine.requests[0].usage.completion_tokens < 1000
    wait(lambda: server.service.models.loaded["tiny"].leases == 0)
    wait(lambda: server.service.http.requests["/v1/chat/completions", 499] == 1)


def test_a_client_that_reads_nothing_is_dropped(start: Start, tokenizer: Tokenizer) -> None:
    server = start(engine=FakeEngine(tokenizer, "word " * 20_000, context=1 << 20), send_timeout=0.2)
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 100_000}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"  # noqa: E501
        client.sendall(head.encode() + body)
        wait(lambda: server.engine.requests and server.engine.requests[0].cancelled, 15)
        wait(lambda: server.service.http.open == 0)


def test_requests_have_names(server: Running) -> None:
    assert server.http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    first, second = (server.http.get("/health", headers={"x-request-id": "no good"}) for _ in range(2))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def test_what_is_not_served(server: Running) -> None:
    assert server.http.get("/nothing").json()["error"]["code"] == "not_found"
    assert server.http.get("/v1/messages").status_code == 405
    assert server.http.get("/v1/chat/completions").status_code == 501  # those that were stored
    for path in ("/v1/embeddings", "/v1/audio/speech", "/v1/images/generations"):
        answer = server.post(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_implemented")


def test_models_are_listed(server: Running) -> None:
    listed = server.http.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny"]
    assert server.http.get("/v1/models/tiny").json() == listed["data"][0]
    assert server.http.get("/v1/models/none").status_code == 404


def test_tokens_and_templates(server: Running) -> None:
    tokens = server.post("/tokenize", prompt="hello é", add_special_tokens=False).json()
    assert tokens["tokens"] == server.engine.tokenizer.encode("hello é", add_special=False)
    assert tokens["count"] == len(tokens["tokens"])
    assert server.post("/detokenize", tokens=tokens["tokens"]).json()["content"] == "hello é"
    pieces = server.post("/tokenize", content="é", with_pieces=True).json()["tokens"]
    assert [piece["piece"] for piece in pieces[-2:]] == [[0xC3], [0xA9]]
    messages = [{"role": "user", "content": "Hi"}]
    text = server.post("/apply-template", messages=messages).json()["prompt"]
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert server.post("/tokenize", messages=messages).json()["tokens"] == server.engine.tokenizer.encode(text)
    assert server.post("/tokenize").status_code == 400
    assert server.post("/detokenize", tokens=[-1]).status_code == 400
    assert server.http.get("/props").json()["context"] == 4096


def test_metrics_are_prometheus_text(server: Running) -> None:
    server.engine.metrics.requests_finished["stop"] += 2
    server.engine.metrics.time_to_first_token_seconds.observe(0.03)
    server.chat()
    families = {f.name: f for f in text_string_to_metric_families(server.http.get("/metrics").text)}
    assert families["ryzc_request_success"].samples[0].labels == {"model_name": "tiny", "finished_reason": "stop"}
    buckets = [s for s in families["ryzc_time_to_first_token_seconds"].samples if s.name.endswith("_bucket")]
    values = [sample.value for sample in buckets]
    assert values == sorted(values)
    assert buckets[-1].labels["le"] == "+Inf"
    counted = {(s.labels["path"], s.labels["status"]): s.value for s in families["ryzc_http_requests"].samples}
    assert counted["/v1/chat/completions", "200"] >= 1


def test_the_log_tells_no_prompts(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    from ryzc.runtime.server.log import log

    server = start(log_level="debug")
    log.level, log.form = "debug", "json"
    try:
        server.chat("my secret")
        server.chat("my secret", unknown=1)
        wait(lambda: server.service.http.open == 0)
    finally:
        log.level, log.form = "error", "text"
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert "secret" not in json.dumps(lines)
    told = [line for line in lines if line["event"] == "request"]
    assert (told[0]["status"], told[0]["model"], told[1]["status"]) == (200, "tiny", 400)
    assert told[0]["prompt"] > told[0]["cached"] > 0 < told[0]["generated"]


def test_a_request_that_takes_too_long(start: Start, tokenizer: Tokenizer) -> None:
    class Late(FakeEngine):
        def _choice(self, request: Any, index: int) -> None:
            request.outbox.put(Delta(index, "", (), (), "timeout"), self._bell)

    server = start(engine=Late(tokenizer))
    answer = server.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
    assert int(answer.headers["retry-after"]) >= 1
    assert '"code":"timeout"' in server.chat(stream=True).text


def test_a_number_in_a_path_that_is_none(server: Running) -> None:
    answer = server.http.get("/v1/responses/resp_1/input_items", params={"limit": "many"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


def test_what_is_not_served_is_not_asked_again(server: Running) -> None:
    assert server.post("/v1/embeddings").headers["x-should-retry"] == "false"
    assert "x-should-retry" not in server.post("/v1/chat/completions").headers


def test_what_a_tokenizer_knows(server: Running) -> None:
    told = server.http.get("/tokenizer_info").json()
    assert server.post("/tokenize", prompt=told["eos_token"], add_special_tokens=False).json()["count"] == 1
    assert "im_start" in told["chat_template"]
