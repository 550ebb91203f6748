"""Attention over one sequence becomes attention over pages of a cache shared by several.

The graph gains the inputs ``sequences`` int64[T], ``page_table`` int64[S, P] and per layer
``k_pages.I`` [pages, Hk, D, page_tokens] and ``v_pages.I`` [pages, Hk, page_tokens, D], and gives the
updated pages back as ``k_pages.I.next`` and ``v_pages.I.next``. Pages of codes have scales
``k_scales.I`` and ``v_scales.I`` [pages, Hk, page_tokens, blocks of a head] beside them, and where codes have 4 bits
zero points ``k_zeros.I`` and ``v_zeros.I``, which are updated likewise. Norms and rotation of queries and keys
join the storing.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ryzc.errors import InternalError, UsageError
from ryzc.graph.nodes import (
    FLOAT,
    Dim,
    add_input,
    dims,
    integer,
    make,
    name_of,
    nodes,
    operand,
    producer,
    real,
    replace,
)
from ryzc.graph.ops.paged_codes import cache, suffix
from ryzc.kv_formats import GROUP, KV_FORMATS, USUAL, KVFormat, block
from ryzc.passes.pass_ import Pass, Report

_FLOATS = {32: ir.DataType.FLOAT, 16: ir.DataType.FLOAT16}
_CODES = {16: ir.DataType.INT16, 8: ir.DataType.INT8, 4: ir.DataType.UINT8}
"""The type of a page's element, by its bits."""


def _elements(format_: KVFormat) -> tuple[ir.DataType, ir.DataType]:
    """The types of elements of keys and values."""
    types = _CODES if format_.coded else _FLOATS
    return types[format_.key_bits], types[format_.value_bits]


def of_pages(keys: ir.DataType | None, values: ir.DataType | None) -> str:
    """The name of the format whose keys and values have elements of these types."""
    for format_ in KV_FORMATS.values():
        if _elements(format_) == (keys, values):
            return format_.name
    raise InternalError(f"no pages hold keys of {keys} and values of {values}")


@dataclass(frozen=True)
class _Head:
    """How one of q and k comes out of the joined linear layer."""

    split: ir.Node
    output: int
    cos: ir.Value
    sin: ir.Value
    interleaved: int
    norm: ir.Value | None
    epsilon: float


class KVLayout(Pass):
    name = "kv_layout"
    requires = ("qkv",)
    ensures = ("paged",)

    def __init__(self, *, page_tokens: int = 32, dtype: str = USUAL) -> None:
        if page_tokens < 1:
            raise UsageError(f"a page of {page_tokens} tokens makes no sense")
        if dtype not in KV_FORMATS:
            raise UsageError(f"keys and values cannot be kept as {dtype!r}", hint=f"use {', '.join(KV_FORMATS)}")
        self.page_tokens = page_tokens
        self.format = KV_FORMATS[dtype]

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        layers = 0
        for layer, attention in enumerate(nodes(graph, "CausalAttention")):
            self._page(graph, attention, layer)
            layers += 1
        return self.report(layers=layers)

    def _page(self, graph: ir.Graph, attention: ir.Node, layer: int) -> None:
        q, k = _head(operand(attention, 0)), _head(operand(attention, 1))
        v = producer(attention.inputs[2], "Split")
        same = (q.split, q.cos, q.sin, q.interleaved) == (k.split, k.cos, k.sin, k.interleaved)
        if not same or v is not q.split or (q.norm is None) != (k.norm is None) or q.epsilon != k.epsilon:
            raise InternalError(f"{attention.name}: queries, keys and values are not made alike")
        if (q.output, k.output, operand(attention, 2).index()) != (0, 1, 2):
            raise InternalError(f"{attention.name}: queries, keys and values are not in this order")

        heads, kv_heads = integer(attention, "heads"), integer(attention, "kv_heads")
        head_dim = int(dims(operand(attention, 0))[1]) // heads
        positions = operand(attention, 3)
        tokens = dims(positions)[0]
        sequences = add_input(graph, "sequences", ir.DataType.INT64, [tokens])
        page_table = add_input(graph, "page_table", ir.DataType.INT64, ["S", "P"])
        cache = self._cache(layer, kv_heads, head_dim)
        kind = suffix(self.format.name)
        blocks = {}
        if self.format.coded:
            blocks["block"] = block(head_dim) if self.format.transformed else head_dim

        qkv = operand(q.split, 0)
        append = make(
            f"RopeAppend{kind}",
            [
                qkv,
                q.cos,
                q.sin,
                *(add_input(graph, *part) for part in cache),
                page_table,
                positions,
                sequences,
                q.norm,
                k.norm,
            ],
            [
                (f"{name_of(attention.outputs[0])}.q", FLOAT, [tokens, heads * head_dim]),
                *((f"{name}.next", dtype, shape) for name, dtype, shape in cache),
            ],
            {
                "heads": heads,
                "kv_heads": kv_heads,
                "head_dim": head_dim,
                "interleaved": q.interleaved,
                "epsilon": q.epsilon,
                **blocks,
            },
        )
        graph.insert_before(attention, append)
        y = attention.outputs[0]
        paged = make(
            f"PagedAttention{kind}",
            [*append.outputs, page_table, positions, sequences],
            [(name_of(y), FLOAT, dims(y))],
            {
                "heads": heads,
                "kv_heads": kv_heads,
                "scale": real(attention, "scale"),
                "window": integer(attention, "window"),
                **blocks,
            },
        )
        replace(graph, y, paged)
        graph.outputs.extend(append.outputs[1:])

    def _cache(self, layer: int, kv_heads: int, head_dim: int) -> list[tuple[str, ir.DataType, list[Dim]]]:
        """Names, types and shapes of what keeps a layer's keys and values."""
        format_, slots = self.format, self.page_tokens
        of_key, of_value = _elements(format_)
        key_blocks = head_dim // block(head_dim) if format_.transformed else 1
        own: dict[str, tuple[ir.DataType, list[Dim], int]] = {
            "k": (of_key, [head_dim, slots], head_dim // GROUP if format_.key_bits == 4 else key_blocks),
            "v": (of_value, [slots, head_dim], head_dim // GROUP if format_.value_bits == 4 else 1),
        }
        parts = []
        for name in cache(format_.name):
            letter, kind = name.split("_")
            element, shape, blocks = own[letter]
            per_head: list[Dim] = shape if kind == "pages" else [slots, blocks]
            types = {"pages": element, "scales": FLOAT, "zeros": ir.DataType.UINT8}
            parts.append((f"{name}.{layer}", types[kind], ["pages", kv_heads, *per_head]))
        return parts


def _head(value: ir.Value) -> _Head:
    """Walk back from the attention: rotation, norm or none, and a part of the joined linear layer."""
    rope = producer(value, "Rope")
    if rope is None:
        raise InternalError(f"{value.name} is not rotated")
    x = operand(rope, 0)
    norm, epsilon = None, 0.0
    head_norm = producer(x, "HeadNorm")
    if head_norm is not None:
        x, norm, epsilon = operand(head_norm, 0), operand(head_norm, 1), real(head_norm, "epsilon")
    split = producer(x, "Split")
    if split is None:
        raise InternalError(f"{value.name} does not come from a joined linear layer")
    return _Head(split, x.index() or 0, operand(rope, 1), operand(rope, 2), integer(rope, "interleaved"), norm, epsilon)
