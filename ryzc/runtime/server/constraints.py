"""Grammars that an answer must follow, compiled for a model's vocabulary and kept; needs llguidance."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ryzc.errors import UserError
from ryzc.runtime.server.errors import ApiError, wrong

if TYPE_CHECKING:
    from ryzc.runtime.sampling.grammar import Grammar, GrammarTokens
    from ryzc.runtime.tokenizer import Tokenizer

MAX_GRAMMAR = 1 << 18
"""Characters of a schema or grammar."""

KEPT = 64
"""Grammars of a model: agents send the same ones again and again."""


class Constraints:
    """Compiles grammars for one model; safe to use from several threads.

    Args:
        tokenizer: the model's.
        vocab_size: ids that the model knows.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._tokens: GrammarTokens | None = None
        self._kept: OrderedDict[tuple[str, str], Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def json_schema(self, schema: Mapping[str, Any], param: str) -> Grammar:
        """JSON that a schema allows.

        Raises:
            ApiError: it is no schema, or says what grammars cannot.
        """
        return self._grammar("from_json_schema", json.dumps(schema), param)

    def lark(self, text: str, param: str) -> Grammar:
        """What a grammar in llguidance's Lark allows.

        Raises:
            ApiError: as :meth:`json_schema`.
        """
        return self._grammar("from_lark", text, param)

    def mark(self, text: str) -> str:
        """A mark in Lark: by its id where it is one control token, which no text can spell."""
        ids = self._tokenizer.encode(text, add_special=False)
        return f"<[{ids[0]}]>" if len(ids) == 1 and self._tokenizer.is_control(ids[0]) else json.dumps(text)

    def _grammar(self, kind: str, text: str, param: str) -> Grammar:
        if len(text) > MAX_GRAMMAR:
            raise wrong(param, f"'{param}' has {len(text)} characters; at most {MAX_GRAMMAR} are taken")
        with self._lock:
            found = self._kept.pop((kind, text), None) or self._compile(kind, text, param)
            self._kept[kind, text] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return found

    def _compile(self, kind: str, text: str, param: str) -> Grammar:
        try:
            import llguidance  # noqa: F401 - whether it is there

            from ryzc.runtime.sampling.grammar import Grammar, GrammarTokens
        except ImportError:
            message = f"'{param}' needs llguidance on the server: pip install 'ryzc[serve]'"
            raise ApiError(501, message, code="not_implemented") from None
        try:
            self._tokens = self._tokens or GrammarTokens(self._tokenizer, self._vocab_size)
            make: Callable[[str, GrammarTokens], Grammar] = getattr(Grammar, kind)
            return make(text, self._tokens)
        except UserError as error:
            raise wrong(param, f"'{param}': {error}") from None
