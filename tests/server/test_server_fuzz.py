"""Whatever a body holds, the answer is an answer or a refusal in the right shape: never a fault of the server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Running
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzc.runtime.server.anthropic_fields import MessagesFields
from ryzc.runtime.server.errors import KINDS
from ryzc.runtime.server.openai_chat import ChatFields
from ryzc.runtime.server.openai_completions import CompletionFields
from ryzc.runtime.server.response_fields import ResponseFields
from ryzc.runtime.server.utility import DetokenizeFields, TemplateFields, TokenizeFields

TEXT = st.text(max_size=12) | st.sampled_from(
    ["user", "assistant", "system", "tool", "auto", "function", "json_schema", "\ud800"]
)
NUMBERS = st.integers(-3, 30) | st.floats(-2, 3) | st.sampled_from([10**30, -1, 2**63, 1e300])
WORDS = [
    "role",
    "content",
    "type",
    "text",
    "name",
    "function",
    "arguments",
    "id",
    "tool_calls",
    "tool_call_id",
    "parameters",
    "json_schema",
    "schema",
    "input",
]
VALUES: Any = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=10,
)
MESSAGE: Any = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXT | st.lists(
        st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "image_url", "tool_result", "tool_use"])},
                              optional={"text": TEXT, "id": TEXT, "input": VALUES, "tool_use_id": TEXT}), max_size=2)},
    optional={"tool_call_id": TEXT, "name": TEXT, "tool_calls": VALUES, "reasoning_content": TEXT},
)  # fmt: skip
TOOL: Any = st.fixed_dictionaries(
    {"type": st.just("function")},
    optional={
        "function": st.fixed_dictionaries({"name": st.sampled_from(["f", "g", ""])}, optional={"parameters": VALUES}),
        "name": st.just("f"),
        "input_schema": VALUES,
    },
)
LIKELY: dict[str, Any] = {
    "messages": st.lists(MESSAGE, max_size=3),
    "input": TEXT | st.lists(MESSAGE, max_size=2),
    "prompt": TEXT | st.lists(st.integers(0, 300), max_size=5) | st.lists(TEXT, max_size=3),
    "tools": st.lists(TOOL, max_size=2),
    "max_tokens": st.integers(1, 20),
    "n": st.integers(1, 3),
    "stream": st.booleans(),
    "model": st.just("tiny"),
    "tokens": st.lists(st.integers(-1, 300), max_size=4),
}
SURFACES: dict[str, Any] = {
    "/v1/chat/completions": ChatFields,
    "/v1/completions": CompletionFields,
    "/v1/responses": ResponseFields,
    "/v1/messages": MessagesFields,
    "/tokenize": TokenizeFields,
    "/detokenize": DetokenizeFields,
    "/apply-template": TemplateFields,
}


def bodies(kind: Any) -> Any:
    """Objects with the surface's fields, mostly of the right kind, and now and then something else."""
    fields = [*kind.model_fields, *getattr(kind, "unsupported", {})]
    likely = {name: LIKELY[name] for name in fields if name in LIKELY}
    odd = st.dictionaries(st.sampled_from(fields) | st.text(max_size=5), VALUES, max_size=2)
    return st.tuples(st.fixed_dictionaries({}, optional=likely), odd).map(lambda parts: {**parts[0], **parts[1]})


@pytest.mark.parametrize("path", SURFACES)
def test_any_body_gets_an_answer_or_a_refusal(server: Running, path: str) -> None:
    server.engine.say = "Hm. <tool_call>{"
    statuses: set[int] = set()

    @settings(max_examples=60)
    @given(bodies(SURFACES[path]))
    def check(body: dict[str, Any]) -> None:
        data = json.dumps(body)
        answer = server.http.post(path, content=data, headers={"content-type": "application/json"})
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 400, 404, 501), (answer.status_code, answer.text)
        if answer.status_code == 200:
            assert "internal_error" not in answer.text
            return
        error = answer.json()["error"]
        assert error["message"]
        assert error["type"] in {"invalid_request_error", *KINDS.values()} or answer.status_code == 501

    check()
    assert {200, 400} <= statuses
    assert server.service.models.loaded["tiny"].leases == 0


@settings(max_examples=40)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_refused(shared: Running, data: bytes) -> None:
    answer = shared.http.post("/v1/chat/completions", content=data, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
