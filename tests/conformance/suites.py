"""All suites, by name."""

from __future__ import annotations

from collections.abc import Callable

from conformance import clients, comply, evaluation, fuzzing
from conformance.outcome import Outcome

SUITES: dict[str, Callable[[], Outcome]] = {
    "openai": clients.openai,
    "anthropic": clients.anthropic,
    "llm_comply": comply.run,
    "schemathesis": fuzzing.run,
    "lm_eval": evaluation.run,
}
