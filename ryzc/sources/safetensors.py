"""Safetensors files: a bounded reader that trusts no number in the file.

A file is the length of its header (64 bits), the header as JSON, and the tensors' bytes, which must follow each other
without gaps or overlaps. Nothing is allocated by what the header says; tensors are read-only views of the mapped file.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ryzc.errors import SourceError
from ryzc.sources import files
from ryzc.sources.files import DAMAGED

MAX_HEADER: Final = 100_000_000
"""The bound that the format itself sets."""
MAX_DIMENSIONS: Final = 8
SIZES: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of an element, by the name of its type."""


@dataclass(frozen=True)
class RawTensor:
    """A tensor as the file holds it.

    Attributes:
        dtype: the name of a type in :data:`SIZES`.
        shape: rows first; empty for a number.
        data: ``uint8 [bytes]``.
    """

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


def read(path: Path) -> Mapping[str, RawTensor]:
    """The tensors of a file by name.

    Raises:
        SourceError: it is missing, no safetensors file, or damaged.
    """
    raw = files.mapped(path, "safetensors")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if len(raw) < 8 or length > min(len(raw) - 8, MAX_HEADER):
        raise SourceError(f"{path}: is no safetensors file, or cut short", hint=DAMAGED)
    try:
        header = raw[8 : 8 + length].tobytes().decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: its header is not UTF-8", hint=DAMAGED) from error
    entries = files.json_object(header, f"{path}: its header")
    entries.pop("__metadata__", None)
    body = raw[8 + length :]
    places = {name: _entry(path, name, entry) for name, entry in entries.items()}
    at = 0
    for name, (_, _, start, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
        if start != at:
            raise SourceError(f"{path}: tensor {name!r} begins at {start}, not at {at}", hint=DAMAGED)
        at = stop
    if at != len(body):
        raise SourceError(f"{path}: tensors are {at} bytes, but {len(body)} are there", hint=DAMAGED)
    return {name: RawTensor(dtype, shape, body[start:stop]) for name, (dtype, shape, start, stop) in places.items()}


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, start and stop of a tensor, which fit together."""
    what = f"{path}: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise SourceError(f"{what} is not described by dtype, shape and data_offsets", hint=DAMAGED)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise SourceError(f"{what} has the unknown type {str(dtype)[:40]!r}", hint=DAMAGED)
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS or not _sizes(offsets) or len(offsets) != 2:
        raise SourceError(f"{what} has an impossible shape or place", hint=DAMAGED)
    start, stop = offsets
    if stop - start != math.prod(shape) * SIZES[dtype]:
        raise SourceError(f"{what} has {stop - start} bytes, which is not its shape's size", hint=DAMAGED)
    return dtype, tuple(shape), start, stop


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 62 for size in value)
