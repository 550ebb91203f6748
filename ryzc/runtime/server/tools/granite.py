"""IBM Granite 3: ``<|tool_call|>`` and a JSON list of calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ryzc.runtime.server.tools import Found, Marked, Tool, calls_of, calls_rule

_MARK = "<|tool_call|>"


def matches(template: str) -> bool:
    """Whether a chat template is of this family."""
    return _MARK in template


class Parser(Marked):
    """Finds the calls: all that follows the mark."""

    markers = (_MARK,)

    def __init__(self) -> None:
        super().__init__(_MARK, "\0")  # the list ends with the answer

    def flush(self) -> list[Found]:
        held, self._held = self._held, ""
        inside, self._inside = self._inside, False
        calls = calls_of(held) if inside else []
        return list(calls) if calls else [held] if held else []


def grammar(tools: Sequence[Tool], parallel: bool, mark: Callable[[str], str]) -> str:
    """One call of one of the tools, or several."""
    return f'start: {mark(_MARK)} "[" calls "]"\n' + calls_rule(tools, parallel, ", ")
