"""GGUF files: a bounded reader that trusts no number in the file.

Every count and length is checked against the bytes that remain before anything is read or allocated, so
a hostile file costs at most time and memory in proportion to its size. Tensors are read-only views of
the mapped file, which must not be cut short while they are in use; those of type I2_S are copied.
Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ryzc import formats
from ryzc.errors import SourceError, UnsupportedError
from ryzc.sources import files, i2_s
from ryzc.sources.checkpoint import Checkpoint, MetadataValue, StoredTensor, Vocabulary
from ryzc.sources.files import DAMAGED

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
MIN_ALIGNMENT: Final = 8
MAX_ALIGNMENT: Final = 1 << 20
MAX_NAME: Final = 1 << 16
MAX_DIMENSIONS: Final = 4
FOREIGN: Final = "the file is damaged or was not made for running; convert the model again with a current converter"

GGML_TYPES: Final = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 4: "q4_2", 5: "q4_3", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1",
    10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs",
    18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 24: "i8", 25: "i16",
    26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 30: "bf16", 31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8",
    34: "tq1_0", 35: "tq2_0", 36: "i2_s", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8", 39: "mxfp4", 40: "nvfp4",
    41: "q1_0",
}  # fmt: skip
"""Names of the tensor types that the specification knows; those without a format of ours are refused by name.

36 was an order of IQ4_NL for a short time, of which no files are around. bitnet.cpp uses it for I2_S.
"""

I2_S: Final = "i2_s"
TERNARY: Final = "ternary"
"""The format that I2_S becomes; only models of BitNet layers are stored so."""

_LOOKALIKES: Final = {
    b"vers": "a Git LFS pointer instead of the file itself",
    b"PK\x03\x04": "a zip archive, perhaps a PyTorch checkpoint",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"lmgg": "a GGML file of before GGUF",
    b"tjgg": "a GGML file of before GGUF",
}

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9

_List: TypeAlias = list[str] | list[int] | list[float] | list[bool]
_Value: TypeAlias = str | int | float | bool | _List
T = TypeVar("T")


def read(path: str | Path) -> Checkpoint:
    """Open a GGUF file.

    Raises:
        SourceError: the file is missing, no GGUF, damaged, or lacks what a model needs.
        UnsupportedError: the file is sound, but split, of another version or byte order, or holds a
            tensor type that ryzc has no format for.
    """
    path = Path(path)
    data = files.mapped(path, "GGUF")
    cursor = _Cursor(path, data)
    tensor_count, key_count = _header(cursor)
    metadata = _metadata(cursor, key_count)
    if _typed(path, metadata, "split.count", int, 1) > 1:
        raise UnsupportedError(
            f"{path}: is one of several parts of a split model", hint="join them first, e.g. with llama-gguf-split"
        )
    alignment = _typed(path, metadata, "general.alignment", int, DEFAULT_ALIGNMENT)
    if alignment & (alignment - 1) or not MIN_ALIGNMENT <= alignment <= MAX_ALIGNMENT:
        raise SourceError(
            f"{path}: general.alignment is {alignment}, no power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}",
            hint=DAMAGED,
        )
    tensors = _tensors(cursor, data, tensor_count, alignment)
    template = metadata.get("tokenizer.chat_template")
    return Checkpoint(
        path=path,
        architecture=_typed(path, metadata, "general.architecture", str),
        metadata={k: _public(v) for k, v in metadata.items() if not k.startswith("tokenizer.")},
        tensors=tensors,
        vocabulary=_vocabulary(path, metadata),
        chat_template=None if template is None else _typed(path, metadata, "tokenizer.chat_template", str),
        provenance={"file": path.name, "bytes": len(data)},
        bit_linear="packed" if any(tensor.format == TERNARY for tensor in tensors.values()) else None,
    )


class _Cursor:
    """A position in the file that never passes its end."""

    def __init__(self, path: Path, data: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.view = memoryview(data)  # type: ignore[arg-type]  # numpy before 3.12 types no buffers
        self.at = 0

    def damaged(self, what: str) -> SourceError:
        return SourceError(f"{self.path}: {what} (at byte {self.at})", hint=DAMAGED)

    def need(self, count: int, what: str) -> None:
        """Make sure that ``count`` bytes remain."""
        if count > len(self.view) - self.at:
            raise self.damaged(f"{what} needs {count} bytes, but only {len(self.view) - self.at} remain")

    def number(self, code: str, what: str) -> int:
        size = struct.calcsize("<" + code)
        self.need(size, what)
        (value,) = struct.unpack_from("<" + code, self.view, self.at)
        self.at += size
        return cast(int, value)

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.number("Q", f"the length of {what}")
        if limit is not None and length > limit:
            raise self.damaged(f"{what} is {length} bytes long, more than {limit}")
        self.need(length, what)
        raw = bytes(self.view[self.at : self.at + length])
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error


def _header(cursor: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and of keys."""
    magic = bytes(cursor.view[:4])
    if magic != MAGIC:
        raise SourceError(
            f"{cursor.path}: is not a GGUF file but {_LOOKALIKES.get(magic, f'starts with {magic!r}')}",
            hint="ryzc reads GGUF; fetch or convert the model as .gguf",
        )
    cursor.at = 4
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise UnsupportedError(f"{cursor.path}: is a big-endian GGUF file", hint="convert it to little-endian")
        raise UnsupportedError(
            f"{cursor.path}: GGUF version {version}; ryzc reads {' and '.join(map(str, VERSIONS))}",
            hint="convert the model again with a current converter",
        )
    tensors, keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of keys")
    cursor.need(24 * tensors + 13 * keys, f"a header of {tensors} tensors and {keys} keys")
    return tensors, keys


