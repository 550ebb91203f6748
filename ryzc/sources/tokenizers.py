"""Makes a source's :class:`Vocabulary` run: ``tokenizer.json`` for the `tokenizers` library.

A source that has such a file is taken at its word. For others the ids are those of llama.cpp
(``src/llama-vocab.cpp``, ``src/unicode.cpp``), because the authors of GGUF files check against it. Two families are
known:

* ``gpt2``, byte-level BPE. The text is cut by the regular expressions of :mod:`ryzc.sources.pretokenizers`, each
  piece becomes characters of the byte alphabet, and merges apply by rank, then leftmost.
* ``llama``, SentencePiece's BPE. There is no list of merges: any two neighbours whose joined text is a token may
  merge, best score first, then leftmost; a character that stays alone and is no token becomes byte tokens.

In both, control and user-defined tokens are cut out of the raw text before anything else.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from tokenizers.pre_tokenizers import ByteLevel

from ryzc.errors import SourceError, UnsupportedError
from ryzc.sources import pretokenizers
from ryzc.sources.checkpoint import Vocabulary

Json: TypeAlias = dict[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

MAX_WORK = 1 << 28
"""Bound of the sum of squared token lengths, to which the time of a build is proportional (Gemma: 2^24)."""

SPACE = "\u2581"
"""SentencePiece writes a space as LOWER ONE EIGHTH BLOCK."""

_END_OF_GENERATION = {
    *(
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<｜end▁of▁sentence｜>",
    ),
    *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "</s>", "<eos>", "[EOS]", "<|eom_id|>", "<end_of_utterance>"),
    *("<EOT>", "_<EOT>", "[EOT]", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|file_sep|>"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
}
"""Texts that end a generation whatever the file's fields say: llama.cpp knows them by their text as well."""

_FILL_IN_THE_MIDDLE = {
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "▁<PRE>", "<｜fim▁begin｜>"),
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "▁<SUF>", "<｜fim▁hole｜>"),
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "▁<MID>", "<｜fim▁end｜>"),
}
"""Texts that are control tokens whatever type the file gives them."""

_HARMONY = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}
"""Marks of the harmony chat format: printed, although files call them control tokens."""

_SPM_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}
"""What a SentencePiece source means when it names no ids."""


def build(vocabulary: Vocabulary) -> str:
    """The text of ``tokenizer.json``.

    It may hold a few more entries than the vocabulary has ids (:func:`settings` calls them ``expansions``): a
    character without a token that takes part in merging, or keeps others from merging, needs an id there.

    Raises:
        SourceError: the vocabulary contradicts itself.
        UnsupportedError: the family or the pre-tokenizer is unknown, or its ids cannot be reproduced.
    """
    if vocabulary.document is not None:
        return vocabulary.document
    tokens = _checked_tokens(vocabulary.tokens)
    ids = {token: i for i, token in enumerate(tokens)}
    if _is_spm(vocabulary):
        merges = _spm_merges(ids, _checked_scores(vocabulary.scores, len(tokens)))
        ignore_merges = False
        pipeline = _spm_pipeline(_adds_space_prefix(vocabulary))
    else:
        pre = pretokenizers.find(vocabulary.pre)
        merges = _bpe_merges(vocabulary.merges, ids)
        ignore_merges = pre.ignore_merges
        pipeline = _bpe_pipeline(pre)
    model = {
        "type": "BPE",
        "byte_fallback": _is_spm(vocabulary),
        "ignore_merges": ignore_merges,
        "vocab": ids | _extra_ids(vocabulary, tokens),
        "merges": _merge_list(merges),
    }
    added = _added_tokens(tokens, _types(vocabulary.types, tokens))
    document = {"version": "1.0", "added_tokens": added, **pipeline, "post_processor": None, "model": model}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def settings(vocabulary: Vocabulary) -> Json:
    """What encoding and generation need beside ``tokenizer.json``: the bundle's ``tokenizer_config.json``.

    Returns:
        ``family`` (``bpe`` or ``spm``), ``vocab_size``, ``add_bos``, ``add_eos``, ``add_space_prefix``, the ids
        ``bos_id eos_id unknown_id padding_id`` (or ``None``), ``eos_ids`` (every id that ends a generation) and
        ``expansions``: for each extra id of ``tokenizer.json`` the ids that replace it.

    Raises:
        SourceError, UnsupportedError: as :func:`build`.
    """
    tokens = _checked_tokens(vocabulary.tokens)
    ids = {token: i for i, token in enumerate(tokens)}
    special = _checked_special(vocabulary, len(tokens))
    spm = _is_spm(vocabulary)
    add_bos = vocabulary.add_bos
    if add_bos is None:
        add_bos = spm or pretokenizers.find(vocabulary.pre).add_bos
    for role, wanted in (("bos", add_bos), ("eos", vocabulary.add_eos)):
        if wanted and role not in special:
            raise SourceError(f"the tokenizer adds a {role} token, but the source names none")
    extra = {} if vocabulary.document is not None else _extra_ids(vocabulary, tokens)
    if spm:
        _check_byte_tokens(ids)
    return {
        "family": "spm" if spm else "bpe",
        "vocab_size": len(tokens),
        "add_bos": add_bos,
        "add_eos": bool(vocabulary.add_eos),
        "add_space_prefix": spm and _adds_space_prefix(vocabulary),
        **{f"{role}_id": special.get(role) for role in ("bos", "eos", "unknown", "padding")},
        "eos_ids": sorted({*_end_of_generation(ids, special), *vocabulary.ends}),
        "expansions": {
            str(id_): [ids[_byte_token(byte)] for byte in char.encode()] if spm else [] for char, id_ in extra.items()
        },
    }


