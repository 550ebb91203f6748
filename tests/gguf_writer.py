"""A tiny GGUF writer for tests: whole small models, and the pieces that broken files are made of.

It follows the specification on its own and checks nothing, so that tests can write what no converter would.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc.sources.checkpoint import Checkpoint, Vocabulary
from ryzc.sources.gguf import GGML_TYPES

KINDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "string": 8, "array": 9}
KINDS |= {"u64": 10, "i64": 11, "f64": 12}
CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?", "u64": "Q"}
CODES |= {"i64": "q", "f64": "d"}
TYPE_IDS = {name: number for number, name in GGML_TYPES.items()}

Scalar: TypeAlias = str | int | float | bool


@dataclass(frozen=True)
class Typed:
    """A value, or a list of values, of a stated kind (a key of :data:`KINDS`)."""

    kind: str
    value: Scalar | Sequence[Scalar]


Value: TypeAlias = Scalar | Sequence[Scalar] | Typed


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: ``shape`` rows first, ``data`` its stored bytes in any shape."""

    name: str
    format: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8] | bytes

    @property
    def raw(self) -> bytes:
        return self.data if isinstance(self.data, bytes) else np.ascontiguousarray(self.data).tobytes()


def write(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    alignment: int | None = None,
) -> Path:
    """Write a GGUF file; returns its path."""
    path.write_bytes(encode(metadata, tensors, version=version, alignment=alignment))
    return path


def write_checkpoint(path: Path, checkpoint: Checkpoint, *, vocabulary: Vocabulary | None = None) -> Path:
    """Write a checkpoint, e.g. one of ``tiny_models``, so that reading the file gives it back."""
    tensors = [Tensor(t.name, t.format, t.shape, t.data) for t in checkpoint.tensors.values()]
    keys = {**checkpoint.metadata, **vocabulary_keys(vocabulary or checkpoint.vocabulary)}
    if checkpoint.chat_template is not None:
        keys["tokenizer.chat_template"] = checkpoint.chat_template
    return write(path, keys, tensors)


def vocabulary_keys(vocabulary: Vocabulary) -> dict[str, Value]:
    """The metadata that states a tokenizer."""
    keys: dict[str, Value] = {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": Typed("string", vocabulary.tokens),
        "token_type": Typed("i32", vocabulary.types),
    }
    if vocabulary.scores or vocabulary.model == "llama":
        keys["scores"] = Typed("f32", vocabulary.scores)
    if vocabulary.merges or vocabulary.model == "gpt2":
        keys["merges"] = Typed("string", vocabulary.merges)
    keys |= {f"{role}_token_id": id_ for role, id_ in vocabulary.special.items()}
    flags = {
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "add_space_prefix": vocabulary.add_space_prefix,
    }
    keys |= {name: flag for name, flag in flags.items() if flag is not None}
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def encode(
    metadata: Mapping[str, Value],
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    alignment: int | None = None,
) -> bytes:
    """The bytes of a GGUF file. ``alignment`` is also stated in the metadata where it is given."""
    keys = dict(metadata)
    if alignment is not None:
        keys["general.alignment"] = alignment
    step, infos, body = alignment or 32, b"", b""
    for tensor in tensors:
        infos += info(tensor.name, tensor.shape[::-1], TYPE_IDS[tensor.format], len(body))
        body += pad(tensor.raw, step)
    head = header(len(tensors), len(keys), version) + b"".join(pair(k, v) for k, v in keys.items()) + infos
    return pad(head, step) + body if tensors else head


def header(tensors: int, keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, value: Value) -> bytes:
    """A key with its value; kinds that are not stated follow what converters use."""
    return text(key) + _value(value)


def info(name: str | bytes, dimensions: Sequence[int], type_id: int, offset: int) -> bytes:
    """A tensor's entry; ``dimensions`` as stored, the fastest first."""
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", type_id, offset)


def pad(raw: bytes, alignment: int = 32) -> bytes:
    return raw + bytes(-len(raw) % alignment)


def _value(value: Value) -> bytes:
    if not isinstance(value, Typed):
        first = value if isinstance(value, (str, int, float)) else value[0]
        value = Typed(_kind(first), value)
    if isinstance(value.value, (str, int, float)):
        return struct.pack("<I", KINDS[value.kind]) + _element(value.kind, value.value)
    start = struct.pack("<IIQ", KINDS["array"], KINDS[value.kind], len(value.value))
    return start + b"".join(_element(value.kind, v) for v in value.value)


def _kind(value: Scalar) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "u32" if value >= 0 else "i32"
    return "string" if isinstance(value, str) else "f32"


def _element(kind: str, value: Scalar) -> bytes:
    return text(value) if isinstance(value, str) else struct.pack("<" + CODES[kind], value)