def _metadata(cursor: _Cursor, count: int) -> dict[str, _Value]:
    found: dict[str, _Value] = {}
    for i in range(count):
        key = cursor.text(f"key {i}", MAX_NAME)
        if key in found:
            raise cursor.damaged(f"key {_short(key)} appears twice")
        found[key] = _value(cursor, _short(key), cursor.number("I", f"the type of {_short(key)}"))
    return found


def _short(name: str) -> str:
    """A name of the file as it may stand in a message."""
    return repr(name if len(name) <= 80 else name[:80] + "…")


def _value(cursor: _Cursor, key: str, kind: int) -> _Value:
    """The value of a key, whose name is given as messages show it."""
    if kind == _STRING:
        return cursor.text(f"the value of {key}")
    if kind == _ARRAY:
        return _array(cursor, key)
    if kind not in _SCALARS:
        raise cursor.damaged(f"{key} has the unknown type {kind}")
    if kind == _BOOL:
        return _truths(cursor, key, 1)[0]
    return cursor.number(_SCALARS[kind], f"the value of {key}")


def _array(cursor: _Cursor, key: str) -> _List:
    kind, count = cursor.number("I", f"the element type of {key}"), cursor.number("Q", f"the length of {key}")
    if kind == _STRING:
        return _strings(cursor, key, count)
    if kind == _BOOL:
        return _truths(cursor, key, count)
    if kind == _ARRAY:
        raise UnsupportedError(
            f"{cursor.path}: {key} is an array of arrays, which no model that ryzc knows needs", hint=FOREIGN
        )
    if kind not in _SCALARS:
        raise cursor.damaged(f"{key} has elements of the unknown type {kind}")
    dtype = np.dtype("<" + _SCALARS[kind])
    cursor.need(count * dtype.itemsize, f"{key} with {count} elements")
    values = np.frombuffer(cursor.view, dtype, count, cursor.at)
    cursor.at += values.nbytes
    return cast(_List, values.tolist())


