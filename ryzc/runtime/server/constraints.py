"""Grammars that an answer must follow, compiled for a model's vocabulary; needs llguidance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ryzc.errors import UserError
from ryzc.runtime.server.errors import ApiError, wrong

if TYPE_CHECKING:
    from ryzc.runtime.server.models import Loaded

MAX_GRAMMAR = 1 << 18
"""Characters of a schema or grammar."""

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""What ``json_object`` asks for."""


def json_schema(schema: Mapping[str, Any], model: Loaded, param: str) -> object:
    """JSON that a schema allows.

    Raises:
        ApiError: it is no schema, or says what grammars cannot.
    """
    text = json.dumps(schema)
    return _compile(lambda kind: kind.from_json_schema(text, model.engine.tokenizer), text, param)


def lark(text: str, model: Loaded, param: str) -> object:
    """What a grammar in llguidance's Lark allows.

    Raises:
        ApiError: as :func:`json_schema`.
    """
    return _compile(lambda kind: kind.from_lark(text, model.engine.tokenizer), text, param)


def _compile(make: Callable[[Any], object], text: str, param: str) -> object:
    if len(text) > MAX_GRAMMAR:
        raise wrong(param, f"'{param}' has {len(text)} characters; at most {MAX_GRAMMAR} are taken")
    try:
        from ryzc.runtime.sampling.grammar import Grammar  # loads llguidance
    except ImportError:
        raise ApiError(
            501, f"'{param}' needs llguidance on the server: pip install 'ryzc[serve]'", code="not_implemented"
        ) from None
    try:
        return make(Grammar)
    except UserError as error:
        raise wrong(param, f"'{param}': {error}") from None
