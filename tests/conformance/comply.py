"""``llm-comply``: chat, responses and messages against the providers' schemas; asked of a model that makes sense."""

from __future__ import annotations

import json

from conformance import outcome, serving
from conformance.outcome import Case, Outcome
from conformance.registry import Environment

ENVIRONMENT = Environment(
    "llm_comply", {"llm-comply==0.5.0": "a9e2442915d233087b30abcb38bd4333d5878ae0e7c80b0d93e8b9f006843e9b"}
)

ANTHROPIC = ["--auth-header", "x-api-key", "--no-bearer", "-H", "anthropic-version:2023-06-01"]
FORMATS = {"openai-chat": [], "open-responses": [], "anthropic": ANTHROPIC}


def run() -> Outcome:
    """Its tests of three interfaces."""
    program = ENVIRONMENT.make().python.parent / "llm-comply"
    cases = []
    with serving.greedy(penalty=1.05, ctx_size=2048, parallel=2, max_tokens=600) as url:
        for name, options in FORMATS.items():
            command = [str(program), "--format", name, "-u", f"{url}/v1", "-k", "none", "-m", "smollm2", "--json"]
            said = outcome.run([*command, *options], timeout=120)
            for result in json.loads(said[said.index("{") :])["results"]:
                passed = {"passed": True, "failed": False}.get(result["status"])
                cases.append(Case(f"{name}/{result['id']}", passed, "; ".join(result.get("errors", []))))
    scope = "Answers of SmolLM2 against the schemas of Chat Completions, Open Responses and Anthropic's messages."
    return Outcome("llm_comply", "llm-comply 0.5.0", scope, cases)
