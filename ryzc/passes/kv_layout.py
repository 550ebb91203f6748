"""Attention over one sequence becomes attention over pages of a cache shared by several.

The graph gains the inputs ``sequences`` int64[T], ``page_table`` int64[S, P] and per layer
``k_pages.I`` [pages, Hk, D, page_tokens] and ``v_pages.I`` [pages, Hk, page_tokens, D], and gives the
updated pages back as ``k_pages.I.next`` and ``v_pages.I.next``. Pages of int8 have scales ``k_scales.I`` and
``v_scales.I`` [pages, Hk, page_tokens] beside them, which are updated likewise. Norms and rotation of queries and keys
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
from ryzc.passes.pass_ import Pass, Report

DTYPES = {"f16": ir.DataType.FLOAT16, "f32": ir.DataType.FLOAT, "int8": ir.DataType.INT8}


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

    def __init__(self, *, page_tokens: int = 32, dtype: str = "f16") -> None:
        if page_tokens < 1:
            raise UsageError(f"a page of {page_tokens} tokens makes no sense")
        if dtype not in DTYPES:
            raise UsageError(f"keys and values cannot be kept as {dtype!r}", hint="use f16, int8 or f32")
        self.page_tokens = page_tokens
        self.dtype = DTYPES[dtype]

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
        kind = "Int8" if self.dtype == ir.DataType.INT8 else ""

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
            },
        )
        replace(graph, y, paged)
        graph.outputs.extend(append.outputs[1:])

    def _cache(self, layer: int, kv_heads: int, head_dim: int) -> list[tuple[str, ir.DataType, list[Dim]]]:
        """Names, types and shapes of what keeps a layer's keys and values."""
        keys: list[Dim] = ["pages", kv_heads, head_dim, self.page_tokens]
        values: list[Dim] = ["pages", kv_heads, self.page_tokens, head_dim]
        scales: list[Dim] = ["pages", kv_heads, self.page_tokens]
        parts = []
        for letter, shape in (("k", keys), ("v", values)):
            parts.append((f"{letter}_pages.{layer}", self.dtype, shape))
            if self.dtype == ir.DataType.INT8:
                parts.append((f"{letter}_scales.{layer}", FLOAT, scales))
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
