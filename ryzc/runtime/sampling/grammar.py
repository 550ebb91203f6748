"""Grammars that tokens have to follow: JSON schemas, regular expressions, Lark. llguidance does the parsing.

It is an optional dependency and is imported when the first grammar is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ryzc.errors import InternalError, UsageError
from ryzc.runtime.sampling.rows import I32
from ryzc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

_SPACES = r"[ \n\r\t]{0,40}"
"""Between the tokens of JSON: enough for deep indentation, but a model that only sends spaces has to go on."""
_BEFORE = "\x02"
"""Does not merge with what follows it."""


class GrammarTokens:
    """What llguidance has to know about a model's tokens; made once a model, for all of its grammars.

    Args:
        tokenizer: the model's.
        vocab_size: logits that a row has; those beyond the tokenizer's are never allowed.

    Raises:
        UsageError: llguidance is not installed, or the model has no token that ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        guidance = _guidance()
        if not tokenizer.eos_ids:
            raise UsageError("this model has no token that ends an answer, so it cannot follow a grammar")
        self.eos_ids = frozenset(id_ for id_ in tokenizer.eos_ids if id_ < vocab_size)
        self.words = -(-vocab_size // 32)
        self.native = guidance.LLTokenizer(
            _Spelled(tokenizer, vocab_size),
            n_vocab=vocab_size,
            eos_token=sorted(self.eos_ids),
        )


class _Spelled:
    """A tokenizer as llguidance asks for one: every token's bytes, and an encoder of texts amid a text."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        known = range(min(vocab_size, tokenizer.vocab_size))
        self._tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, min(tokenizer.eos_ids)
        self.special_token_ids = [id_ for id_ in known if tokenizer.is_control(id_)]
        control = frozenset(self.special_token_ids)
        self.tokens = [
            (b"\xff" if id_ in control else b"") + tokenizer.piece(id_, special=True) for id_ in known
        ]  # no text begins with the byte 255
        self.tokens += [b""] * (vocab_size - len(self.tokens))

    def __call__(self, text: str) -> list[int]:
        """The ids of a text that stands amid another: without a first token, and without SentencePiece's space."""
        ids = self._tokenizer.encode(_BEFORE + text, add_special=False, parse_special=False)
        end = 0
        while not self._tokenizer.piece(ids[end]).endswith(_BEFORE.encode()):
            end += 1
        return ids[end + 1 :]


class Grammar:
    """A grammar for a model's tokens; any number of requests may follow it at a time.

    Args:
        text: as llguidance takes it.
        tokens: the model's.

    Raises:
        UsageError: the grammar is damaged, or has what llguidance does not know.
    """

    def __init__(self, text: str, tokens: GrammarTokens) -> None:
        matcher = _guidance().LLMatcher(tokens.native, text)
        if matcher.is_error():
            raise UsageError(f"the grammar cannot be used: {matcher.get_error().strip()}")
        self._tokens = tokens
        self._matcher = matcher

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any] | str | None, tokens: GrammarTokens) -> Grammar:
        """JSON that fits a schema, given as an object or as text; ``None`` is any JSON object."""
        wanted = {"type": "object"} if schema is None else schema
        try:
            text = _guidance().LLMatcher.grammar_from_json_schema(
                wanted if isinstance(wanted, str) else dict(wanted), overrides={"whitespace_pattern": _SPACES}
            )
        except (ValueError, TypeError) as error:
            raise UsageError(f"that is no JSON schema: {error}") from error
        return cls(text, tokens)

    @classmethod
    def from_regex(cls, pattern: str, tokens: GrammarTokens) -> Grammar:
        """Text that a regular expression matches as a whole, in the syntax of Rust's ``regex``."""
        return cls(_guidance().LLMatcher.grammar_from_regex(pattern), tokens)

    @classmethod
    def from_lark(cls, text: str, tokens: GrammarTokens) -> Grammar:
        """Text of a grammar in llguidance's dialect of Lark."""
        return cls(_guidance().LLMatcher.grammar_from_lark(text), tokens)

    def start(self) -> GrammarState:
        """The grammar at its beginning, for one request."""
        return GrammarState(self._matcher.deep_copy(), self._tokens)


class GrammarState:
    """Where a request is in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, tokens: GrammarTokens) -> None:
        self._matcher = matcher
        self._tokens = tokens

    def fill(self, masks: I32, first: int, drafts: Sequence[int]) -> int:
        """Set the bits of the tokens allowed next in row ``first`` of ``masks``, and after each draft in those below.

        Returns:
            How many rows it filled: fewer where a draft is not allowed, or ends the text.

        Raises:
            UsageError: there are not so many rows, or the grammar became too complex.
        """
        if not 0 <= first < first + len(drafts) + 1 <= len(masks) or masks.shape[1] < self._tokens.words:
            raise UsageError(f"rows {first} to {first + len(drafts)}: there are masks for {len(masks)}")
        matcher, address, consumed = self._matcher, masks.ctypes.data, 0
        try:
            while True:
                row = first + consumed
                matcher.unsafe_compute_mask_ptr(address + row * masks.strides[0], 4 * self._tokens.words)
                self._check()
                if consumed == len(drafts) or drafts[consumed] in self._tokens.eos_ids:
                    break
                if matcher.try_consume_tokens([drafts[consumed]]) == 0:
                    break
                consumed += 1
        finally:
            if consumed:
                matcher.rollback(consumed)
        return consumed + 1

    def forced(self) -> list[int]:
        """Tokens that come next whatever the model says; often empty."""
        return self._matcher.compute_ff_tokens()

    def accept(self, id_: int) -> None:
        """A token became certain.

        Raises:
            InternalError: the grammar does not allow it.
        """
        if not self._matcher.consume_token(id_):
            raise InternalError(f"token {id_} is not in the grammar: {self._matcher.get_error().strip()}")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the grammar cannot be followed any further: {self._matcher.get_error().strip()}")


def _guidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UsageError("grammars need llguidance", hint="pip install 'ryzc[serve]'") from error
    return llguidance
