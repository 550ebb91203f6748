"""The golden token ids of :mod:`golden.make_tokens`: where they lie and what is in them.

``golden/tokens/MODEL.npz`` holds, for the texts of :mod:`token_texts`,

* ``ids`` int32 and ``lengths`` int32: llama.cpp's ids of all texts, one after the other (``add_special`` off,
  ``parse_special`` on);
* ``plain_ids``, ``plain_lengths``: the same with ``parse_special`` off;
* ``bos`` bool: whether llama.cpp puts a first token before a text;
* ``end_of_generation`` int32: the ids that llama.cpp ends a generation on;
* ``texts_sha256`` uint8 [32]: of the texts, so that a change of theirs is not taken for a change of ids.

``golden/tokens/pre_tokenizers.npz`` holds ``names`` and ``checksums`` uint32 [names, texts]: CRC-32 of the ids (int32,
with ``add_special``) when SmolLM2's vocabulary names another pre-tokenizer.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from token_texts import VOCABULARY_TESTS, random_texts

from ryzc.sources.checkpoint import Vocabulary
from ryzc.sources.tokenizers import CONTROL, USER_DEFINED

DIRECTORY = Path(__file__).parent / "golden" / "tokens"
PRE_TOKENIZERS = DIRECTORY / "pre_tokenizers.npz"


def golden_texts(vocabulary: Vocabulary) -> list[str]:
    """The fixed texts, then the random ones, sprinkled with this vocabulary's special tokens."""
    kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
    return VOCABULARY_TESTS + random_texts([token for token, kind in kinds if kind in (CONTROL, USER_DEFINED)])


def pre_tokenizer_texts(vocabulary: Vocabulary) -> list[str]:
    """The first 300 of those texts."""
    return golden_texts(vocabulary)[:300]


def sha256(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    """uint8 [32]."""
    return np.frombuffer(hashlib.sha256("\x1e".join(texts).encode()).digest(), np.uint8)


def flatten(rows: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """All ids in one row, and how many belong to each text."""
    return np.array([id_ for row in rows for id_ in row], np.int32), np.array([len(row) for row in rows], np.int32)


def unflatten(ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> list[list[int]]:
    """The inverse of :func:`flatten`."""
    return [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])]


def checksum(ids: Sequence[int]) -> int:
    """CRC-32 of the ids as int32."""
    return zlib.crc32(np.array(ids, np.int32).tobytes())
