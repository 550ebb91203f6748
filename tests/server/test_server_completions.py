"""``/v1/completions``."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from conftest import Running


@pytest.fixture(scope="module")
def client(shared: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0)


def test_a_text_is_continued_as_it_is(server: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="Once", seed=3)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello world!", "stop")
    request = server.engine.requests[-1]
    assert request.prompt == server.engine.tokenizer.encode("Once")
    assert (request.options.max_tokens, request.options.sampling.seed) == (16, 3)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(request.prompt)


def test_a_stream_says_the_same(server: Running, client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(model="tiny", prompt="Once", stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "Hello world!"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None


@pytest.mark.parametrize("prompt", [["ab", "cd"], [[5, 6], [7, 8, 9]]])
@pytest.mark.parametrize("stream", [False, True])
def test_many_prompts(server: Running, client: openai.OpenAI, prompt: Any, stream: bool) -> None:
    def say(request: Any, index: int) -> str:
        return f"{len(request.prompt)}:{request.prompt[-1]}:{index}"

    server.engine.say = say
    expected = [say(type("R", (), {"prompt": ids})(), j) for ids in map(_ids(server), prompt) for j in range(2)]
    texts = [""] * 4
    if stream:
        for chunk in client.completions.create(model="tiny", prompt=prompt, n=2, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        answer = client.completions.create(model="tiny", prompt=prompt, n=2)
        texts = [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(len(ids) for ids in map(_ids(server), prompt))
    assert texts == expected


def _ids(server: Running) -> Any:
    return lambda prompt: server.engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt


def test_echo_with_logprobs_scores_a_prompt(server: Running) -> None:
    # What lm-eval asks of local-completions.
    ids = server.engine.tokenizer.encode("hello world")
    answer = server.post("/v1/completions", prompt=[ids], max_tokens=1, logprobs=1, echo=True, temperature=0)
    choice = answer.json()["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("hello world")
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(ids) + 1
    assert logprobs["token_logprobs"] == [None] + [-0.5] * len(ids)
    assert logprobs["top_logprobs"][0] is None
    for token, top, offset in list(
        zip(logprobs["tokens"], logprobs["top_logprobs"], logprobs["text_offset"], strict=True)
    )[1:]:
        assert token == max(top, key=top.get)
        assert choice["text"][offset:].startswith(token)


def test_halves_of_characters_have_a_spelling(server: Running) -> None:
    server.engine.say = "é"
    logprobs = server.post("/v1/completions", prompt="a", logprobs=0).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "</s>"]
    assert [list(top) for top in logprobs["top_logprobs"]] == [[token] for token in logprobs["tokens"]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(server: Running, fields: dict[str, Any], param: str) -> None:
    answer = server.http.post("/v1/completions", json={"prompt": "a", **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].split(".")[0] == param


def test_nothing_but_the_prompt(server: Running) -> None:
    answer = server.post("/v1/completions", prompt="a", max_tokens=0, echo=True)
    assert answer.status_code == 200
    assert server.engine.requests[-1].options.max_tokens == 0
