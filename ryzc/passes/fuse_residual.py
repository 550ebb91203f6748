"""The addition to the residual stream joins what is added: a linear layer, or the norm after a block."""

from __future__ import annotations

import onnx_ir as ir

from ryzc.graph.nodes import FLOAT, dims, make, name_of, nodes, only_use, operand, producer, real, replace
from ryzc.passes.pass_ import Pass, Report


class FuseResidual(Pass):
    name = "fuse_residual"
    requires = ("linear",)
    ensures = ("residual",)

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        linear = norms = 0
        for addition in nodes(graph, "Add"):
            for added, stream in ((1, 0), (0, 1)):
                node = producer(addition.inputs[added], "LinearF32", "RMSNormalization")
                other, y = operand(addition, stream), addition.outputs[0]
                if node is None or not only_use(node.outputs[0]) or dims(other) != dims(y):
                    continue
                inputs = [operand(node, 0), operand(node, 1), other]
                output = [(name_of(y), FLOAT, dims(y))]
                if node.op_type == "LinearF32":
                    replace(graph, y, make("LinearF32Residual", inputs, output))
                    linear += 1
                else:
                    replace(graph, y, make("NormAdd", inputs, output, {"epsilon": real(node, "epsilon")}))
                    norms += 1
                break
        return self.report(linear_layers=linear, norms=norms)
