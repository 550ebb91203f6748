"""The three linear layers before an attention become one, with their weights' rows one after another."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ryzc.graph.nodes import FLOAT, add_constant, dims, make, name_of, nodes, operand, take_over
from ryzc.passes.pass_ import Pass, Report


class FuseQKV(Pass):
    name = "fuse_qkv"
    requires = ("linear",)
    ensures = ("qkv",)

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        count = 0
        for attention in nodes(graph, "CausalAttention"):
            layers = [_linear_before(operand(attention, i)) for i in range(3)]
            q, k, v = layers
            if q is None or k is None or v is None or len({operand(n, 0) for n in (q, k, v)}) != 1:
                continue
            _fuse(graph, q, k, v)
            count += 1
        return self.report(fused=count)


def _linear_before(value: ir.Value) -> ir.Node | None:
    """The linear layer whose output, normed and rotated or not, is ``value``."""
    node = value.producer()
    while node is not None and node.op_type in ("Rope", "HeadNorm"):
        node = operand(node, 0).producer()
    return node if node is not None and node.op_type == "LinearF32" else None


def _fuse(graph: ir.Graph, *parts: ir.Node) -> None:
    x = operand(parts[0], 0)
    weights = [operand(part, 1) for part in parts]
    widths = [int(dims(weight)[0]) for weight in weights]
    name = name_of(parts[0].outputs[0]) + "kv"
    total = sum(widths)
    joined = make("Concat", weights, [(f"{name}.weight", FLOAT, [total, dims(weights[0])[1]])], {"axis": 0})
    product = make("LinearF32", [x, joined.outputs[0]], [(name, FLOAT, [dims(x)[0], total])])
    sizes = add_constant(graph, f"split.{'.'.join(map(str, widths))}", np.array(widths, np.int64))
    old = [part.outputs[0] for part in parts]
    split = make("Split", [product.outputs[0], sizes], [(name_of(o), FLOAT, dims(o)) for o in old], {"axis": 1})
    # The weights' decoders may stand anywhere before the last of the parts; what reads the parts may
    # stand between them. So the order is restored as a whole.
    graph.insert_after(parts[-1], [joined, product, split])
    for before, after in zip(old, split.outputs, strict=True):
        take_over(before, after)
    graph.sort()
