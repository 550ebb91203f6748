"""Corpus, tokenizer and windows: the same for the same seed, and nothing lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from ryzc.errors import UsageError, UserError
from ryzc.sources import tokenizers as ggml_tokenizers
from ryzc.training import corpus, text

STORIES = [f"Anna found {i} stones.\nShe said: «It's déjà vu number {i * i}!»" for i in range(50)]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("".join(f"{story}\n{text.SEPARATOR}\n" for story in STORIES), encoding="utf-8")
    return path


def test_documents_are_split_and_some_held_out(stories: Path) -> None:
    found = text.read([stories], held_out=0.1)
    assert list(found.held_out) == STORIES[9::10]
    assert sorted([*found.documents, *found.held_out]) == sorted(STORIES)


def test_what_is_no_corpus(tmp_path: Path, stories: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        text.read([tmp_path / "missing"])
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 3"):
        text.read([bad])
    with pytest.raises(UsageError, match="too few"):
        text.read([stories], held_out=0.001)
    with pytest.raises(UsageError, match="held out"):
        text.read([stories], held_out=0.9)
    with pytest.raises(UsageError, match="gives"):
        text.vocabulary(STORIES, 100_000)


def test_the_vocabulary_is_what_the_compiled_model_reads_with() -> None:
    vocabulary = text.vocabulary(STORIES, 300)
    assert len(vocabulary.tokens) == 300
    assert vocabulary.tokens[text.END] == text.SEPARATOR
    assert text.vocabulary(STORIES, 300) == vocabulary
    assert ggml_tokenizers.settings(vocabulary)["eos_ids"] == [text.END]
    reader = Tokenizer.from_str(ggml_tokenizers.build(vocabulary))
    for story, ids in zip(STORIES, text.encode(vocabulary, STORIES), strict=True):
        assert ids[-1] == text.END
        assert reader.decode(ids.tolist()) == story
    assert sum(map(len, text.encode(vocabulary, STORIES))) < len("".join(STORIES).encode())


def test_windows_follow_from_seed_and_step() -> None:
    documents = [np.array([*range(10 * i + 1, 10 * i + 5), text.END]) for i in range(9)]
    windows = text.Windows(documents, width=4, batch=3, seed=7)
    assert windows.steps_per_epoch == 3
    epochs = [[windows[3 * epoch + step] for step in range(3)] for epoch in range(2)]
    again = text.Windows(documents, width=4, batch=3, seed=7)
    assert (again[4] == epochs[1][1]).all()  # out of turn
    for epoch in epochs:
        flat = np.concatenate(epoch)
        assert flat.shape == (9, 5)
        assert (flat[1:, 0] == flat[:-1, -1]).all()  # windows meet at one token
        stream = [*flat[:, :-1].ravel(), flat[-1, -1]]
        assert stream[0] == text.END
        pieces = " ".join(map(str, stream[1:])).split(f" {text.END}")
        whole = {" ".join(map(str, d[:-1])) for d in documents}
        assert {piece.strip() for piece in pieces[:-1]} <= whole
    assert not (np.concatenate(epochs[0]) == np.concatenate(epochs[1])).all()
    with pytest.raises(UsageError, match="fewer"):
        text.Windows(documents, width=16, batch=16, seed=7)


def test_held_out_rows_are_padded_and_cut() -> None:
    rows = text.padded([np.array([5, 6, text.END]), np.arange(9)], 5)
    assert rows.tolist() == [[text.END, 5, 6, text.END, -1, -1], [text.END, 0, 1, 2, 3, 4]]


def test_requests_follow_from_seed_and_index() -> None:
    asked = [corpus.request(1, i) for i in range(200)]
    assert asked == [corpus.request(1, i) for i in range(200)]
    assert len(set(asked)) > 190
    assert corpus.request(2, 0) != asked[0]
    assert not [1 for question, opening in asked if "{" in question + opening]


def test_stories_are_tidied() -> None:
    words = "Anna had a red ball and she liked it. " * 6
    assert corpus.tidy(f"**{words}**\n\n# Moral\n\u201cYes\u201d, said", False) == words.strip()
    assert corpus.tidy(f"{words}\nThe end", True) == f"{words.strip()}\nThe end"
    assert corpus.tidy("Too short.", True) is None
    assert corpus.tidy(words + "\u4e16\u754c.", True) is None
    assert corpus.tidy(words + text.SEPARATOR + ".", True) is None
