"""What bodies may hold: the fields that several surfaces share, and how a body is read.

A field that no model here names is refused by its name. A field that OpenAI documents and that cannot change an
answer of this server (:data:`HARMLESS`) is taken and left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ryzc.runtime.server.errors import ApiError, unsupported, wrong

HARMLESS = frozenset(
    (
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "prediction", "cache_prompt",
    )
)  # fmt: skip
"""Bookkeeping and hints about speed; null is taken for any field as "not given"."""

_SURROGATES = re.compile("[\ud800-\udfff]")

MAX_DEPTH = 64
"""Levels of a body; a deeper one serves nobody but attackers."""

Body = TypeVar("Body", bound="Fields")


class Fields(BaseModel):
    """A body, or a part of one: unknown fields are refused, values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    unsupported: ClassVar[Mapping[str, tuple[str, Sequence[Any]]]] = {}
    """Known fields that are not served: why, and the values that ask for nothing."""


class StreamOptions(Fields):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class SamplingFields(Fields):
    """How to choose tokens: OpenAI's fields, and those that vLLM and llama.cpp added to them."""

    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    repeat_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    repeat_last_n: int | None = Field(default=None, ge=-1)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1024)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=256)
    ignore_eos: bool | None = None
    n: int | None = Field(default=None, ge=1)
    cache_salt: str | None = Field(default=None, max_length=256)
    priority: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31)


def read(kind: type[Body], document: Any) -> Body:
    """A body, checked.

    Raises:
        ApiError: a field is unknown, unsupported or wrong; it is named.
    """
    if not isinstance(document, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    left_out = HARMLESS - set(kind.model_fields)
    given = {name: value for name, value in document.items() if value is not None and name not in left_out}
    for name, (reason, idle) in kind.unsupported.items():
        if name in given and given.pop(name) not in idle:
            raise unsupported(name, reason)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _first_fault(error) from None


def parse(data: bytes) -> Any:
    """The JSON of a body.

    Raises:
        ApiError: it is none, or nested too deeply.
    """
    try:
        document = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None
    if _deeper(document, MAX_DEPTH):
        raise ApiError(400, f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")
    if b"\\ud" in data or b"\\uD" in data:  # halves of characters are no text
        document = json.loads(_SURROGATES.sub("\ufffd", json.dumps(document, ensure_ascii=False)))
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [item for part in layer if isinstance(part, dict | list) for item in _children(part)]
        if not layer:
            return False
    return True


def _children(part: dict[str, Any] | list[Any]) -> Sequence[Any]:
    return list(part.values()) if isinstance(part, dict) else part


def _first_fault(error: ValidationError) -> ApiError:
    """One fault for the caller: the deepest of the first field, since a union reports each of its members."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    first = faults[0]["loc"][:1]
    fault = max((f for f in faults if f["loc"][:1] == first), key=lambda f: len(f["loc"]))
    parts = [str(part) for part in fault["loc"] if not (isinstance(part, str) and _names_a_type(part))]
    param = ".".join(parts)
    if fault["type"] == "extra_forbidden":
        message = f"unknown field '{param}'"
        return ApiError(400, message, code="unknown_parameter", param=param)
    if fault["type"] == "missing":
        return ApiError(400, f"'{param}' is missing", code="missing_required_parameter", param=param)
    return wrong(param, f"'{param}': {fault['msg'][:1].lower()}{fault['msg'][1:]}")


def _names_a_type(part: str) -> bool:
    """Whether a step of pydantic's path names a union's member, not a field."""
    return part in ("str", "int", "float", "bool") or part[:1].isupper() or "[" in part or "-" in part


def stops(given: str | Sequence[str] | None, most: int = 16) -> tuple[str, ...]:
    """Stop texts.

    Raises:
        ApiError: one is empty, or there are too many.
    """
    texts = (given,) if isinstance(given, str) else tuple(given or ())
    if len(texts) > most:
        raise wrong("stop", f"'stop' takes at most {most} texts")
    if not all(texts):
        raise wrong("stop", "'stop' holds an empty text")
    return texts
