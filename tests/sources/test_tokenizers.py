"""Building ``tokenizer.json``: what is refused, and that its ids are those of the plain algorithms."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocabularies import bpe, spm

from ryzc.errors import SourceError, UnsupportedError, UserError
from ryzc.runtime.tokenizer import Tokenizer
from ryzc.sources import tokenizers
from ryzc.sources.checkpoint import Vocabulary


def load(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(tokenizers.build(vocabulary), tokenizers.settings(vocabulary))


def plain_spm(vocabulary: Vocabulary, text: str) -> list[int]:
    """SentencePiece's merging stated plainly: the best score first, the leftmost of equals, bytes for the rest."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [(vocabulary.scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        id_
        for part in parts
        for id_ in ([ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()])
    ]


WORDS = st.lists(st.text("ab▁é", min_size=1, max_size=5), min_size=1, max_size=25, unique=True)


@settings(max_examples=300, deadline=None)
@given(words=WORDS, order=st.randoms(use_true_random=False), texts=st.lists(st.text("ab é", max_size=16), max_size=8))
def test_spm_merges_by_score(words: list[str], order: object, texts: list[str]) -> None:
    """Any vocabulary, also one with characters that are part of tokens but none themselves."""
    scores = list(range(len(words)))
    order.shuffle(scores)  # type: ignore[attr-defined]
    vocabulary = spm([(word, -float(score)) for word, score in zip(words, scores, strict=True)], add_space_prefix=False)
    tokenizer = load(vocabulary)
    for text in [*texts, "".join(words).replace("▁", " ")]:
        assert tokenizer.encode(text, add_special=False) == plain_spm(vocabulary, text)


@settings(max_examples=100, deadline=None)
@given(lengths=st.sets(st.integers(2, 9)), run=st.integers(0, 40), single=st.booleans())
def test_tied_runs_grow_from_the_left(lengths: set[int], run: int, single: bool) -> None:
    words = [("b" * length, -5.0) for length in sorted(lengths)] + ([("b", -5.0)] if single else [])
    vocabulary = spm([("a", -1.0), *words], add_space_prefix=False)
    tokenizer = load(vocabulary)
    for text in ("b" * run, "a" + "b" * run + "a"):
        assert tokenizer.encode(text, add_special=False) == plain_spm(vocabulary, text)


def test_tied_overlapping_words_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="overlap and have the same score"):
        tokenizers.build(spm([("a", -1.0), ("b", -2.0), ("ab", -3.0), ("ba", -3.0)]))


def test_space_prefix_follows_every_special_token() -> None:
    tokenizer = load(spm([("▁", -1.0), ("a", -2.0), ("▁a", -3.0)]))
    spaced, bos = 262, 1
    assert tokenizer.encode("a") == [bos, spaced]
    assert tokenizer.encode("a<tool>a", add_special=False) == [spaced, 3, spaced]
    assert tokenizer.encode("", add_special=False) == []


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_bpe_decodes_to_the_text(text: str) -> None:
    tokenizer = load_bpe()
    assert tokenizer.decode(tokenizer.encode(text, add_special=False), special=True) == text
    assert tokenizer.decode(tokenizer.encode(text, add_special=False, parse_special=False)) == text


