"""The server around a real engine and a real, if tiny, bundle: started by ``ryzc serve`` as a user does."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from listening import Listening
from prometheus_client.parser import text_string_to_metric_families

from ryzc.runtime.engine import Engine

USER: Any = [{"role": "user", "content": "hello world"}]


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    """Where ``ryzc serve`` listens."""
    arguments = ["-m", "ryzc", "serve", f"one={bundle}", f"two={bundle}", "--port", "0", "-c", "512", "-t", "1"]
    with Listening(arguments, {"RYZC_PARALLEL": "4"}) as server:
        yield server.url
        assert server.stop() == 0


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_it_says_what_the_engine_says(bundle: Path, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="one", messages=USER, seed=7, max_tokens=20, temperature=1)
    with Engine(bundle, context=512, sequences=1, threads=1) as engine:
        from ryzc.runtime.sampling import SamplingParams

        expected = engine.submit(USER, sampling=SamplingParams(temperature=1, seed=7), max_tokens=20).collect()
    assert answer.choices[0].message.content == expected[0].text
    stream = client.chat.completions.create(
        model="two", messages=USER, seed=7, max_tokens=20, temperature=1, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected[0].text


def test_a_prompt_is_found_again(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "once upon a time " * 10}]
    cached = []
    for _ in range(2):
        usage = client.chat.completions.create(model="one", messages=long, max_tokens=1).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0
    assert cached[1] is not None
    assert 32 <= cached[1] < usage.prompt_tokens


def test_scores_of_a_prompt(url: str) -> None:
    body = {"model": "one", "prompt": "hello world", "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    logprobs = httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["tokens"][-1] == max(logprobs["top_logprobs"][-1], key=logprobs["top_logprobs"][-1].get)
    nothing = {**body, "max_tokens": 0}
    choice = httpx.post(f"{url}/v1/completions", json=nothing).json()["choices"][0]
    assert choice["text"] == "hello world"
    assert len(choice["logprobs"]["tokens"]) == len(logprobs["tokens"]) - 1


def test_penalties_and_biases_work(client: openai.OpenAI) -> None:
    def said(**fields: Any) -> str:
        answer = client.chat.completions.create(model="one", messages=USER, max_tokens=12, temperature=0, **fields)
        return answer.choices[0].message.content or ""

    assert said(logit_bias={"70": 100}) == said(logit_bias={"70": 100})
    assert len(set(said(logit_bias={"70": 100}))) == 1
    assert said(presence_penalty=2) or said(frequency_penalty=2) is not None


def test_many_at_once_agree_with_one_alone(client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        answer = client.chat.completions.create(
            model="one", messages=[{"role": "user", "content": f"number {number % 4}"}], seed=number % 4, max_tokens=30
        )
        return answer.choices[0].message.content or ""

    alone = [ask(number) for number in range(4)]
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(ask, range(32)))
    assert together == alone * 8


def test_a_context_that_is_full(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="one", messages=[{"role": "user", "content": "x" * 600}])
    assert raised.value.code == "context_length_exceeded"
    answer = client.chat.completions.create(
        model="one", messages=[{"role": "user", "content": "x" * 400}], extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"


def test_metrics_agree_with_what_a_client_counts(url: str, client: openai.OpenAI) -> None:
    def read() -> defaultdict[str, float]:
        families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
        found = {s.name: s.value for f in families for s in f.samples if s.labels.get("model_name") == "two"}
        return defaultdict(float, found)  # a model that nobody asked yet has no figures

    before = read()
    tokens = [0, 0]
    for number in range(3):
        usage = client.chat.completions.create(
            model="two", messages=[{"role": "user", "content": f"count {number}"}], max_tokens=7, seed=1
        ).usage
        assert usage is not None
        tokens = [tokens[0] + usage.prompt_tokens, tokens[1] + usage.completion_tokens]
    after = read()
    assert after["ryzc_prompt_tokens_total"] - before["ryzc_prompt_tokens_total"] == tokens[0]
    assert after["ryzc_generation_tokens_total"] - before["ryzc_generation_tokens_total"] == tokens[1]
    name = "ryzc_time_to_first_token_seconds_count"
    assert after[name] - before[name] == 3


def test_embedded_nulls_and_strange_texts(url: str) -> None:
    kind = {"content-type": "application/json"}
    for text in ("\0", "\ud800", "🙂" * 20, "<|im_end|>", "\u2028"):
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        prompt = httpx.post(f"{url}/apply-template", content=json.dumps(body), headers=kind).json()["prompt"]
        assert text.replace("\ud800", "\ufffd") in prompt
        answer = httpx.post(f"{url}/v1/chat/completions", content=json.dumps(body | {"max_tokens": 3}), headers=kind)
        assert answer.status_code == 200, answer.text
