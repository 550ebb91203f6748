"""Llama 3.1, 3.2 and 3.3: an answer that is a JSON object, ``{"name": …, "parameters": {…}}``, is a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ryzc.runtime.server.tools import Found, Tool, calls_of, calls_rule

_TAG = "<|python_tag|>"


def matches(template: str) -> bool:
    """Whether a chat template is of this family."""
    return "tools" in template and "<|start_header_id|>" in template and ("ipython" in template or _TAG in template)


class Parser:
    """Finds the calls: they are the whole answer, so its first character decides."""

    markers = (_TAG,)

    def __init__(self) -> None:
        self._held = ""
        self._plain = False

    def push(self, text: str) -> list[Found]:
        if self._plain:
            return [text] if text else []
        self._held += text
        begun = self._held.lstrip()
        if not begun or begun[0] == "{" or begun.startswith(_TAG) or _TAG.startswith(begun):
            return []
        self._plain = True
        text, self._held = self._held, ""
        return [text]

    def flush(self) -> list[Found]:
        text, self._held, self._plain = self._held, "", False
        calls = calls_of(text.lstrip().removeprefix(_TAG))
        return list(calls) if calls else [text] if text else []


def grammar(tools: Sequence[Tool], parallel: bool, mark: Callable[[str], str]) -> str:
    """One call of one of the tools, or several."""
    return "start: calls\n" + calls_rule(tools, parallel, "; ", "parameters")
