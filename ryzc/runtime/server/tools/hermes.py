"""Hermes, Qwen 2.5, Qwen 3 and many others: JSON objects between ``<tool_call>`` and ``</tool_call>``."""

from __future__ import annotations

from collections.abc import Sequence

from ryzc.runtime.server.tools import Marked, Tool, object_rule


def matches(template: str) -> bool:
    """Whether a chat template is of this family."""
    return "<tool_call>" in template and "<function=" not in template and "tools" in template


class Parser(Marked):
    """Finds the calls."""

    def __init__(self) -> None:
        super().__init__("<tool_call>", "</tool_call>")


def grammar(tools: Sequence[Tool], parallel: bool) -> str:
    """One call of one of the tools, or several."""
    rules = "\n".join(f"call_{i}: {object_rule(tool)}" for i, tool in enumerate(tools))
    any_ = " | ".join(f"call_{i}" for i in range(len(tools)))
    more = ' ("\\n" call)*' if parallel else ""
    return f'start: call{more}\ncall: "<tool_call>\\n" ({any_}) "\\n</tool_call>"\n{rules}\n'
