"""Writing GGUF files: version 3, little-endian (ggml, docs/gguf.md). :mod:`ryzc.sources.gguf` reads them."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ryzc.sources.checkpoint import StoredTensor, Vocabulary
from ryzc.sources.gguf import DEFAULT_ALIGNMENT, GGML_TYPES, MAGIC

Value: TypeAlias = bool | int | float | str | Sequence[int] | Sequence[str]

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_TYPE_IDS = {name: number for number, name in GGML_TYPES.items()}


def write(path: Path, metadata: Mapping[str, Value], tensors: Sequence[StoredTensor]) -> None:
    """Write a file beside its place and rename it.

    Args:
        path: where to.
        metadata: integers become uint32, in lists int32; floats become float32.
        tensors: their names, formats, shapes and stored bytes, in this order.

    Raises:
        OSError: it cannot be written.
    """
    head = MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]  # the fastest first
        head += _text(tensor.name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        head += struct.pack("<IQ", _TYPE_IDS[tensor.format], offset)
        offset += _aligned(tensor.data.nbytes)
    scratch = path.with_name(f".{path.name}.part")
    with scratch.open("wb") as file:
        file.write(head.ljust(_aligned(len(head)), b"\0"))
        for tensor in tensors:
            raw = np.ascontiguousarray(tensor.data).tobytes()
            file.write(raw.ljust(_aligned(len(raw)), b"\0"))
    os.replace(scratch, path)


def vocabulary_keys(vocabulary: Vocabulary) -> dict[str, Value]:
    """The metadata of a byte-level BPE."""
    keys: dict[str, Value] = {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": vocabulary.tokens,
        "token_type": vocabulary.types,
        "merges": vocabulary.merges,
    }
    keys |= {f"{role}_token_id": id_ for role, id_ in vocabulary.special.items()}
    if vocabulary.add_bos is not None:
        keys["add_bos_token"] = vocabulary.add_bos
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _aligned(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    texts = [item for item in value if isinstance(item, str)]
    if texts:
        return struct.pack("<IIQ", _ARRAY, _STRING, len(texts)) + b"".join(map(_text, texts))
    return struct.pack("<IIQ", _ARRAY, _INT32, len(value)) + np.array(value, "<i4").tobytes()
