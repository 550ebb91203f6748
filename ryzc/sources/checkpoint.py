"""What every source becomes: a :class:`Checkpoint`, still in its stored formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Scalar: TypeAlias = str | int | float | bool
MetadataValue: TypeAlias = Scalar | Sequence[Scalar]


@dataclass(frozen=True)
class StoredTensor:
    """One named tensor as the file holds it.

    Attributes:
        name: the name in the file, e.g. ``blk.0.attn_q.weight``.
        format: the name of a weight format of :mod:`ryzc.formats`, e.g. ``q4_1``.
        shape: logical shape, rows first: a linear layer's weight is ``(N, K)``.
        data: ``uint8`` of shape ``(*shape[:-1], row_bytes)``; a read-only view of the mapped file, but for tensors
            that no format of ours holds as they lie there (I2_S, packed safetensors), which are ``ternary`` copies.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer as the source states it; :mod:`ryzc.sources.tokenizers` makes it run.

    Attributes:
        model: the family: ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece).
        pre: the name of the pre-tokenizer, e.g. ``smollm``; ``default`` where the source names none.
        tokens: the text of each id.
        types: per id 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
        scores: per id, for SentencePiece; empty otherwise.
        merges: ``"left right"`` in order of rank, for BPE; empty otherwise.
        special: ids by role: ``bos eos unknown padding eot eom`` where the source names them.
        add_bos, add_eos, add_space_prefix: what encoding adds; ``None`` where the source is silent.
        ends: ids that end a generation beside those that ``special`` names.
        document: the text of ``tokenizer.json`` where the source has one that runs as it is; ``scores`` and ``merges``
            are empty then.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    special: Mapping[str, int]
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_space_prefix: bool | None = None
    ends: Sequence[int] = ()
    document: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model as its source states it: nothing converted, nothing guessed.

    Attributes:
        path: the file or directory it came from.
        architecture: the name of a file in :mod:`ryzc.models`, e.g. ``llama``.
        metadata: the source's own keys and values, the tokenizer's long lists left out.
        tensors: by name, in file order.
        vocabulary: the tokenizer's parts.
        chat_template: Jinja text, or ``None`` where the source has none.
        generation: sampling that the model's makers recommend, by the names of ``generation_config.json``.
        provenance: facts for the manifest: file name, bytes, sha256 where it is known.
        bit_linear: whether the source says that all linear layers but the head are BitNet's (arXiv:2402.17764), which
            round what they are given by token: ``packed`` where their weights are ternary as stored, ``master`` where
            weights are rounded likewise, by their mean magnitude; ``None`` where it says nothing of the kind.
    """

    path: Path
    architecture: str
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, StoredTensor]
    vocabulary: Vocabulary
    chat_template: str | None = None
    provenance: Mapping[str, Scalar] = field(default_factory=dict)
    generation: Mapping[str, int | float] = field(default_factory=dict)
    bit_linear: Literal["packed", "master"] | None = None
