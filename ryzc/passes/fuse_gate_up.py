"""Two linear layers of the same input, gated by SiLU, GELU or a squared ReLU, become one ``LinearF32Gated``."""

from __future__ import annotations

import onnx_ir as ir

from ryzc.graph.nodes import FLOAT, dims, make, name_of, nodes, only_use, operand, producer, replace
from ryzc.passes.pass_ import Pass, Report


class FuseGateUp(Pass):
    name = "fuse_gate_up"
    requires = ("linear",)
    ensures = ("gated",)

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        count = 0
        for product in nodes(graph, "Mul"):
            for active, up in ((0, 1), (1, 0)):
                found = _gate(operand(product, active))
                right = producer(product.inputs[up], "LinearF32")
                if found is None or right is None:
                    continue
                activation, left = found
                if operand(left, 0) is not operand(right, 0) or not only_use(right.outputs[0]):
                    continue
                y = product.outputs[0]
                inputs = [operand(left, 0), operand(left, 1), operand(right, 1)]
                new = make("LinearF32Gated", inputs, [(name_of(y), FLOAT, dims(y))], {"activation": activation})
                replace(graph, y, new)
                count += 1
                break
        return self.report(fused=count)


def _gate(value: ir.Value) -> tuple[str, ir.Node] | None:
    """The activation that makes ``value`` and the linear layer under it."""
    node = producer(value, "Gelu", "Mul")
    if node is None or not only_use(value):
        return None
    if node.op_type == "Gelu":
        approximate = node.attributes.get("approximate")
        left = producer(node.inputs[0], "LinearF32")
        if left is None or approximate is None or approximate.as_string() != "tanh" or not only_use(left.outputs[0]):
            return None
        return "gelu_tanh", left
    relu = producer(node.inputs[0], "Relu")
    if relu is not None and node.inputs[1] is node.inputs[0] and len(relu.outputs[0].uses()) == 2:
        left = producer(relu.inputs[0], "LinearF32")
        return ("relu2", left) if left is not None and only_use(left.outputs[0]) else None
    for at, other in ((0, 1), (1, 0)):
        gate, sigmoid = operand(node, at), producer(node.inputs[other], "Sigmoid")
        left = producer(gate, "LinearF32")
        if left is not None and sigmoid is not None and operand(sigmoid, 0) is gate and len(gate.uses()) == 2:
            return "silu", left
    return None