def _is_spm(vocabulary: Vocabulary) -> bool:
    if vocabulary.model not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"unknown tokenizer family {vocabulary.model!r}",
            hint="ryzc knows: gpt2 (byte-level BPE) and llama (SentencePiece)",
        )
    return vocabulary.model == "llama"


def _adds_space_prefix(vocabulary: Vocabulary) -> bool:
    return vocabulary.add_space_prefix is not False


def _checked_tokens(tokens: Sequence[str]) -> list[str]:
    """The tokens, distinct and valid; empty ones get llama.cpp's stand-in, which no text should equal."""
    checked = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if not checked:
        raise SourceError("the vocabulary is empty")
    if sum(len(token) ** 2 for token in checked) > MAX_WORK:
        raise SourceError(f"the tokens are implausibly long: the longest has {max(map(len, checked))} characters")
    seen: dict[str, int] = {}
    for i, token in enumerate(checked):
        if seen.setdefault(token, i) != i:
            raise SourceError(f"tokens {seen[token]} and {i} are both {token!r}")
    try:
        "".join(checked).encode()
    except UnicodeEncodeError as error:
        raise SourceError("a token is not valid UTF-8") from error
    return checked


def _checked_special(vocabulary: Vocabulary, count: int) -> dict[str, int]:
    for role, id_ in vocabulary.special.items():
        if not 0 <= id_ < count:
            raise SourceError(f"the {role} token has id {id_}, but there are {count} tokens")
    for id_ in vocabulary.ends:
        if not 0 <= id_ < count:
            raise SourceError(f"the id {id_} ends generations, but there are {count} tokens")
    silent = vocabulary.document is None and _is_spm(vocabulary)
    defaults = {role: id_ for role, id_ in _SPM_DEFAULTS.items() if silent and id_ < count}
    return {**defaults, **vocabulary.special}


def _checked_scores(scores: Sequence[float], count: int) -> list[float]:
    if len(scores) != count:
        raise SourceError(f"{count} tokens, but {len(scores)} scores")
    for i, score in enumerate(scores):
        if score != score:
            raise SourceError(f"the score of token {i} is not a number")
    return list(scores)


def _types(stated: Sequence[int], tokens: Sequence[str]) -> list[int]:
    """A type for each id: the stated one, unless the token's text says better."""
    if stated and len(stated) != len(tokens):
        raise SourceError(f"{len(tokens)} tokens, but {len(stated)} token types")
    types = list(stated) or [NORMAL] * len(tokens)
    for i, token in enumerate(tokens):
        if token in _HARMONY:
            types[i] = USER_DEFINED
        elif token in _END_OF_GENERATION or token in _FILL_IN_THE_MIDDLE:
            types[i] = CONTROL
    return types


def _end_of_generation(ids: Mapping[str, int], special: Mapping[str, int]) -> list[int]:
    found = {ids[text] for text in _END_OF_GENERATION if text in ids}
    for harmony in ({"<|return|>", "<|call|>", "<|end|>"}, {"<|calls|>", "<|flush|>", "<|end|>"}):
        if harmony <= ids.keys():
            found.discard(ids["<|end|>"])  # it ends a message there, not the turn
    return sorted(found | {special[role] for role in ("eos", "eot", "eom") if role in special})


