"""Texts to token ids: the corpus, the tokenizer that is made from it, and the windows that a step trains on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ryzc.errors import UsageError, UserError
from ryzc.sources import tokenizers as ggml_tokenizers
from ryzc.sources.checkpoint import Vocabulary

SEPARATOR = "<|endoftext|>"
"""Stands on a line of its own after every document; as a token it begins and ends each of them."""

END = 0
"""The id of :data:`SEPARATOR`."""

PRE_TOKENIZER = "gpt-2"
NORMAL, CONTROL = 1, 3

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and to measure on.

    Attributes:
        documents: those that are trained on, in the order of the files.
        held_out: those that only measure.
        sha256: of the files' bytes, one after the other.
    """

    documents: tuple[str, ...]
    held_out: tuple[str, ...]
    sha256: str


def read(paths: Sequence[Path], held_out: float = 0.02) -> Corpus:
    """Read texts; every ``1 / held_out``-th document is kept for measuring.

    Args:
        paths: files in UTF-8, documents separated by lines :data:`SEPARATOR`.
        held_out: the share that is not trained on, above 0 and at most a half.

    Raises:
        UserError: a file is missing or not UTF-8.
        UsageError: there are too few documents, or the share is out of range.
    """
    if not 0 < held_out <= 0.5:
        raise UsageError(f"a share of {held_out} cannot be held out", hint="choose one above 0, at most 0.5")
    digest, documents = hashlib.sha256(), list[str]()
    for path in paths:
        try:
            raw = path.read_bytes()
            text = raw.decode("utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}", hint="check the path") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 at byte {error.start}", hint="convert the text to UTF-8") from error
        digest.update(raw)
        documents += [part.strip("\n") for part in text.split(f"{SEPARATOR}\n") if part.strip()]
    every = round(1 / held_out)
    kept = tuple(documents[every - 1 :: every])
    if not kept:
        raise UsageError(
            f"{len(documents)} documents are too few to hold out a share of {held_out}",
            hint=f"separate documents by lines {SEPARATOR}, or hold out more",
        )
    del documents[every - 1 :: every]
    return Corpus(tuple(documents), kept, digest.hexdigest())


def vocabulary(documents: Sequence[str], size: int) -> Vocabulary:
    """A byte-level BPE of ``size`` tokens whose merges are the most frequent of the documents.

    Text is cut as GPT-2 cuts it, which files call ``gpt-2``. Token :data:`END` begins every text.

    Raises:
        UsageError: the documents do not give so many tokens, or ``size`` is less than the 256 bytes need.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if size <= len(alphabet) + 1:
        raise UsageError(f"{size} tokens are no vocabulary", hint="choose more than 257")
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    learned.train_from_iterator(documents, trainer)
    ids = learned.get_vocab()
    if len(ids) != size:
        raise UsageError(
            f"the corpus gives {len(ids)} tokens, not {size}", hint="choose a smaller vocabulary or train on more text"
        )
    tokens = sorted(ids, key=lambda token: ids[token])
    return Vocabulary(
        model="gpt2",
        pre=PRE_TOKENIZER,
        tokens=tokens,
        types=[CONTROL if i == END else NORMAL for i in range(size)],
        scores=[],
        merges=_merges(learned),
        special={"bos": END, "eos": END},
        add_bos=True,
    )


def _merges(learned: Tokenizer) -> list[str]:
    import json

    merges = json.loads(learned.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def encode(vocabulary: Vocabulary, documents: Sequence[str]) -> list[Ids]:
    """The ids of each document, by the very tokenizer with which the compiled model will read; END comes last."""
    tokenizer = Tokenizer.from_str(ggml_tokenizers.build(vocabulary))
    return [
        np.array([*e.ids, END], np.int64) for e in tokenizer.encode_batch(list(documents), add_special_tokens=False)
    ]


class Windows:
    """Windows of the documents, in an order that follows from the seed and the step alone.

    In every epoch the documents are shuffled, laid end to end and cut into windows; what does not fill the last batch
    of an epoch is left out.

    Args:
        documents: ids of each, END last.
        width: tokens that a window predicts; it holds one more.
        batch: windows of a step.
        seed: of the shuffling.

    Raises:
        UsageError: the documents do not fill a batch.
    """

    def __init__(self, documents: Sequence[Ids], *, width: int, batch: int, seed: int) -> None:
        self.documents = list(documents)
        self.width, self.batch, self.seed = width, batch, seed
        self.steps_per_epoch = (sum(map(len, self.documents)) - 1) // (width * batch)
        if self.steps_per_epoch < 1:
            raise UsageError(
                f"the corpus has fewer than the {width * batch} tokens of a step",
                hint="train on more text, or with a smaller batch or context",
            )
        self._epoch, self._stream = -1, np.zeros(0, np.int64)

    def __getitem__(self, step: int) -> Ids:
        """The windows of a step, int64 [batch, width + 1]: each predicts all but its first token."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.documents))
            # The first document begins after an END too, as every other one does.
            self._stream = np.concatenate([[END], *(self.documents[i] for i in order)])
            self._epoch = epoch
        begins = (place * self.batch + np.arange(self.batch)) * self.width
        windows: Ids = self._stream[begins[:, None] + np.arange(self.width + 1)]
        return windows


def padded(documents: Sequence[Ids], width: int) -> Ids:
    """Documents as rows to measure on: END, the document, and -1 behind its end; cut off after ``width`` + 1 ids."""
    width = min(width, max(map(len, documents)))
    rows = np.full((len(documents), width + 1), -1, np.int64)
    rows[:, 0] = END
    for row, ids in zip(rows, documents, strict=True):
        cut = ids[:width]
        row[1 : len(cut) + 1] = cut
    return rows
