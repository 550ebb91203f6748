"""``/v1/messages``, by Anthropic's own client."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from conftest import Running

CALLING = 'Look:\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>'
WEATHER: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
USER: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def client(shared: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=shared.url, api_key="none", max_retries=0)


def test_an_answer_in_one_piece(server: Running, client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="tiny",
        max_tokens=50,
        messages=USER,
        system=[{"type": "text", "text": "Be brief."}],
        extra_body={"top_k": 5},
    )
    (block,) = answer.content
    assert block.type == "text"
    assert (block.text, answer.stop_reason, answer.role) == ("Hello world!", "end_turn", "assistant")
    assert answer.usage.cache_read_input_tokens == 3
    assert answer.usage.input_tokens == len(server.engine.requests[-1].prompt) - 3
    assert server.prompt().startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    assert server.engine.requests[-1].options.sampling.top_k == 5


def test_a_stream_says_the_same(server: Running, client: anthropic.Anthropic) -> None:
    server.engine.say = "<think>Hm.</think>\n\n" + CALLING
    with client.messages.stream(model="tiny", max_tokens=200, messages=USER, tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    thought, text, call = final.content
    assert thought.type == "thinking"
    assert thought.thinking == "Hm."
    assert text.type == "text"
    assert text.text == "Look:\n"
    assert call.type == "tool_use"
    assert call.input == {"city": "Rom"}
    assert final.stop_reason == "tool_use"
    assert final.usage.output_tokens > 5


def test_an_agents_loop(server: Running, client: anthropic.Anthropic) -> None:
    server.engine.say = CALLING
    messages: list[Any] = list(USER)
    answer = client.messages.create(model="tiny", max_tokens=200, messages=messages, tools=[WEATHER])
    call = answer.content[-1]
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sun"}]}
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    server.engine.say = "No."
    answer = client.messages.create(model="tiny", max_tokens=200, messages=messages, tools=[WEATHER])
    told = '<tool_call>{"name": "weather", "arguments": {"city": "Rom"}}</tool_call><|im_end|>\n<|im_start|>tool\nsun'
    assert told in server.prompt()


def test_ends(server: Running, client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(model="tiny", max_tokens=50, messages=USER, stop_sequences=["world"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "world")
    cut = client.messages.create(model="tiny", max_tokens=1, messages=USER)
    assert cut.stop_reason == "max_tokens"


def test_an_answer_is_continued(server: Running, client: anthropic.Anthropic) -> None:
    client.messages.create(model="tiny", max_tokens=9, messages=[*USER, {"role": "assistant", "content": "It is"}])
    assert server.prompt().endswith("<|im_start|>assistant\nIt is")


def test_tokens_are_counted(server: Running, client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="tiny", messages=USER).input_tokens
    client.messages.create(model="tiny", max_tokens=9, messages=USER)
    assert counted == len(server.engine.requests[-1].prompt)


def test_errors_have_its_shape(server: Running, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as raised:
        client.messages.create(model="tiny", max_tokens=0, messages=USER)
    assert raised.value.body == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "'max_tokens': input should be greater than or equal to 1",
        },
        "request_id": raised.value.response.headers["x-request-id"],
    }
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="none", max_tokens=5, messages=USER)
    server.engine.fail_after = 2
    with pytest.raises(anthropic.APIError):
        client.messages.create(model="tiny", max_tokens=5, messages=USER)
    with pytest.raises(anthropic.APIError), client.messages.stream(model="tiny", max_tokens=5, messages=USER) as stream:
        stream.get_final_message()


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": None},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]},
        {"mcp_servers": [{"type": "url"}]},
        {"container": "c"},
        {"tool_choice": {"type": "any"}},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"stop_sequences": [""]},
        {"frequency_penalty": 1},
    ],
)
def test_what_makes_no_sense_is_refused(server: Running, fields: dict[str, Any]) -> None:
    answer = server.http.post("/v1/messages", json={"max_tokens": 5, "messages": USER, **fields})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), answer.text


def test_a_tool_runner_goes_on_without_threads(server: Running, client: anthropic.Anthropic) -> None:
    asked = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: where.
        """
        asked.append(city)
        server.engine.say = "Sunny."
        return "sun"

    server.engine.say = CALLING
    runner = client.beta.messages.tool_runner(model="tiny", max_tokens=90, messages=USER, tools=[weather])  # type: ignore[arg-type]
    answers = [message.content[-1] for message in runner]
    assert asked == ["Rom"]
    assert [answer.type for answer in answers] == ["tool_use", "text"]
    assert "sun" in server.prompt()
    refused = server.post("/v1/messages", max_tokens=5, messages=USER, thread={"type": "create"}).json()["error"]
    assert refused["details"]["error_code"] == "thread_unsupported_request"
