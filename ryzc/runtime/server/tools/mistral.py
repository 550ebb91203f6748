"""Mistral and Ministral: ``[TOOL_CALLS]`` and a JSON list, or, since 2025, name and arguments of each call."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence

from ryzc.runtime.server.tools import Call, Found, Tool, calls_of, calls_rule, outside, overlap

_MARK = "[TOOL_CALLS]"
_NAMED = re.compile(r"\s*([A-Za-z0-9_.-]+)(?:\[CALL_ID\][A-Za-z0-9]+)?\s*(?:\[ARGS\])?\s*(?=\{)")


def matches(template: str) -> bool:
    """Whether a chat template is of this family."""
    return _MARK in template


class Parser:
    """Finds the calls: all that follows the first mark."""

    markers = (_MARK, "[ARGS]", "[CALL_ID]")

    def __init__(self) -> None:
        self._held = ""
        self._calling = False

    def push(self, text: str) -> list[Found]:
        self._held += text
        if self._calling:
            return []
        at = self._held.find(_MARK)
        self._calling = at >= 0
        safe = at if self._calling else len(self._held) - overlap(self._held, _MARK)
        text, self._held = self._held[:safe], self._held[safe:]
        return [text] if text else []

    def flush(self) -> list[Found]:
        text, self._held = self._held, ""
        calling, self._calling = self._calling, False
        calls = _read(text) if calling else []
        return list(calls) if calls else [text] if text else []


def _parts(text: str) -> Iterator[str]:
    """What stands between the marks."""
    start = 0
    while (at := outside(text, _MARK, start)) >= 0:
        yield text[start:at]
        start = at + len(_MARK)
    yield text[start:]


def _read(text: str) -> list[Call]:
    calls: list[Call] = []
    for part in _parts(text):
        if not part.strip():
            continue
        named = _NAMED.match(part)
        if named:
            try:
                arguments = json.loads(part[named.end() :])
            except (ValueError, RecursionError):
                return []
            found = [Call(named[1], json.dumps(arguments, ensure_ascii=False))]
        else:
            found = calls_of(part)
        if not found:
            return []
        calls += found
    return calls


def grammar(tools: Sequence[Tool], parallel: bool, mark: Callable[[str], str]) -> str:
    """One call of one of the tools, or several."""
    return f'start: {mark(_MARK)} "[" calls "]"\n' + calls_rule(tools, parallel, ", ")