def _strings(cursor: _Cursor, key: str, count: int) -> list[str]:
    """Strings one after another; the one loop that large files spend their time in."""
    cursor.need(8 * count, f"{key} with {count} strings")
    view, at, end = cursor.view, cursor.at, len(cursor.view)
    length_at = struct.Struct("<Q").unpack_from
    found: list[str] = []
    try:
        for _ in range(count):
            (length,) = length_at(view, at)
            stop = at + 8 + length
            if stop > end:
                cursor.at = at
                raise cursor.damaged(f"string {len(found)} of {key} is {length} bytes long, past the end")
            found.append(str(view[at + 8 : stop], "utf-8"))
            at = stop
    except UnicodeDecodeError as error:
        cursor.at = at
        raise cursor.damaged(f"string {len(found)} of {key} is not UTF-8") from error
    except struct.error as error:
        cursor.at = at
        raise cursor.damaged(f"{key} ends after {len(found)} of {count} strings") from error
    cursor.at = at
    return found


def _truths(cursor: _Cursor, key: str, count: int) -> list[bool]:
    cursor.need(count, f"{key} with {count} truth values")
    raw = bytes(cursor.view[cursor.at : cursor.at + count])
    if raw and max(raw) > 1:
        raise cursor.damaged(f"{key} holds a truth value that is neither 0 nor 1")
    cursor.at += count
    return [b == 1 for b in raw]


@dataclass(frozen=True)
class _Entry:
    name: str
    format: str
    shape: tuple[int, ...]
    offset: int
    row_bytes: int
    trailer: int = 0

    @property
    def bytes(self) -> int:
        return self.row_bytes * math.prod(self.shape[:-1]) + self.trailer


def _tensors(cursor: _Cursor, data: npt.NDArray[np.uint8], count: int, alignment: int) -> Mapping[str, StoredTensor]:
    entries: dict[str, _Entry] = {}
    for i in range(count):
        entry = _entry(cursor, i, alignment)
        if entry.name in entries:
            raise cursor.damaged(f"tensor {_short(entry.name)} appears twice")
        entries[entry.name] = entry
    start = _aligned(cursor.at, alignment)
    size, last_end, last = len(data) - start, 0, ""
    for entry in sorted(entries.values(), key=lambda e: e.offset):
        if entry.offset < last_end:
            raise cursor.damaged(f"tensors {_short(last)} and {_short(entry.name)} overlap")
        last_end, last = entry.offset + entry.bytes, entry.name
        if last_end > size:
            end = start + last_end
            raise cursor.damaged(f"tensor {_short(entry.name)} ends at byte {end}, past the file's {len(data)}")
    if size > _aligned(last_end, alignment):
        raise cursor.damaged(f"{size - last_end} bytes follow the last tensor, and nothing accounts for them")
    return {e.name: _stored(cursor, e, data[start + e.offset : start + e.offset + e.bytes]) for e in entries.values()}


