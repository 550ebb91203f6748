"""Small vocabularies for tests, complete enough to encode any text."""

from __future__ import annotations

from collections.abc import Sequence

from ryzc.sources.checkpoint import Vocabulary
from ryzc.sources.tokenizers import BYTE, CONTROL, NORMAL, USER_DEFINED

BOS, EOS = "<s>", "</s>"


def byte_characters() -> list[str]:
    """GPT-2's character of each byte, worked out in a way of its own."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte not in (0x20, 0xA0, 0xAD)]
    rest = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [characters[byte] for byte in range(256)]


def bpe(
    merges: Sequence[str] = ("h e", "l l", "he ll", "Ġ w", "Ġ Ġ"), pre: str = "gpt-2", **changes: object
) -> Vocabulary:
    """Byte-level BPE: ``<s>``, ``</s>``, the user-defined ``<tool>``, 256 bytes, and what ``merges`` make."""
    made = [merge.replace(" ", "") for merge in merges]
    tokens = [BOS, EOS, "<tool>", *byte_characters(), *made]
    types = [CONTROL, CONTROL, USER_DEFINED] + [NORMAL] * (len(tokens) - 3)
    parts = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "types": types,
        "scores": [],
        "merges": list(merges),
        "special": {"bos": 0, "eos": 1},
    }
    return Vocabulary(**(parts | changes))  # type: ignore[arg-type]


def spm(
    words: Sequence[tuple[str, float]] = (("▁", -9.0), ("▁a", -1.0), ("ab", -2.0)), **changes: object
) -> Vocabulary:
    """SentencePiece: ``<unk>``, ``<s>``, ``</s>``, ``<tool>`` (user-defined), 256 bytes, and ``words`` with scores."""
    tokens = ["<unk>", BOS, EOS, "<tool>", *(f"<0x{byte:02X}>" for byte in range(256)), *(word for word, _ in words)]
    parts = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "types": [2, CONTROL, CONTROL, USER_DEFINED, *[BYTE] * 256, *[NORMAL] * len(words)],
        "scores": [0.0] * 260 + [score for _, score in words],
        "merges": [],
        "special": {"bos": 1, "eos": 2, "unknown": 0},
    }
    return Vocabulary(**(parts | changes))  # type: ignore[arg-type]
