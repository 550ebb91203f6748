"""A graph as text, for ``ryzc inspect`` and for people who debug a pass."""

from __future__ import annotations

import re
from collections import Counter

import onnx_ir as ir

from ryzc.graph.nodes import dims, name_of

_PAGES = re.compile(r"[kv]_pages\.(\d+)")


def counts(model: ir.Model) -> dict[str, int]:
    """How many nodes there are of each operator, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())


def describe(value: ir.Value) -> str:
    """``name f32[T, 576]``."""
    kind = "?" if value.dtype is None else value.dtype.short_name()
    shape = "" if value.shape is None else f"[{', '.join(str(d) for d in dims(value))}]"
    return f"{name_of(value)} {kind}{shape}"


def line(node: ir.Node) -> str:
    """``y f32[T, 576] = LinearF32(x, w){...}``."""
    left = ", ".join(describe(value) for value in node.outputs)
    right = ", ".join("-" if value is None else name_of(value) for value in node.inputs)
    given = [f"{name}={attribute.value}" for name, attribute in node.attributes.items()]
    return f"{left} = {node.op_type}({right})" + (f"{{{', '.join(given)}}}" if given else "")


def summary(model: ir.Model, *, layer: int | None = 0) -> str:
    """Inputs, outputs, operator counts, and the nodes of one layer and of what lies outside the layers.

    Args:
        layer: which layer to list; ``None`` lists every node.
    """

    def listed(node: ir.Node) -> bool:
        name = name_of(node.outputs[0])
        return layer is None or not name.startswith("blk.") or name.startswith(f"blk.{layer}.")

    def shown(value: ir.Value) -> bool:
        """Of the caches' pages, which every layer has, only those of the layer listed."""
        found = _PAGES.match(name_of(value))
        return layer is None or found is None or int(found[1]) == layer

    graph = model.graph
    out = [f"graph {graph.name}: {graph.num_nodes()} nodes, {len(graph.initializers)} weights and constants"]
    out += [f"  input   {describe(value)}" for value in graph.inputs if shown(value)]
    out += [f"  output  {describe(value)}" for value in graph.outputs if shown(value)]
    out += ["operators"]
    out += [f"  {count:5d}  {name}" for name, count in counts(model).items()]
    out += ["nodes" if layer is None else f"nodes of layer {layer} and outside the layers"]
    out += [f"  {line(node)}" for node in graph if listed(node)]
    return "\n".join(out)
