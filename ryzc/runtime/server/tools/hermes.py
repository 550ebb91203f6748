"""Hermes, Qwen 2.5, Qwen 3 and many others: JSON objects between ``<tool_call>`` and ``</tool_call>``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ryzc.runtime.server.tools import Marked, Tool, calls_rule


def matches(template: str) -> bool:
    """Whether a chat template is of this family."""
    return "<tool_call>" in template and "<function=" not in template and "tools" in template


class Parser(Marked):
    """Finds the calls."""

    def __init__(self) -> None:
        super().__init__("<tool_call>", "</tool_call>")


def grammar(tools: Sequence[Tool], parallel: bool, mark: Callable[[str], str]) -> str:
    """One call of one of the tools, or several."""
    begin, end = mark("<tool_call>"), mark("</tool_call>")
    more = ' ("\\n" one)*' if parallel else ""
    return f'start: one{more}\none: {begin} "\\n" calls "\\n" {end}\n' + calls_rule(tools, False, "")
