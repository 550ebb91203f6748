"""``/v1/responses``, by OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from conftest import Running

CALLING = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>'
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture(scope="module")
def client(shared: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0)


def test_an_answer_in_one_piece(server: Running, client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="Hi", instructions="Be brief.", metadata={"a": "b"})
    assert (answer.output_text, answer.status, answer.error) == ("Hello world!", "completed", None)
    assert answer.metadata == {"a": "b"}
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert server.prompt().startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")


def test_a_stream_tells_its_parts_in_order(server: Running, client: openai.OpenAI) -> None:
    server.engine.say = "<think>Hm.</think>\n\nLook: " + CALLING
    events = list(client.responses.create(model="tiny", input="Hi", stream=True, tools=[WEATHER]))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    order = [event.type for i, event in enumerate(events) if not i or events[i - 1].type != event.type]
    part = ["response.output_item.added", "response.content_part.added"]
    end = ["response.content_part.done", "response.output_item.done"]
    assert order == [
        "response.created",
        "response.in_progress",
        *part, "response.reasoning_text.delta", "response.reasoning_text.done", *end,
        *part, "response.output_text.delta", "response.output_text.done", *end,
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    final = events[-1]
    assert final.type == "response.completed"
    thought, message, call = final.response.output
    assert (thought.type, message.type, call.type) == ("reasoning", "message", "function_call")
    assert final.response.output_text == "Look: "
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Rom"}
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert added == [thought.id, message.id, call.id]
    assert final.response.usage is not None
    assert final.response.usage.output_tokens_details.reasoning_tokens > 0


def test_the_clients_own_helper_agrees(server: Running, client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input="Hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == "Hello world!"


def test_an_agents_loop(server: Running, client: openai.OpenAI) -> None:
    server.engine.say = CALLING
    items: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "Rain?"}]}]
    answer = client.responses.create(model="tiny", input=items, tools=[WEATHER])
    (call,) = answer.output
    assert call.type == "function_call"
    items += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}]
    server.engine.say = "No."
    assert client.responses.create(model="tiny", input=items, tools=[WEATHER]).output_text == "No."
    told = '<tool_call>{"name": "weather", "arguments": {"city": "Rom"}}</tool_call><|im_end|>\n<|im_start|>tool\nsun'
    assert told in server.prompt()


def test_a_response_follows_another(server: Running, client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="One", instructions="Be brief.")
    client.responses.create(model="tiny", input="Two", previous_response_id=first.id)
    assert server.prompt() == (
        "<|im_start|>user\nOne<|im_end|>\n<|im_start|>assistant\nHello world!<|im_end|>\n"
        "<|im_start|>user\nTwo<|im_end|>\n<|im_start|>assistant\n"
    )
    assert client.responses.retrieve(first.id).output_text == "Hello world!"
    (item,) = client.responses.input_items.list(first.id).data
    assert item.type == "message"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="forgotten"):
        client.responses.create(model="tiny", input="Two", previous_response_id=first.id)


def test_nothing_is_kept_that_should_not_be(client: openai.OpenAI, server: Running) -> None:
    answer = client.responses.create(model="tiny", input="Hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_tokens_are_counted(server: Running, client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="tiny", input="Hi", instructions="Be brief.")
    client.responses.create(model="tiny", input="Hi", instructions="Be brief.")
    assert counted.input_tokens == len(server.engine.requests[-1].prompt)


def test_an_answer_that_is_cut(server: Running, client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="Hi", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    (message,) = answer.output
    assert message.type == "message"
    assert message.status == "incomplete"


def test_logprobs(server: Running, client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="Hi", include=["message.output_text.logprobs"], top_logprobs=2)
    content: Any = answer.output[0]
    assert len(content.content[0].logprobs) >= 5
    assert len(content.content[0].logprobs[0].top_logprobs) == 2


def test_a_step_that_fails(server: Running, client: openai.OpenAI) -> None:
    server.engine.fail_after = 2
    events = list(client.responses.create(model="tiny", input="Hi", stream=True))
    assert events[-1].type == "response.failed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input.0.type"),
        ({"input": [{"role": "user"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]}, "input.0.content.0"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"nothing": 1}, "nothing"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(server: Running, fields: dict[str, Any], param: str) -> None:
    answer = server.http.post("/v1/responses", json={"input": "Hi", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
