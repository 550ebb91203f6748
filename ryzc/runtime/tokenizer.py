"""Text to token ids and back, from a bundle's ``tokenizer.json`` and ``tokenizer_config.json``."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from tokenizers import Tokenizer as Encoder

from ryzc.errors import BundleError

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"

_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


class Tokenizer:
    """Encodes and decodes for one model; safe to use from several threads.

    Attributes:
        vocab_size: how many ids there are; the model may have more rows of logits.
        bos_id: the id that begins a text, or ``None``.
        eos_ids: the ids that end a generation.
    """

    def __init__(self, document: str, settings: Mapping[str, Any]) -> None:
        """Args: the texts that ``ryzc.sources.tokenizers`` built, ``settings`` parsed.

        Raises:
            BundleError: they are damaged.
        """
        try:
            self._encoder = Encoder.from_str(document)
        except Exception as error:  # the library raises bare Exceptions
            raise BundleError(f"{TOKENIZER_FILE}: {error}", hint="build the bundle again") from error
        try:
            self.vocab_size = int(settings["vocab_size"])
            self.bos_id: int | None = settings["bos_id"]
            self.eos_ids = frozenset(map(int, settings["eos_ids"]))
            self._spm = settings["family"] == "spm"
            self._add_space_prefix = bool(settings["add_space_prefix"])
            self._before = [int(settings["bos_id"])] if settings["add_bos"] else []
            self._after = [int(settings["eos_id"])] if settings["add_eos"] else []
            self._expansions = {int(id_): list(map(int, ids)) for id_, ids in settings["expansions"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{SETTINGS_FILE}: {error!r}", hint="build the bundle again") from error
        self._added = self._encoder.get_added_tokens_decoder()
        self._pieces: dict[int, bytes] = {}
        self._parsing = Lock()

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Reads both files from a bundle's directory.

        Raises:
            BundleError: one is missing or damaged.
        """
        try:
            document = (directory / TOKENIZER_FILE).read_text(encoding="utf-8")
            settings = json.loads((directory / SETTINGS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{directory}: cannot read the tokenizer: {error}", hint="build the bundle again"
            ) from error
        if not isinstance(settings, dict):
            raise BundleError(f"{directory / SETTINGS_FILE} holds no object", hint="build the bundle again")
        return cls(document, settings)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of ``text``.

        Args:
            text: any string; lone surrogates count as U+FFFD.
            add_special: put the model's first and last tokens around it, where it wants them.
            parse_special: control tokens written out in the text become their ids; without it, so that a user
                cannot forge them, they are plain text.
        """
        if not text.isascii():
            text = _SURROGATES.sub("\ufffd", text)
        with self._parsing:
            if self._encoder.encode_special_tokens == parse_special:
                self._encoder.encode_special_tokens = not parse_special
            ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        if self._expansions and ids and max(ids) >= self.vocab_size:
            ids = [out for id_ in ids for out in self._expansions.get(id_, (id_,))]
        return [*self._before, *ids, *self._after] if add_special else ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: those that the model has beyond the vocabulary have no text.
            special: print control tokens too.
        """
        text = b"".join(self.piece(id_, special=special) for id_ in ids).decode(errors="replace")
        return text.removeprefix(" ") if self._add_space_prefix else text

    def vocabulary(self) -> dict[str, int]:
        """The id of every token as ``tokenizer.json`` spells it."""
        vocabulary: dict[str, int] = self._encoder.get_vocab(with_added_tokens=True)
        return vocabulary

    def stream(self, *, special: bool = False) -> Detokenizer:
        """A decoder for ids that come one by one, as the continuation of a text."""
        return Detokenizer(self, special)

    def piece(self, id_: int, *, special: bool = False) -> bytes:
        """The bytes that one id stands for; a character may be spread over several ids."""
        added = self._added.get(id_)
        if added is not None and added.special and not special:
            return b""
        piece = self._pieces.get(id_)
        if piece is None:
            piece = self._pieces[id_] = self._spell(id_)
        return piece

    def is_control(self, id_: int) -> bool:
        """Whether an id is a control token, which stands for no text."""
        added = self._added.get(id_)
        return added is not None and bool(added.special)

    def _spell(self, id_: int) -> bytes:
        token: str | None = self._encoder.id_to_token(id_) if 0 <= id_ < self.vocab_size else None
        if token is None:
            return b""
        if id_ in self._added:
            return token.encode()
        if not self._spm:
            return b"".join(_BYTE_OF[char] if char in _BYTE_OF else char.encode() for char in token)
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()


class Detokenizer:
    """Decodes a growing sequence of ids, holding back a character until all of its bytes have come.

    What the pushes return, joined, and then ``flush()``, is :meth:`Tokenizer.decode` of all the ids (which also
    removes SentencePiece's leading space).
    """

    def __init__(self, tokenizer: Tokenizer, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id_: int) -> str:
        """The text that became complete with this id; often empty."""
        return self._decoder.decode(self._tokenizer.piece(id_, special=self._special))

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a character was never completed. The next push starts anew."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _byte_alphabet() -> dict[str, bytes]:
    """The byte for each character of GPT-2's alphabet: printable Latin-1 is itself, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {
        chr(0x100 + i): bytes([byte]) for i, byte in enumerate(others)
    }


_BYTE_OF = _byte_alphabet()
