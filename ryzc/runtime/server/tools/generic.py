"""Models whose chat template knows no tools: they are told how to write calls, the way Hermes does.

Takes one object or a list between the marks, and a bare JSON object that is the whole answer: small models leave
the marks out as often as not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ryzc.runtime.server.tools import Call, Found, Marked, Tool, calls_of
from ryzc.runtime.server.tools.hermes import grammar

__all__ = ["Parser", "explain", "grammar", "matches", "write_calls", "write_result"]


def matches(template: str) -> bool:
    """Whether a chat template is of this family: any is."""
    return True


def explain(tools: Sequence[Tool]) -> str:
    """What to tell the model."""
    listed = "\n".join(json.dumps({"type": "function", "function": dict(tool)}, ensure_ascii=False) for tool in tools)
    return (
        "You can call functions. These are described here, one JSON object a line:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call a function, write its name and arguments as JSON between these tags, and nothing else:\n"
        '<tool_call>\n{"name": "FUNCTION", "arguments": {"ARGUMENT": "VALUE"}}\n</tool_call>\n'
        "Call a function only if it helps to answer; otherwise answer in plain words."
    )


def write_calls(calls: Sequence[Call]) -> str:
    """Earlier calls, as the model wrote them."""
    bodies = (f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in calls)
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def write_result(text: str) -> str:
    """A function's result, as a message of the user."""
    return f"<tool_response>\n{text}\n</tool_response>"


class Parser(Marked):
    """Finds the calls."""

    def __init__(self) -> None:
        super().__init__("<tool_call>", "</tool_call>")
        self._start = ""
        self._bare: bool | None = None

    def push(self, text: str) -> list[Found]:
        if self._bare is None:
            self._start += text
            begun = self._start.lstrip()
            if not begun:
                return []
            self._bare = begun[0] in "{["
            text, self._start = ("", self._start) if self._bare else (self._start, "")
        elif self._bare:
            self._start += text
        return [] if self._bare else super().push(text)

    def flush(self) -> list[Found]:
        start, self._start, bare, self._bare = self._start, "", self._bare, None
        if bare and (calls := calls_of(start)):
            return list(calls)
        return [*(super().push(start) if start else []), *super().flush()]