def _added_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[Json]:
    """The tokens that are cut out of the raw text; ``special`` marks those that are never printed."""
    cut = [i for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    overlap = _overlap(tokens[i] for i in cut)
    if overlap:  # llama.cpp cuts out the longest first, the library the leftmost
        raise UnsupportedError(f"the special tokens {overlap[0]!r} and {overlap[1]!r} can overlap in a text")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": i, "content": tokens[i], **flags, "special": types[i] != USER_DEFINED} for i in cut]


def _overlap(texts: Iterable[str]) -> tuple[str, str] | None:
    """Two texts of which one may begin inside the other's end, runs of one character apart, or ``None``.

    Runs do overlap one another, but there "longest first" and "leftmost first" come to the same.
    """
    mixed: list[str] = []
    runs: list[str] = []
    for text in texts:
        (runs if len(set(text)) == 1 else mixed).append(text)
    starts: dict[str, set[str]] = defaultdict(set)
    for text in mixed:
        for cut in range(1, len(text)):
            starts[text[:cut]].add(text)
    run_starts = {text[:cut]: text for text in runs for cut in range(1, len(text))}
    for text in mixed + runs:
        for cut in range(1, len(text)):
            end = text[cut:]
            for other in starts.get(end, ()):
                if other != text:
                    return text, other
            if end in run_starts and len(set(text)) > 1:
                return text, run_starts[end]
    return None


def _extra_ids(vocabulary: Vocabulary, tokens: Sequence[str]) -> dict[str, int]:
    """Ids behind the last token for characters that merging meets, but that are no tokens."""
    known = set(tokens)
    if _is_spm(vocabulary):
        needed = {char for token in known if " " not in token for char in token}
    else:
        needed = set(ByteLevel.alphabet())
    return {char: len(tokens) + i for i, char in enumerate(sorted(needed - known))}


def _merge_list(merges: Sequence[tuple[str, str]]) -> list[str] | list[tuple[str, str]]:
    """Merges as the library reads them fastest; it skips a string that looks like its old version line."""
    if any(left.startswith("#version") for left, _ in merges):
        return list(merges)
    return [f"{left} {right}" for left, right in merges]


def _bpe_merges(merges: Sequence[str], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    if not merges:
        raise SourceError("the BPE tokenizer has no merges")
    pairs: dict[tuple[str, str], None] = {}  # a pair that comes again keeps its first rank
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise SourceError(f"merge {rank} is not two parts with a space between: {merge!r}")
        for text in (left, right, left + right):
            if text not in ids:
                raise SourceError(f"merge {rank}, {merge!r}, needs a token {text!r}, which does not exist")
        pairs[left, right] = None
    return list(pairs)


def _bpe_pipeline(pre: pretokenizers.PreTokenizer) -> Json:
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in pre.regexes
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
    }


def _spm_merges(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Merges that act like SentencePiece's scores, best first.

    A token comes about in the same way whatever stands around it: what happens inside its text does not depend on
    the rest. So one merge a token is enough, the last step of encoding its text alone.

    Tied scores are settled leftmost first, which a list of merges cannot express. For runs of one character
    "longest first" is the same; other tied tokens that can overlap are refused.
    """
    _check_byte_tokens(ids)
    score_of = {token: scores[id_] for token, id_ in ids.items()}
    ranked: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, id_ in ids.items():
        pair = _last_merge(token, score_of) if len(token) > 1 and " " not in token else None
        if pair is not None:
            ranked.append((-scores[id_], -len(token), id_, pair))
    ranked.sort()
    tied: dict[float, list[str]] = defaultdict(list)
    for key, _, _, pair in ranked:
        tied[key].append("".join(pair))
    for group in tied.values():
        overlap = _overlap(group) if len(group) > 1 else None
        if overlap:
            raise UnsupportedError(f"the tokens {overlap[0]!r} and {overlap[1]!r} overlap and have the same score")
    return [pair for *_, pair in ranked]


def _last_merge(token: str, score_of: Mapping[str, float]) -> tuple[str, str] | None:
    """The last merge when the text of ``token`` is encoded alone; ``None`` if it does not become one token."""
    parts = list(token)
    while True:
        best, at = None, 0
        for i in range(len(parts) - 1):
            score = score_of.get(parts[i] + parts[i + 1])
            if score is not None and (best is None or score > best):
                best, at = score, i
        if best is None:
            return None
        if len(parts) == 2:
            return parts[0], parts[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _spm_pipeline(add_space_prefix: bool) -> Json:
    prefix = [{"type": "Prepend", "prepend": SPACE}] if add_space_prefix else []
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    unescape = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if add_space_prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, escape]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [unescape, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    }


def _check_byte_tokens(ids: Mapping[str, int]) -> None:
    missing = [byte for byte in range(256) if _byte_token(byte) not in ids]
    if missing:
        raise SourceError(f"the SentencePiece vocabulary lacks byte tokens, {_byte_token(missing[0])} first")


def _byte_token(byte: int) -> str:
    return f"<0x{byte:02X}>"
