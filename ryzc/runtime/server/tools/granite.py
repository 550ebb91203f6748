"""IBM Granite 3: ``<|tool_call|>`` and a JSON list of calls."""

from __future__ import annotations

from collections.abc import Sequence

from ryzc.runtime.server.tools import Found, Marked, Tool, calls_of, object_rule

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


def grammar(tools: Sequence[Tool], parallel: bool) -> str:
    """One call of one of the tools, or several; the mark is a control token."""
    rules = "\n".join(f"call_{i}: {object_rule(tool)}" for i, tool in enumerate(tools))
    any_ = " | ".join(f"call_{i}" for i in range(len(tools)))
    more = ' (", " call)*' if parallel else ""
    return f'start: <|tool_call|> "[" call{more} "]"\ncall: {any_}\n{rules}\n'
