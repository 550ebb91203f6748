"""Whatever a model says under a schema parses and fits it; whatever it calls under a choice of tools can be read.

The model is random, so that nothing but the grammar can make it right. Marks that close something are made more likely,
or texts without a bound would go on for long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import tiny_chat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from conformance import json_schemas, serving
from conformance.json_schemas import objects
from ryzc.runtime.engine import Engine
from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.server.constraints import Constraints
from ryzc.runtime.server.tools import Call, families

CLOSING = {'"': 6.0, "}": 3.0, "]": 3.0, ",": 2.0, "@": 5.0, ".": 2.0}
"""Biases of what ends something."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    bundle = tiny_chat.write(tmp_path_factory.mktemp("structured") / "tiny.ryzc", context=4096)
    with Engine(bundle, context=4096, sequences=2, threads=1) as engine:
        yield engine


class Speaker:
    """Says what a grammar allows, and nothing that was planned."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.constraints = Constraints(engine.tokenizer, engine.tokenizer.vocab_size)
        marks = {engine.tokenizer.encode(mark, add_special=False)[0]: bias for mark, bias in CLOSING.items()}
        self.bias = marks | dict.fromkeys(engine.tokenizer.eos_ids, 8.0)

    def say(self, grammar: Any, seed: int) -> str:
        params = SamplingParams(temperature=1.5, top_k=0, top_p=1, seed=seed, logit_bias=self.bias)
        stream = self.engine.submit("Hi", sampling=params, max_tokens=4000, grammar=grammar, raw=True)
        (choice,) = stream.collect()
        assert choice.finish_reason == "stop", choice.text
        return choice.text


@pytest.fixture(scope="module")
def speaker(engine: Engine) -> Speaker:
    return Speaker(engine)


def check(text: str, schema: dict[str, Any]) -> None:
    """A text against a schema."""
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))


@pytest.mark.slow
def test_json_fits_its_schema(speaker: Speaker) -> None:
    seen = set()

    @settings(max_examples=750, suppress_health_check=list(HealthCheck))
    @given(json_schemas.ANY, st.integers(0, 999))
    def fits(schema: dict[str, Any], seed: int) -> None:
        seen.add(json.dumps(schema))
        check(speaker.say(speaker.constraints.json_schema(schema, "response_format"), seed), schema)

    fits()
    assert len(seen) >= 500


FUNCTIONS = st.lists(
    st.tuples(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,11}", fullmatch=True), objects(json_schemas.SCHEMAS)),
    min_size=1,
    max_size=3,
    unique_by=lambda function: function[0],
).map(lambda functions: [{"name": name, "parameters": schema} for name, schema in functions])


@pytest.mark.slow
@pytest.mark.parametrize("family", families(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_calls_can_be_read(speaker: Speaker, family: Any) -> None:
    @settings(max_examples=100, suppress_health_check=list(HealthCheck))
    @given(FUNCTIONS, st.booleans(), st.integers(0, 999), st.lists(st.integers(1, 30), max_size=20))
    def read(tools: list[dict[str, Any]], parallel: bool, seed: int, cuts: list[int]) -> None:
        lark = family.grammar(tools, parallel, speaker.constraints.mark)
        said = speaker.say(speaker.constraints.lark(lark, "tools"), seed)
        calls = _calls(family.Parser(), said, cuts)
        assert len(calls) == 1 or parallel
        schemas = {tool["name"]: tool["parameters"] for tool in tools}
        for call in calls:
            check(call.arguments, schemas[call.name])

    read()


def _calls(parser: Any, text: str, cuts: list[int]) -> list[Call]:
    """The calls in a text that comes in pieces; it holds nothing else."""
    found, at = [], 0
    for cut in (*cuts, len(text)):
        found += parser.push(text[at : at + cut])
        at += cut
    found += parser.flush()
    calls = [item for item in found if isinstance(item, Call)]
    assert calls, text
    assert not "".join(item for item in found if isinstance(item, str)).strip(), text
    return calls


SURFACES: dict[str, Any] = {
    "/v1/chat/completions": (
        lambda schema: {
            "messages": USER,
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        },
        lambda answer: answer["choices"][0]["message"]["content"],
    ),
    "/v1/completions": (
        lambda schema: {"prompt": "Hi", "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        lambda answer: answer["choices"][0]["text"],
    ),
    "/v1/responses": (
        lambda schema: {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}},
        lambda answer: answer["output"][0]["content"][0]["text"],
    ),
    "/v1/messages": (
        lambda schema: {"messages": USER, "output_config": {"format": {"type": "json_schema", "schema": schema}}},
        lambda answer: answer["content"][0]["text"],
    ),
}
"""How each asks for a schema, and where the answer stands."""

USER = [{"role": "user", "content": "Hi"}]
BOUNDED = json_schemas.arrays(
    st.sampled_from(
        [{"type": "boolean"}, {"enum": ["a", 1, None]}, {"type": "string", "pattern": "^[a-z]{2,6}$"},
         {"type": "integer", "minimum": 0, "maximum": 9}, {"type": "string", "format": "date"}]
    )
).map(lambda schema: {"maxItems": 3, **schema})  # fmt: skip


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving.tiny() as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("path", SURFACES)
def test_every_surface_keeps_to_a_schema(http: httpx.Client, path: str) -> None:
    ask, find = SURFACES[path]

    @settings(max_examples=15)
    @given(BOUNDED, st.integers(0, 99))
    def fits(schema: dict[str, Any], seed: int) -> None:
        most = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
        answer = http.post(path, json={**ask(schema), most: 2000, "seed": seed, "temperature": 1.5})
        assert answer.status_code == 200, answer.text
        check(find(answer.json()), schema)

    fits()
