"""A :class:`Vocabulary` from ``tokenizer.json``, which the library that encodes reads as it is.

Two things are taken out of it: what is put around a text, which the runtime does itself, and how batches are cut and
filled. What is put around is found out by encoding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from ryzc.errors import SourceError, UnsupportedError
from ryzc.sources import files
from ryzc.sources.checkpoint import Vocabulary
from ryzc.sources.tokenizers import CONTROL, NORMAL, SPACE, USER_DEFINED

FILE: Final = "tokenizer.json"
MAX_TOKENS: Final = 1 << 22
_TAKEN_OUT = ("post_processor", "truncation", "padding")
_KNOWN = "ryzc knows byte-level BPE and SentencePiece's; a GGUF file of the model may be read"
_PROBES = ("a", "Zebra 7", "\n")
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def vocabulary(document: str, settings: Mapping[str, Any], ends: Sequence[int], directory: Path) -> Vocabulary:
    """The tokenizer of a directory.

    Args:
        document: the text of ``tokenizer.json``.
        settings: what ``tokenizer_config.json`` holds.
        ends: ids that end a generation beside what the tokenizer calls its end.

    Raises:
        SourceError: the document is damaged, or contradicts itself.
        UnsupportedError: it is neither byte-level BPE nor BPE with a fallback to bytes, or puts more around a text than
            one token on either side.
    """
    where = str(directory / FILE)
    parts = files.json_object(document, where)
    family = _family(parts, where)
    plain = json.dumps({**parts, **dict.fromkeys(_TAKEN_OUT)}, ensure_ascii=False, separators=(",", ":"))
    encoder, whole = _load(plain, where), _load(document, where)
    before, after = _around(whole, encoder, where)
    tokens = _tokens(encoder, where)
    types = [NORMAL] * len(tokens)
    for id_, added in encoder.get_added_tokens_decoder().items():
        types[id_] = CONTROL if added.special else USER_DEFINED
    named = {role: _named(settings.get(key), encoder) for role, key in _ROLES.items()}
    special = {role: id_ for role, id_ in named.items() if id_ is not None}
    special |= {role: ids[0] for role, ids in (("bos", before), ("eos", after)) if ids}
    return Vocabulary(
        model=family,
        pre=FILE,
        tokens=tokens,
        types=types,
        scores=(),
        merges=(),
        special=special,
        add_bos=bool(before),
        add_eos=bool(after),
        add_space_prefix=family == "llama" and "".join(encoder.encode("a").tokens).startswith(SPACE),
        ends=tuple(dict.fromkeys(ends)),
        document=plain,
    )


def _family(parts: Mapping[str, Any], where: str) -> str:
    """``gpt2`` or ``llama``, by how tokens become text."""
    model = parts.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise UnsupportedError(f"{where}: its model is not BPE", hint=_KNOWN)
    if "ByteLevel" in _kinds(parts.get("decoder")):
        return "gpt2"
    if model.get("byte_fallback") is True:
        return "llama"
    raise UnsupportedError(
        f"{where}: tokens are neither bytes nor fall back to bytes",
        hint="ryzc knows byte-level BPE and SentencePiece's",
    )


def _kinds(decoder: Any) -> Iterator[str]:
    """The types of a decoder and of those it is made of."""
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for part in decoder.get("decoders") or ():
            yield from _kinds(part)


def _load(document: str, where: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(document)
    except Exception as error:  # the library raises bare Exceptions
        raise SourceError(f"{where}: {error}", hint=files.DAMAGED) from error


def _around(whole: Tokenizer, encoder: Tokenizer, where: str) -> tuple[list[int], list[int]]:
    """The ids that are put before and after each text: none or one."""
    found = set()
    for probe in _PROBES:
        inner, outer = encoder.encode(probe).ids, whole.encode(probe).ids
        places = [at for at in range(len(outer) - len(inner) + 1) if outer[at : at + len(inner)] == inner]
        found.add((tuple(outer[: places[0]]), tuple(outer[places[0] + len(inner) :])) if places else None)
    around = found.pop()
    if found or around is None or max(map(len, around)) > 1:
        raise UnsupportedError(
            f"{where}: puts more around a text than one token on either side", hint="please report the model"
        )
    return list(around[0]), list(around[1])


def _tokens(encoder: Tokenizer, where: str) -> list[str]:
    """The text of each id; empty where an id has none."""
    ids = encoder.get_vocab(with_added_tokens=True)
    count = max(ids.values(), default=-1) + 1
    if not 0 < count <= MAX_TOKENS:
        raise SourceError(f"{where}: has {count} ids", hint=files.DAMAGED)
    tokens = [""] * count
    for token, id_ in ids.items():
        tokens[id_] = token
    return tokens


def _named(token: Any, encoder: Tokenizer) -> int | None:
    """The id of a token that the settings name, plainly or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    id_: int | None = encoder.token_to_id(text) if isinstance(text, str) else None
    return id_
