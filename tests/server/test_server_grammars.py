"""Answers that must be JSON or calls: what a random model says under a grammar parses and fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import listen
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from ryzc.runtime.engine import Engine
from ryzc.runtime.server.config import Config
from ryzc.runtime.server.tools import families

TOOLS: Any = [
    {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"enum": ["Rom", "Köln"]}},
                                       "required": ["city"], "additionalProperties": False}},
    {"name": "now"},
]  # fmt: skip


@pytest.mark.parametrize("family", families(), ids=lambda module: module.__name__.rsplit(".", 1)[-1])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_grammar_allows_what_its_parser_reads(family: Any, parallel: bool) -> None:
    lark = family.grammar(TOOLS, parallel, json.dumps)
    assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark)) == ""
    assert ("*" in lark.split("call_0:")[0]) == parallel


@pytest.fixture(scope="module")
def http(bundle: Path) -> Iterator[httpx.Client]:
    """A server around the real engine, whose random model says anything that is allowed."""
    with Engine(bundle, context=2048, sequences=4, threads=1) as engine:
        server = listen(bundle, {"tiny": engine}, Config(port=0))
        yield server.http
        server.server.should_exit = True
        server.thread.join(10)


def _ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "Hi"}], "seed": 1, "max_tokens": 1500, **fields}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


LEAVES: Any = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["a", 1, None]},
        {"const": "é"},
        {"type": "integer", "minimum": 0, "maximum": 9},
    ]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2).map(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties),
                "additionalProperties": False,
            }
        )
        | inner.map(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2})
    ),
    max_leaves=4,
)


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """A validator of the few words that the schemas here have."""
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return value in schema["enum"]
    if schema["type"] == "object":
        return set(value) == set(schema["properties"]) and all(
            _fits(value[k], s) for k, s in schema["properties"].items()
        )
    if schema["type"] == "array":
        return 1 <= len(value) <= 2 and all(_fits(item, schema["items"]) for item in value)
    if schema["type"] == "integer":
        return type(value) is int and 0 <= value <= 9
    return value is None if schema["type"] == "null" else isinstance(value, bool)


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_json_fits_its_schema(http: httpx.Client, examples: int) -> None:
    @settings(max_examples=examples)
    @given(SCHEMAS, st.integers(0, 99))
    def check(schema: dict[str, Any], seed: int) -> None:
        format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
        choice = _ask(http, response_format=format_, seed=seed, temperature=1.5)
        assert choice["finish_reason"] == "stop"
        assert _fits(json.loads(choice["message"]["content"]), schema)

    check()


def test_a_completion_can_be_json_too(http: httpx.Client) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    body = {
        "prompt": "a",
        "max_tokens": 999,
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
    }
    text = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert all(isinstance(item, bool) for item in json.loads(text))


@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_must_be_made_is_made(http: httpx.Client, seed: int) -> None:
    tools = [{"type": "function", "function": tool} for tool in TOOLS[:1]]
    for choice_of_tool in ("required", {"type": "function", "function": {"name": "weather"}}):
        choice = _ask(http, tools=tools, tool_choice=choice_of_tool, parallel_tool_calls=False, seed=seed)
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Rom", "Köln")
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None


@pytest.mark.parametrize(
    "schema",
    [{"type": "nothing"}, {"$ref": "#/none"}, {"type": "string", "pattern": "("}, {"type": "object", "properties": 3}],
)
def test_a_schema_that_makes_no_sense(http: httpx.Client, schema: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}  # fmt: skip
    answer = http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format"), answer.text
