"""Tool calls: how each family of models writes them. A family is one file here, found by its name.

A family's file has ``matches(template)``, which says whether a chat template is of this family; ``Parser``, which
finds calls in what the model says; and ``grammar(tools, parallel, mark)``, a Lark grammar of nothing but calls, whose
marks ``mark`` writes.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Protocol, TypeAlias

_ESCAPED = re.compile(r"\\.", re.DOTALL)

Tool: TypeAlias = Mapping[str, Any]
"""A function as OpenAI describes it: ``name``, ``description``, ``parameters`` (JSON schema)."""


@dataclass(frozen=True)
class Call:
    """A call that a model made; ``arguments`` is JSON text, as OpenAI's clients expect it."""

    name: str
    arguments: str


Found: TypeAlias = str | Call


class Parser(Protocol):
    """Finds calls in a text that comes piece by piece."""

    markers: tuple[str, ...]
    """Control tokens that the parser needs to see, although they are no text."""

    def push(self, text: str) -> list[Found]:
        """What has become certain: text, or whole calls."""

    def flush(self) -> list[Found]:
        """What is left at the end; what looked like a call and is none is text."""


@dataclass(frozen=True)
class Family:
    """How a family of models calls tools."""

    name: str
    parser: Callable[[], Parser]
    grammar: Callable[[Sequence[Tool], bool, Callable[[str], str]], str]
    prompted: bool
    """Whether the tools must be explained in a message, since the chat template does not."""


def families() -> list[ModuleType]:
    """Every family's file, the one that takes any template last."""
    names = sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_"))
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return sorted(modules, key=lambda module: module.__name__.endswith(".generic"))


def family_for(template: str) -> Family:
    """The family of a chat template."""
    for module in families():
        if module.matches(template):
            prompted = module.__name__.endswith(".generic")
            return Family(module.__name__.rsplit(".", 1)[-1], module.Parser, module.grammar, prompted)
    raise AssertionError("generic takes any template")


def call_of(value: Any, arguments: str = "arguments") -> Call | None:
    """A call of parsed JSON such as ``{"name": ..., "arguments": {...}}``, or ``None`` where it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    given = value.get(arguments, value.get("parameters", {}))
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    return Call(value["name"], json.dumps(given, ensure_ascii=False)) if isinstance(given, dict) else None


def calls_of(text: str) -> list[Call]:
    """The calls of a JSON text: one object, a list of them, or several after each other; none where it is not that."""
    decoder, calls, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        for item in value if isinstance(value, list) else [value]:
            call = call_of(item)
            if call is None:
                return []
            calls.append(call)
        while at < len(text) and text[at] in " \t\r\n;,":
            at += 1
    return calls


def call_id() -> str:
    """A name for a call: nine letters and digits, all that Mistral's templates take."""
    alphabet = string.ascii_letters + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(9))


def schema(tool: Tool) -> Mapping[str, Any]:
    """What a tool's arguments must be."""
    parameters = tool.get("parameters")
    return parameters if parameters else {"type": "object"}


def object_rule(tool: Tool, arguments: str = "arguments") -> str:
    """Lark: ``{"name": NAME, "arguments": {...}}`` of one tool."""
    head = json.dumps('{"name": ' + json.dumps(tool["name"]) + ', "' + arguments + '": ')
    return f'{head} %json {json.dumps(schema(tool))} "}}"'


def calls_rule(tools: Sequence[Tool], parallel: bool, between: str, arguments: str = "arguments") -> str:
    """Lark: the rule ``calls``, one call of one of the tools, or several with a text between them."""
    rules = "\n".join(f"call_{i}: {object_rule(tool, arguments)}" for i, tool in enumerate(tools))
    any_ = " | ".join(f"call_{i}" for i in range(len(tools)))
    more = f" ({json.dumps(between)} call)*" if parallel else ""
    return f"calls: call{more}\ncall: {any_}\n{rules}\n"


class Marked:
    """Text with calls between two marks, e.g. ``<tool_call>`` and ``</tool_call>``.

    Args:
        begin, end: the marks.
        read: the calls of what stands between them; none where it is no call.
    """

    markers: tuple[str, ...] = ()

    def __init__(self, begin: str, end: str, read: Callable[[str], list[Call]] = calls_of) -> None:
        self._begin, self._end, self._read = begin, end, read
        self._held = ""
        self._inside = False
        self._called = False

    def push(self, text: str) -> list[Found]:
        self._held += text
        found: list[Found] = []
        while True:
            mark = self._end if self._inside else self._begin
            at = outside(self._held, mark) if self._inside else self._held.find(mark)
            if at < 0:
                break
            before, self._held = self._held[:at], self._held[at + len(mark) :]
            found += self._body(before) if self._inside else self._text(before)
            self._inside = not self._inside
        if not self._inside:
            safe = len(self._held) - overlap(self._held, self._begin)
            found += self._text(self._held[:safe])
            self._held = self._held[safe:]
        return found

    def flush(self) -> list[Found]:
        held, self._held = self._held, ""
        if not self._inside:
            return self._text(held)
        self._inside = False
        calls = self._read(held)  # the end mark may have been a stop
        if calls or self._end not in held:
            return list(calls) or [self._begin + held]  # cut off at max_tokens
        before, _, after = held.partition(self._end)  # no JSON, so its quotes mean nothing
        return [*self._body(before), *self.push(after), *self.flush()]

    def _body(self, text: str) -> list[Found]:
        calls = self._read(text)
        self._called = self._called or bool(calls)
        return list(calls) if calls else [f"{self._begin}{text}{self._end}"]

    def _text(self, text: str) -> list[Found]:
        if self._called and not text.strip():  # line breaks between calls
            return []
        return [text] if text else []


def outside(text: str, mark: str, start: int = 0) -> int:
    """Where a mark stands that is not inside a JSON string, -1 where none does: arguments may hold any text."""
    at = text.find(mark, start)
    while at >= 0 and _ESCAPED.sub("", text[start:at]).count('"') % 2:
        at = text.find(mark, at + len(mark))
    return at


def overlap(text: str, mark: str) -> int:
    """Characters at the end of ``text`` that begin ``mark``."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
