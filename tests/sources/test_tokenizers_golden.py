"""Token ids of the sample models against llama.cpp's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_tokens import DIRECTORY, PRE_TOKENIZERS, checksum, golden_texts, pre_tokenizer_texts, sha256, unflatten

from ryzc.runtime.tokenizer import Tokenizer
from ryzc.sources import gguf, pretokenizers, tokenizers
from ryzc.sources.checkpoint import Vocabulary


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Vocabulary:
    return gguf.read(smollm2_path).vocabulary


@pytest.fixture(scope="module")
def gemma3(gemma3_path: Path) -> Vocabulary:
    return gguf.read(gemma3_path).vocabulary


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_ids_equal_llama_cpp(model: str, request: pytest.FixtureRequest) -> None:
    vocabulary: Vocabulary = request.getfixturevalue(model)
    texts = golden_texts(vocabulary)
    golden = np.load(DIRECTORY / f"{model}.npz")
    assert np.array_equal(sha256(texts), golden["texts_sha256"]), "the texts are no longer those of the golden ids"
    assert len(texts) > 3000
    tokenizer = Tokenizer(tokenizers.build(vocabulary), tokenizers.settings(vocabulary))
    assert sorted(tokenizer.eos_ids) == golden["end_of_generation"].tolist()
    bos = [tokenizer.bos_id] if golden["bos"] else []
    wanted = unflatten(golden["ids"], golden["lengths"])
    plain = unflatten(golden["plain_ids"], golden["plain_lengths"])
    for text, ids, plain_ids in zip(texts, wanted, plain, strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, repr(text)
        assert tokenizer.encode(text) == [*bos, *ids], repr(text)
        assert tokenizer.encode(text, add_special=False, parse_special=False) == plain_ids, repr(text)
        if model == "gemma3":  # SmolLM2 has no token for some control characters and loses them, as in llama.cpp
            assert tokenizer.decode(ids, special=True) == text.replace("\u2581", " ")
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_pre_tokenizers_equal_llama_cpp(smollm2: Vocabulary) -> None:
    texts = pre_tokenizer_texts(smollm2)
    golden = np.load(PRE_TOKENIZERS)
    assert np.array_equal(sha256(texts), golden["texts_sha256"]), "the texts are no longer those of the golden ids"
    done: dict[pretokenizers.PreTokenizer, list[int]] = {}
    for name, wanted in zip(golden["names"].tolist(), golden["checksums"].tolist(), strict=True):
        pre = pretokenizers.find(name)
        if pre not in done:
            vocabulary = replace(smollm2, pre=name, add_bos=None)
            tokenizer = Tokenizer(tokenizers.build(vocabulary), tokenizers.settings(vocabulary))
            done[pre] = [checksum(tokenizer.encode(text)) for text in texts]
        different = [text for text, ours, theirs in zip(texts, done[pre], wanted, strict=True) if ours != theirs]
        assert not different, f"{name}: {len(different)} of {len(texts)} differ, {different[0]!r} first"
    assert len(golden["names"]) >= 59
