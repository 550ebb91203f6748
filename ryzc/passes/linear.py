"""``MatMul(x, Transpose(W))`` becomes ``LinearF32(x, W)``: weights keep their rows, as they are stored."""

from __future__ import annotations

import onnx_ir as ir

from ryzc.graph.nodes import FLOAT, dims, make, name_of, nodes, operand, producer, replace
from ryzc.passes.pass_ import Pass, Report


class Linear(Pass):
    name = "linear"
    ensures = ("linear",)

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        count = 0
        for product in nodes(graph, "MatMul"):
            turned = producer(product.inputs[1], "Transpose")
            if turned is None or len(dims(operand(turned, 0))) != 2:
                continue
            y = product.outputs[0]
            inputs = [operand(product, 0), operand(turned, 0)]
            replace(graph, y, make("LinearF32", inputs, [(name_of(y), FLOAT, dims(y))]))
            count += 1
        return self.report(linear_layers=count)
