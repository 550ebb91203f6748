"""``/v1/chat/completions``, by OpenAI's own client and by hand."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from conftest import Running

from ryzc.runtime.request import Options


@pytest.fixture(scope="module")
def client(shared: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0)


USER: Any = [{"role": "user", "content": "Hi"}]


def test_an_answer_in_one_piece(server: Running, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=USER)
    assert answer.choices[0].message.content == "Hello world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.engine.requests[-1].prompt)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert server.prompt() == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_stream_says_the_same(server: Running, client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="tiny", messages=USER, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello world!"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_ends_with_done(server: Running) -> None:
    lines = server.chat(stream=True).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert "usage" not in json.loads(lines[0].removeprefix("data: "))


def test_every_parameter_reaches_the_engine(server: Running) -> None:
    answer = server.chat(
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        seed=-1,
        max_tokens=9,
        max_completion_tokens=7,
        stop=["END", "FIN"],
        stop_token_ids=[5],
        ignore_eos=True,
        n=2,
        repetition_penalty=1.1,
        logprobs=True,
        top_logprobs=3,
        cache_salt="salt",
        priority=2,
        user="somebody",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
    )
    assert answer.status_code == 200, answer.text
    options = server.engine.requests[-1].options
    assert (options.max_tokens, options.stop, options.stop_ids) == (7, ("END", "FIN"), frozenset([5]))
    assert (options.n, options.logprobs, options.salt, options.priority, options.ignore_eos) == (2, 3, "salt", 2, True)
    sampling = options.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
    assert (sampling.seed, sampling.repeat_penalty, sampling.repeat_last_n) == (2**64 - 1, 1.1, -1)
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1]


def test_a_request_that_says_nothing_gets_the_defaults(server: Running) -> None:
    server.chat()
    options = server.engine.requests[-1].options
    assert options == Options(timeout=600.0)


def test_what_is_beyond_the_last_token_is_cut(server: Running) -> None:
    choice = server.chat(max_tokens=2).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert "Hello world!".startswith(choice["message"]["content"])
    stopped = server.chat(stop="world").json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("Hello ", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_of_every_token(server: Running, client: openai.OpenAI, stream: bool) -> None:
    server.engine.say = "é"  # two tokens, of which the first completes no character
    if stream:
        chunks = client.chat.completions.create(model="tiny", messages=USER, logprobs=True, top_logprobs=2, stream=True)
        entries = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or ()]
    else:
        answer = client.chat.completions.create(model="tiny", messages=USER, logprobs=True, top_logprobs=2)
        assert answer.choices[0].logprobs is not None
        entries = answer.choices[0].logprobs.content or []
    assert bytes(b for entry in entries[:2] for b in entry.bytes or ()).decode() == "é"
    assert len(entries) == 3
    assert entries[-1].token == "</s>"
    assert [len(entry.top_logprobs) for entry in entries] == [2, 2, 2]
    assert entries[0].logprob == entries[0].top_logprobs[0].logprob == -0.5


def test_choices_of_a_stream_carry_their_number(server: Running) -> None:
    server.engine.say = lambda _, index: "abc"[index] * 3
    events = [json.loads(line[6:]) for line in server.chat(n=3, stream=True).text.split("\n\n")[:-2]]
    texts = ["", "", ""]
    for event in events:
        texts[event["choices"][0]["index"]] += event["choices"][0]["delta"].get("content", "")
    assert texts == ["aaa", "bbb", "ccc"]


def test_text_parts_and_roles(server: Running) -> None:
    answer = server.post(
        "/v1/chat/completions",
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Hi", "name": "ann"},
            {"role": "assistant", "content": "Yes?", "refusal": None, "annotations": []},
            {"role": "user", "content": [{"type": "text", "text": "Well"}]},
        ],
    )
    assert answer.status_code == 200, answer.text
    assert server.prompt() == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nWell<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_last_message_is_continued(server: Running) -> None:
    messages = [*USER, {"role": "assistant", "content": "It is"}]
    assert server.post("/v1/chat/completions", messages=messages, continue_final_message=True).status_code == 200
    assert server.prompt().endswith("<|im_start|>assistant\nIt is")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temprature": 1}, "temprature", "unknown_parameter"),
    ({"temperature": -1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"n": 17}, "n", "invalid_value"),
    ({"stop": ["a", ""]}, "stop", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
    ({"audio": {"voice": "a"}}, "audio", "unsupported_parameter"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "Hi"}, "messages", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "invalid_value"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages.0.x", "unknown_parameter"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.tool_call_id", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "messages.0.content.0",
        "unsupported_content",
    ),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "invalid_value"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "invalid_value"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "invalid_value"),
    ({"model": "other"}, "model", "model_not_found"),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
def test_what_makes_no_sense_is_refused_by_name(server: Running, fields: dict[str, Any], param: str, code: str) -> None:
    before = len(server.engine.requests)
    answer = server.http.post("/v1/chat/completions", json={"messages": USER, **fields})
    error = answer.json()["error"]
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert code != "unknown_parameter" or param in error["message"]
    assert len(server.engine.requests) == before


def test_null_is_not_given(server: Running) -> None:
    nothing = dict.fromkeys(["temperature", "tools", "functions", "stop", "stream", "model", "audio", "max_tokens"])
    assert server.chat(**nothing).status_code == 200


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"a"', b'{"a": NaN}', b"[" * 100_000, b"\xff\xfe"])
def test_a_body_that_is_no_object(server: Running, data: bytes) -> None:
    answer = server.http.post("/v1/chat/completions", content=data, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_body_of_another_type(server: Running) -> None:
    answer = server.http.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_a_prompt_that_does_not_fit(server: Running, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 5000}])
    assert raised.value.code == "context_length_exceeded"
    assert "4096" in raised.value.message


def test_a_step_that_fails(server: Running, client: openai.OpenAI) -> None:
    server.engine.fail_after = 2
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="tiny", messages=USER)
    with pytest.raises(openai.APIError, match="server"):
        list(client.chat.completions.create(model="tiny", messages=USER, stream=True))


def test_thoughts_are_told_apart(server: Running) -> None:
    server.engine.say = "<think>\nLet me see.</think>\n\nIt is 4."
    answer = server.chat().json()
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("\nLet me see.", "It is 4.")
    assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    parts: dict[str, str] = {}
    for line in server.chat(stream=True).text.split("\n\n")[:-2]:
        for name, value in json.loads(line[6:])["choices"][0]["delta"].items():
            parts[name] = parts.get(name, "") + value
    assert parts == {"role": "assistant", "content": "It is 4.", "reasoning_content": "\nLet me see."}
    server.chat(reasoning_effort="none")
    assert server.prompt().endswith("<think>\n\n</think>\n\n")


def test_a_bundle_says_how_to_sample(server: Running) -> None:
    loaded = server.service.models.loaded["tiny"]
    before = loaded.defaults
    loaded.defaults = {"temperature": 0.2, "repetition_penalty": 1.05}
    try:
        server.chat(temperature=0.3)
        sampling = server.engine.requests[-1].options.sampling
        assert (sampling.temperature, sampling.repeat_penalty, sampling.repeat_last_n) == (0.3, 1.05, 64)
    finally:
        loaded.defaults = before
