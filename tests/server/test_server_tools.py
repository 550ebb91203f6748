"""Tool calls: every family's way of writing them, in one piece and in pieces of any size."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from conftest import Running
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzc.runtime.server.tools import Call, families, family_for, generic, granite, hermes, llama3, mistral

MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>", "<|python_tag|>", '"', "\\")
"""An agent that works on a parser of calls writes them into files."""

WORDS = st.lists(st.sampled_from(MARKS) | st.text(max_size=4), max_size=4).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)
CALLS = st.lists(st.tuples(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), ARGUMENTS), min_size=1, max_size=3)


def _objects(calls: list[tuple[str, dict[str, Any]]], field: str = "arguments") -> list[str]:
    return [json.dumps({"name": name, field: arguments}, ensure_ascii=False) for name, arguments in calls]


WRITERS: dict[str, Any] = {
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in _objects(calls)),
    "llama3": lambda calls: "; ".join(_objects(calls, "parameters")),
    "mistral": lambda calls: "[TOOL_CALLS][" + ", ".join(_objects(calls)) + "]",
    "mistral-named": lambda calls: "".join(f"[TOOL_CALLS]{n}[ARGS]{json.dumps(a)}" for n, a in calls),
    "granite": lambda calls: "<|tool_call|>[" + ", ".join(_objects(calls)) + "]",
    "generic": lambda calls: "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in _objects(calls)),
    "generic-list": lambda calls: "<tool_call>[" + ", ".join(_objects(calls)) + "]</tool_call>",
    "generic-bare": lambda calls: "\n".join(_objects(calls)),
}
MODULES = {"hermes": hermes, "llama3": llama3, "mistral": mistral, "granite": granite, "generic": generic}


def parse(module: Any, text: str, cuts: list[int]) -> tuple[str, list[Call]]:
    """The text and calls that a parser finds in pieces."""
    parser, found, at = module.Parser(), [], 0
    for cut in [*cuts, len(text)]:
        found += parser.push(text[at : at + cut])
        at += cut
        if at >= len(text):
            break
    found += parser.push(text[at:])
    found += parser.flush()
    return "".join(f for f in found if isinstance(f, str)), [f for f in found if isinstance(f, Call)]


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=25)
@given(calls=CALLS, cuts=st.lists(st.integers(1, 9), max_size=60))
def test_calls_are_found_however_they_come(
    writer: str, calls: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    text, found = parse(MODULES[writer.partition("-")[0]], WRITERS[writer](calls), cuts)
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    assert not text.strip()


@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=50)
@given(
    text=st.text(st.sampled_from('<tool_cal/>[TOOLCS] {}"name:argu,\n|é'), max_size=60),
    cuts=st.lists(st.integers(1, 5)),
)
def test_what_is_no_call_stays_text(name: str, text: str, cuts: list[int]) -> None:
    said, calls = parse(MODULES[name], text, cuts)
    if not calls:
        assert said == text


@pytest.mark.parametrize("name", MODULES)
def test_text_does_not_wait(name: str) -> None:
    parser = MODULES[name].Parser()
    assert parser.push("The answer is ") == ["The answer is "]
    assert parser.push("4.") == ["4."]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ messages }}", "generic"),
        ("", "generic"),
        ("{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("{% if tools %}<|start_header_id|>ipython{% endif %}", "llama3"),
        ("{% if tools %}[AVAILABLE_TOOLS][TOOL_CALLS]{% endif %}", "mistral"),
        ("{% if tools %}<|tool_call|>{% endif %}", "granite"),
    ],
)
def test_the_template_tells_the_family(template: str, name: str) -> None:
    assert family_for(template).name == name
    assert family_for(template).prompted == (name == "generic")


def test_a_family_is_one_file() -> None:
    assert {module.__name__.rsplit(".", 1)[-1] for module in families()} == set(MODULES)


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLING = 'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


@pytest.fixture(scope="module")
def client(shared: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0)


def test_an_agents_loop(server: Running, client: openai.OpenAI) -> None:
    server.engine.say = CALLING
    messages: list[Any] = [{"role": "user", "content": "Rain in Köln?"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Köln"})
    assert '"description": "Tells the weather."' in server.prompt()
    server.engine.say = "It rains."
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "It rains."
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>' in server.prompt()


def test_a_call_in_a_stream(server: Running, client: openai.OpenAI) -> None:
    server.engine.say = CALLING + "\n" + CALLING[13:]
    messages: Any = [{"role": "user", "content": "Rain?"}]
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER], stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1]
    assert len({call.id for call in calls}) == 2
    assert all(call.function and json.loads(call.function.arguments or "") == {"city": "Köln"} for call in calls)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Let me look.\n"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tools_that_may_not_be_called(server: Running) -> None:
    server.engine.say = CALLING
    answer = server.chat(tools=[WEATHER], tool_choice="none").json()
    assert answer["choices"][0]["message"]["content"] == CALLING
    assert "weather" not in server.prompt()


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [WEATHER, WEATHER]},
        {"tool_choice": "required", "response_format": {"type": "json_object"}},
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "no"}}]}
            ]
        },
    ],
)
def test_tools_that_make_no_sense(server: Running, fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [WEATHER], **fields}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text


def test_a_model_that_knows_no_tools_is_told(server: Running) -> None:
    loaded = server.service.models.loaded["tiny"]
    before = loaded.family
    loaded.family = family_for("")
    try:
        server.engine.say = '{"name": "weather", "arguments": {"city": "Rom"}}'
        call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "sun"},
        ]
        answer = server.post("/v1/chat/completions", messages=messages, tools=[WEATHER]).json()
        assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
        prompt = server.prompt()
        assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
        assert '"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>' in prompt
        assert "<|im_start|>user\n<tool_response>\nsun\n</tool_response>" in prompt
        assert "[tools:" not in prompt
    finally:
        loaded.family = before
