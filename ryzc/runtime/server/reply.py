"""What a model says, piece by piece, told apart into thoughts, text and tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ryzc.runtime.server.backend import Delta
from ryzc.runtime.server.conversation import Prepared
from ryzc.runtime.server.tools import Call, Parser, call_id, overlap
from ryzc.runtime.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class Thought:
    """A piece of the reasoning before it."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A call, with its number in the answer and the name by which its result will be given."""

    number: int
    id: str
    call: Call


Piece: TypeAlias = Text | Thought | ToolCall


class Thoughts:
    """Splits off what stands between ``<think>`` and ``</think>`` at the beginning.

    Args:
        inside: the prompt has opened the thought already.
    """

    def __init__(self, inside: bool) -> None:
        self._state = "inside" if inside else "before"
        self._held = ""

    @property
    def inside(self) -> bool:
        """Whether what comes next belongs to a thought."""
        return self._state == "inside"

    def push(self, text: str) -> tuple[str, str]:
        """Thought and text that have become certain."""
        if self._state == "after":
            return "", text
        self._held += text
        if self._state == "before":
            begun = self._held.lstrip()
            if len(begun) < len(OPEN) and OPEN.startswith(begun):
                return "", ""
            if not begun.startswith(OPEN):
                return "", self._leave(self._held)
            self._state, self._held = "inside", begun.removeprefix(OPEN)
        if self._state == "inside":
            at = self._held.find(CLOSE)
            if at >= 0:
                thought, rest = self._held[:at], self._held[at + len(CLOSE) :]
                self._state, self._held = "gap", rest
                return thought, self._gap()
            safe = len(self._held) - overlap(self._held, CLOSE)
            thought, self._held = self._held[:safe], self._held[safe:]
            return thought, ""
        return "", self._gap()

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end."""
        held, state = self._held, self._state
        self._held, self._state = "", "after"
        return (held, "") if state == "inside" else ("", held)

    def _gap(self) -> str:
        """Line breaks after a thought are no part of the answer."""
        rest = self._held.lstrip("\n")
        return self._leave(rest) if rest else self._hold()

    def _hold(self) -> str:
        self._held = ""
        return ""

    def _leave(self, text: str) -> str:
        self._state, self._held = "after", ""
        return text


class Reply:
    """One choice of an answer.

    Attributes:
        calls: how many tool calls it made.
        reasoning_tokens: tokens of its thoughts.
    """

    def __init__(self, prepared: Prepared, parser: Parser | None, tokenizer: Tokenizer) -> None:
        self._thoughts = None if prepared.thinking is None else Thoughts(prepared.thinking)
        self._parser = parser
        self._tokenizer = tokenizer
        self._markers = _ids_of(parser.markers, tokenizer) if parser else {}
        self.calls = 0
        self.reasoning_tokens = 0

    @property
    def plain(self) -> bool:
        """Whether text passes as it is."""
        return self._thoughts is None and self._parser is None

    def push(self, delta: Delta) -> list[Piece]:
        """The pieces that a delta completes."""
        text = self._marked(delta) if self._markers else delta.text
        pieces: list[Piece] = []
        if self._thoughts is not None:
            if self._thoughts.inside:
                self.reasoning_tokens += len(delta.ids)
            thought, text = self._thoughts.push(text)
            pieces += [Thought(thought)] if thought else []
        pieces += self._answer(text) if text else []
        if delta.finish_reason is not None:
            pieces += self._end()
        return pieces

    def _end(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._thoughts is not None:
            thought, text = self._thoughts.flush()
            pieces += [Thought(thought)] if thought else []
            pieces += self._answer(text) if text else []
        if self._parser is not None:
            pieces += [self._found(found) for found in self._parser.flush()]
        return pieces

    def _answer(self, text: str) -> list[Piece]:
        if self._parser is None:
            return [Text(text)]
        return [self._found(found) for found in self._parser.push(text)]

    def _found(self, found: str | Call) -> Piece:
        if isinstance(found, str):
            return Text(found)
        self.calls += 1
        return ToolCall(self.calls - 1, call_id(), found)

    def _marked(self, delta: Delta) -> str:
        """A delta's text, with control tokens that the parser needs written out."""
        if not any(id_ in self._markers for id_ in delta.ids):
            return delta.text
        parts = []
        for id_ in delta.ids:
            parts.append(self._markers.get(id_) or self._tokenizer.piece(id_).decode(errors="replace"))
        return "".join(parts)


def _ids_of(markers: Sequence[str], tokenizer: Tokenizer) -> dict[int, str]:
    """Those markers that are one control token: a detokenizer leaves them out."""
    found = {}
    for marker in markers:
        ids = tokenizer.encode(marker, add_special=False)
        if len(ids) == 1 and not tokenizer.piece(ids[0]):
            found[ids[0]] = marker
    return found
