"""Logits only for the rows asked for: the graph gains the input ``rows`` int64[R], taken before the last norm."""

from __future__ import annotations

import onnx_ir as ir

from ryzc.errors import InternalError
from ryzc.graph.nodes import FLOAT, add_input, dims, make, name_of, operand, producer, replace
from ryzc.passes.pass_ import Pass, Report


class SelectRows(Pass):
    name = "select_rows"
    requires = ("linear",)
    ensures = ("rows",)

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        if any(value.name == "rows" for value in graph.inputs):
            return self.report(selections=0)
        head = producer(graph.outputs[0], "LinearF32")
        norm = None if head is None else producer(head.inputs[0], "RMSNormalization")
        if head is None or norm is None:
            raise InternalError(f"{graph.outputs[0].name} is not a linear layer after a norm")
        x, normed, logits = operand(norm, 0), norm.outputs[0], head.outputs[0]
        rows = add_input(graph, "rows", ir.DataType.INT64, ["R"])
        name = name_of(normed)
        taken = make("Gather", [x, rows], [(f"{name}.rows", FLOAT, ["R", *dims(x)[1:]])], {"axis": 0})
        graph.insert_before(norm, taken)
        inputs = [taken.outputs[0], operand(norm, 1)]
        new_norm = make("RMSNormalization", inputs, [(name, FLOAT, ["R", *dims(x)[1:]])], _attributes(norm))
        graph.insert_before(norm, new_norm)
        normed.name = f"{name}.all"
        inputs = [new_norm.outputs[0], operand(head, 1)]
        replace(graph, logits, make("LinearF32", inputs, [(name_of(logits), FLOAT, ["R", *dims(logits)[1:]])]))
        return self.report(selections=1)


def _attributes(norm: ir.Node) -> dict[str, int | float]:
    return {"axis": norm.attributes["axis"].as_int(), "epsilon": norm.attributes["epsilon"].as_float()}
