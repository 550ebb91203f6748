"""``weights.safetensors``: packed weights in a file that can be mapped and that any reader opens.

The format is Hugging Face's safetensors: eight bytes with the header's length, the header in JSON,
the data. Ours pads the header with spaces so that the data starts at a multiple of a page, and
fills gaps between weights with explicit ``__pad`` tensors, for the format allows no holes. The
header follows from the plan alone, so a loader can demand it byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from ryzc.bundle.plan import PackedWeight

ALIGNMENT = 64
PAGE = 4096
_DTYPES = {"f32": ("F32", 4), "f64": ("F64", 8), "f16": ("F16", 2), "bf16": ("BF16", 2)}


def assign_offsets(sizes: Iterable[tuple[str, int]]) -> list[int]:
    """Offsets in the data section for weights of ``(name, bytes)``, in order, 64-byte aligned."""
    offsets, end = [], 0
    for _, size in sizes:
        offsets.append(end)
        end = _align(end + size, ALIGNMENT)
    return offsets


def data_bytes(weights: Sequence[PackedWeight]) -> int:
    """Size of the data section, padding after the last weight included."""
    return _align(weights[-1].offset + weights[-1].bytes, ALIGNMENT) if weights else 0


def gap_after(weights: Sequence[PackedWeight], i: int) -> int:
    """Bytes of padding between weight ``i`` and what follows it."""
    following = weights[i + 1].offset if i + 1 < len(weights) else data_bytes(weights)
    return following - weights[i].offset - weights[i].bytes


def header(weights: Sequence[PackedWeight]) -> bytes:
    """Everything before the data section; a multiple of 4096 bytes.

    Weights lie in order of their offsets, without overlap. Plain floats keep their type and shape
    in the file, packed ones are opaque bytes.
    """
    entries: dict[str, object] = {"__metadata__": {"writer": "ryzc"}}
    taken = {w.name for w in weights}
    pads = (name for i in range(2 * len(weights) + 1) if (name := f"__pad.{i}") not in taken)
    if weights and weights[0].offset:
        entries[next(pads)] = _entry("U8", [weights[0].offset], 0, weights[0].offset)
    for i, weight in enumerate(weights):
        end = weight.offset + weight.bytes
        entries[weight.name] = _entry(*_type_of(weight), weight.offset, end)
        gap = gap_after(weights, i)
        if gap:
            entries[next(pads)] = _entry("U8", [gap], end, end + gap)
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode()
    length = _align(8 + len(text), PAGE) - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _type_of(weight: PackedWeight) -> tuple[str, list[int]]:
    dtype, width = _DTYPES.get(weight.format, ("U8", 1))
    if weight.layout == "plain" and width * weight.rows * weight.columns == weight.bytes:
        return dtype, [weight.columns] if weight.rows == 1 else [weight.rows, weight.columns]
    return "U8", [weight.bytes]


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