def _stored(cursor: _Cursor, entry: _Entry, raw: npt.NDArray[np.uint8]) -> StoredTensor:
    if entry.format != I2_S:
        return StoredTensor(entry.name, entry.format, entry.shape, raw.reshape(*entry.shape[:-1], entry.row_bytes))
    try:
        return StoredTensor(entry.name, TERNARY, entry.shape, i2_s.to_ternary(raw, entry.shape))
    except ValueError as error:
        raise cursor.damaged(f"tensor {_short(entry.name)}: {error}") from error


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _entry(cursor: _Cursor, index: int, alignment: int) -> _Entry:
    name = cursor.text(f"the name of tensor {index}", MAX_NAME)
    what = f"tensor {_short(name)}"
    rank = cursor.number("I", f"the rank of {what}")
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise cursor.damaged(f"{what} has {rank} dimensions")
    shape = tuple(cursor.number("Q", f"a dimension of {what}") for _ in range(rank))[::-1]
    if min(shape) < 1:
        raise cursor.damaged(f"{what} has shape {list(shape)}")
    kind, offset = cursor.number("I", f"the type of {what}"), cursor.number("Q", f"the place of {what}")
    if kind not in GGML_TYPES:
        raise UnsupportedError(
            f"{cursor.path}: {what} has the tensor type {kind}, which ryzc does not know",
            hint=f"ryzc reads {', '.join(_known())}",
        )
    if GGML_TYPES[kind] not in _known():
        raise UnsupportedError(
            f"{cursor.path}: {what} is stored as {GGML_TYPES[kind]}, which ryzc does not read",
            hint=f"requantize the model to one of {', '.join(_known())}",
        )
    if offset % alignment:
        raise cursor.damaged(f"{what} starts at {offset}, which is not aligned to {alignment}")
    if GGML_TYPES[kind] == I2_S:
        if math.prod(shape) % i2_s.GROUP or shape[-1] % formats.get(TERNARY).block:
            raise cursor.damaged(f"{what}: {list(shape)} elements are not whole groups of I2_S")
        return _Entry(name, I2_S, shape, offset, shape[-1] // 4, i2_s.TRAILER)
    try:
        row_bytes = formats.get(GGML_TYPES[kind]).row_bytes(shape[-1])
    except ValueError as error:
        raise cursor.damaged(f"{what}: {error}") from error
    return _Entry(name, GGML_TYPES[kind], shape, offset, row_bytes)


def _known() -> list[str]:
    """The tensor types that are read."""
    return sorted({*GGML_TYPES.values()} & {*formats.names(), I2_S})


_TYPE_NAMES = {str: "text", int: "whole number", bool: "truth value", float: "number", list: "list"}


def _typed(path: Path, metadata: Mapping[str, _Value], key: str, kind: type[T], default: T | None = None) -> T:
    """A key's value, which must be of a type; required where there is no default."""
    value = metadata.get(key, default)
    if value is None:
        raise SourceError(f"{path}: the metadata lacks {key}", hint=FOREIGN)
    if type(value) is not kind:  # bool is a subclass of int
        raise SourceError(f"{path}: {key} is a {_TYPE_NAMES[type(value)]}, not a {_TYPE_NAMES[kind]}", hint=FOREIGN)
    return value


def _listed(path: Path, metadata: Mapping[str, _Value], key: str, kind: type[T], *, needed: bool) -> list[T]:
    """A key's list of one type; empty where it is absent and not needed."""
    value = metadata.get(key)
    if value is None:
        if needed:
            raise SourceError(f"{path}: the metadata lacks {key}", hint=FOREIGN)
        return []
    if not isinstance(value, list) or (value and type(value[0]) is not kind):
        raise SourceError(f"{path}: {key} is no list of {_TYPE_NAMES[kind]}s", hint=FOREIGN)
    return cast(list[T], value)


def _public(value: _Value) -> MetadataValue:
    return tuple(value) if isinstance(value, list) else value


_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unknown": "unknown_token_id",
    "padding": "padding_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}


def _vocabulary(path: Path, metadata: Mapping[str, _Value]) -> Vocabulary:
    prefix = "tokenizer.ggml."
    model = _typed(path, metadata, prefix + "model", str)

    def truth(name: str) -> bool | None:
        return _typed(path, metadata, prefix + name, bool) if prefix + name in metadata else None

    special = {
        role: _typed(path, metadata, prefix + key, int) for role, key in _ROLES.items() if prefix + key in metadata
    }
    return Vocabulary(
        model=model,
        pre=_typed(path, metadata, prefix + "pre", str, "default"),
        tokens=_listed(path, metadata, prefix + "tokens", str, needed=True),
        types=_listed(path, metadata, prefix + "token_type", int, needed=True),
        scores=_listed(path, metadata, prefix + "scores", float, needed=model == "llama"),
        merges=_listed(path, metadata, prefix + "merges", str, needed=model == "gpt2"),
        special=special,
        add_bos=truth("add_bos_token"),
        add_eos=truth("add_eos_token"),
        add_space_prefix=truth("add_space_prefix"),
    )
