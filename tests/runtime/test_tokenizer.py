"""The run-time tokenizer: loading, streaming, and what control tokens do."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocabularies import bpe, spm

from ryzc.errors import BundleError
from ryzc.runtime.tokenizer import SETTINGS_FILE, TOKENIZER_FILE, Tokenizer
from ryzc.sources import tokenizers
from ryzc.sources.checkpoint import Vocabulary


def load(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(tokenizers.build(vocabulary), tokenizers.settings(vocabulary))


BPE = load(bpe(add_bos=True, add_eos=True))
SPM = load(spm([("▁", -9.0), ("a", -8.0), ("b", -7.0), ("▁a", -1.0)]))


def write(directory: Path, vocabulary: Vocabulary) -> Path:
    (directory / TOKENIZER_FILE).write_text(tokenizers.build(vocabulary), encoding="utf-8")
    (directory / SETTINGS_FILE).write_text(json.dumps(tokenizers.settings(vocabulary)), encoding="utf-8")
    return directory


def test_load(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, bpe(add_bos=True)))
    assert tokenizer.vocab_size == len(bpe().tokens)
    assert tokenizer.bos_id == 0
    assert tokenizer.eos_ids == {1}
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (TOKENIZER_FILE, None),
        (TOKENIZER_FILE, b""),
        (TOKENIZER_FILE, b"\xff{}"),
        (TOKENIZER_FILE, b"[1]"),
        (SETTINGS_FILE, None),
        (SETTINGS_FILE, b"{"),
        (SETTINGS_FILE, b"[]"),
        (SETTINGS_FILE, b"{}"),
        (SETTINGS_FILE, b'{"vocab_size": "many"}'),
    ],
)
def test_damaged_bundle(tmp_path: Path, name: str, content: bytes | None) -> None:
    write(tmp_path, bpe())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint


def test_special_tokens() -> None:
    text = "<s>h<tool>"
    h = BPE.encode("h", add_special=False)
    assert BPE.encode(text, add_special=False) == [0, *h, 2]
    assert BPE.encode(text) == [0, 0, *h, 2, 1]
    assert BPE.encode("") == [0, 1]
    spelled = BPE.encode(text, add_special=False, parse_special=False)
    assert 0 not in spelled
    assert spelled[-1] == 2, "user-defined tokens are always cut out"
    assert BPE.decode(spelled) == text
    assert BPE.decode(BPE.encode(text)) == "h<tool>"
    assert BPE.decode(BPE.encode(text), special=True) == "<s><s>h<tool></s>"


def test_threads_do_not_mix_their_settings() -> None:
    def encode(parse: bool) -> bool:
        return (BPE.encode("<s>", add_special=False, parse_special=parse) == [0]) == parse

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(encode, [True, False, True] * 200))


def test_lone_surrogates_count_as_replacement_characters() -> None:
    assert BPE.encode("a\ud800b") == BPE.encode("a\ufffdb")


def test_ids_without_text() -> None:
    assert BPE.decode([BPE.vocab_size, BPE.vocab_size + 10**6, -1, 10**12]) == ""


def test_spm_pieces() -> None:
    assert SPM.decode(SPM.encode("a é<tool>", add_special=False)) == "a é<tool>"
    assert SPM.decode(SPM.encode("  a")) == "  a"
    stream = SPM.stream()
    assert [stream.push(id_) for id_ in SPM.encode("é", add_special=False)] == [" ", "", "é"]


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_stream_equals_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Any ids, also those whose bytes are no UTF-8."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size), max_size=40))
    stream = tokenizer.stream(special=True)
    text = "".join(map(stream.push, ids)) + stream.flush()
    whole = tokenizer.decode(ids, special=True)
    assert text in (whole, f" {whole}")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_stream_never_shows_half_a_character(text: str) -> None:
    stream = BPE.stream(special=True)
    shown = ""
    for id_ in BPE.encode(text, add_special=False):
        shown += stream.push(id_)
        assert text.startswith(shown)
    assert stream.flush() == ""
    assert shown == text


def test_flush_shows_what_never_became_whole() -> None:
    ids = BPE.encode("🙂", add_special=False)
    assert len(ids) == 4
    stream = BPE.stream()
    assert [stream.push(id_) for id_ in ids[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert [stream.push(id_) for id_ in ids] == ["", "", "", "🙂"]