def load_bpe(cache: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006
    if not cache:
        cache.append(load(bpe()))
    return cache[0]


def test_missing_bytes_are_dropped_but_still_separate() -> None:
    """SmolLM2's vocabulary, too, has no token for some control characters."""
    whole = bpe(["! !"])
    missing = [token for token in whole.tokens if token != "Ą"]  # byte 4
    tokenizer = load(replace(whole, tokens=missing, types=whole.types[:-1]))
    bang = missing.index("!")
    assert tokenizer.encode("!!", add_special=False) == [missing.index("!!")]
    assert tokenizer.encode("!\x04!", add_special=False) == [bang, bang]


def test_first_of_repeated_merges_counts() -> None:
    merges = ["a b", "b c", "a b"]
    vocabulary = replace(bpe(["a b", "b c"]), merges=merges)
    assert load(vocabulary).encode("abc", add_special=False) == [
        vocabulary.tokens.index("ab"),
        vocabulary.tokens.index("c"),
    ]


def test_merge_that_looks_like_a_version_line() -> None:
    vocabulary = bpe(["# v", "#v e", "#ve r", "#ver s", "#vers i", "#versi o", "#versio n", "#version s"], "bloom")
    assert load(vocabulary).encode("#versions", add_special=False) == [vocabulary.tokens.index("#versions")]


def test_settings() -> None:
    assert tokenizers.settings(bpe(add_bos=True)) == {
        "family": "bpe",
        "vocab_size": len(bpe().tokens),
        "add_bos": True,
        "add_eos": False,
        "add_space_prefix": False,
        "bos_id": 0,
        "eos_id": 1,
        "unknown_id": None,
        "padding_id": None,
        "eos_ids": [1],
        "expansions": {},
    }
    defaults = tokenizers.settings(spm(special={}))
    assert (defaults["bos_id"], defaults["eos_id"], defaults["unknown_id"]) == (1, 2, 0)
    assert defaults["add_bos"]
    assert defaults["add_space_prefix"]
    assert tokenizers.settings(bpe(pre="llama-bpe"))["add_bos"]
    assert not tokenizers.settings(bpe(pre="qwen2"))["add_bos"]
    json.dumps(defaults)


def test_end_of_generation() -> None:
    tokens = [*bpe().tokens, "<|im_end|>", "<|end|>", "<|call|>"]
    types = [*bpe().types, 1, 1, 1]
    eot = tokenizers.settings(bpe(tokens=tokens, types=types, special={"eos": 1, "eot": 0}))["eos_ids"]
    assert eot == [0, 1, len(tokens) - 3, len(tokens) - 2, len(tokens) - 1]
    harmony = tokenizers.settings(bpe(tokens=[*tokens, "<|return|>"], types=[*types, 1]))["eos_ids"]
    assert len(tokens) - 2 not in harmony


SPM, BPE = spm(), bpe()
DAMAGED: dict[str, tuple[Vocabulary, str]] = {
    "no tokens": (replace(BPE, tokens=[], types=[]), "empty"),
    "duplicate token": (replace(BPE, tokens=[*BPE.tokens[:-1], "h"]), "tokens .* are both 'h'"),
    "two empty tokens": (replace(BPE, tokens=["", *BPE.tokens[1:-1], "[EMPTY_0]"]), "EMPTY_0"),
    "surrogate": (replace(BPE, tokens=[*BPE.tokens[:-1], "\ud800"]), "UTF-8"),
    "long token": (replace(BPE, tokens=[*BPE.tokens[:-1], "x" * 100_000]), "100000 characters"),
    "few types": (replace(BPE, types=BPE.types[1:]), "token types"),
    "few scores": (replace(SPM, scores=SPM.scores[1:]), "scores"),
    "no scores": (replace(SPM, scores=[]), "scores"),
    "score NaN": (replace(SPM, scores=[*SPM.scores[:-1], float("nan")]), "not a number"),
    "no merges": (replace(BPE, merges=[]), "no merges"),
    "merge of one part": (replace(BPE, merges=["ab"]), "two parts"),
    "merge of three parts": (replace(BPE, merges=["a b c"]), "two parts"),
    "merge without left": (replace(BPE, merges=[" b"]), "two parts"),
    "merge of no token": (replace(BPE, merges=["a b"]), "'ab', which does not exist"),
    "no byte tokens": (replace(SPM, tokens=[t.replace("<0x2", "<1x2") for t in SPM.tokens]), "<0x20>"),
    "bos out of range": (replace(BPE, special={"bos": 10**6}), "bos token has id 1000000"),
    "negative eos": (replace(SPM, special={"eos": -1}), "eos token has id -1"),
    "adds an unnamed bos": (replace(BPE, special={}, add_bos=True), "bos"),
    "adds an unnamed eos": (replace(BPE, special={}, add_eos=True), "eos"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(name: str) -> None:
    vocabulary, message = DAMAGED[name]
    with pytest.raises(SourceError, match=message):
        load(vocabulary)


@pytest.mark.parametrize("function", [tokenizers.build, tokenizers.settings])
def test_unknown_family(function: Callable[[Vocabulary], object]) -> None:
    with pytest.raises(UnsupportedError, match="'bert'") as caught:
        function(replace(BPE, model="bert"))
    assert "gpt2" in str(caught.value.hint)


def test_unknown_pre_tokenizer() -> None:
    with pytest.raises(UnsupportedError, match="'qwen99'") as caught:
        tokenizers.build(bpe(pre="qwen99"))
    assert "smollm" in str(caught.value.hint)


def test_special_tokens_that_may_overlap_are_refused() -> None:
    tokens = [*BPE.tokens, "<a><", "><b"]
    with pytest.raises(UnsupportedError, match="overlap"):
        tokenizers.build(replace(BPE, tokens=tokens, types=[*BPE.types, 3, 4]))
    runs = [*BPE.tokens, "==", "===", "====="]
    vocabulary = replace(BPE, tokens=runs, types=[*BPE.types, 4, 4, 4])
    two, three, five = (runs.index("=" * length) for length in (2, 3, 5))
    assert load(vocabulary).encode("=" * 10 + "a" + "=" * 3 + "==<tool>") == [five, five, runs.index("a"), five, 2]
    assert load(vocabulary).encode("=" * 7) == [five, two]
    assert load(vocabulary).encode("=" * 8) == [five, three]


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.text(max_size=4), max_size=30),
    types=st.lists(st.integers(-1, 9), max_size=30),
    scores=st.lists(st.floats(), max_size=30),
    merges=st.lists(st.text("ab Ġ", max_size=4), max_size=9),
    model=st.sampled_from(["gpt2", "llama"]),
    special=st.dictionaries(st.sampled_from(["bos", "eos", "eot"]), st.integers(-5, 400)),
    whole=st.booleans(),
)
def test_anything_builds_or_is_refused(
    tokens: list[str],
    types: list[int],
    scores: list[float],
    merges: list[str],
    model: str,
    special: dict[str, int],
    whole: bool,
) -> None:
    base = BPE if model == "gpt2" else SPM
    if whole:
        tokens, types = [*base.tokens, *tokens], [*base.types, *types]
        scores, merges = [*base.scores, *scores], [*base.merges, *merges]
    vocabulary = Vocabulary(model, "default", tokens, types, scores, merges, special)
    try:
        tokenizer = load(vocabulary)
    except UserError:
        return
    assert all(0 <= id_ < len(tokens) for id_ in tokenizer.encode("ab hello\n\x04é" + "".join(tokens)))


def test_a_large_vocabulary_builds_soon() -> None:
    words = [(f"▁{a}{b}{c}", -float(a * 2500 + b * 50 + c)) for a in range(50) for b in range(50) for c in range(20)]
    letters = [(letter, -1e6 - i) for i, letter in enumerate("▁0123456789")]
    began = time.monotonic()
    tokenizers.build(spm([*letters, *dict(words).items()]))
    assert time.monotonic() - began < 10


def test_settings_need_byte_tokens_as_the_tokenizer_does() -> None:
    vocabulary = spm()
    at = next(i for i, token in enumerate(vocabulary.tokens) if token == "<0x62>")
    tokens = [*vocabulary.tokens[:at], "instead", *vocabulary.tokens[at + 1 :]]
    for make in (tokenizers.build, tokenizers.settings):
        with pytest.raises(SourceError, match="<0x62>"):
            make(replace(vocabulary, tokens=tokens))
