"""Choose how each linear layer's weight is kept: as the source stores it, which loses nothing.

The choice is noted on the weight's float32 value as ``ryzc.format`` and ``ryzc.bits``.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from ryzc import formats
from ryzc.graph.nodes import DEQUANTIZE, dims, nodes, operand, producer
from ryzc.passes.pass_ import Pass, Report

_FLOATS = {
    ir.DataType.FLOAT: "f32",
    ir.DataType.FLOAT16: "f16",
    ir.DataType.BFLOAT16: "bf16",
}


class ChooseFormats(Pass):
    name = "choose_formats"
    ensures = ("formats",)

    def run(self, model: ir.Model) -> Report:
        chosen: Counter[str] = Counter()
        bits = weights = 0.0
        noted = 0
        for value in _matrices(model.graph):
            format_ = formats.get(stored_format(value))
            size = float(dims(value)[0]) * float(dims(value)[1])
            chosen[format_.name] += 1
            bits += size * format_.bits_per_weight
            weights += size
            if value.metadata_props.get("ryzc.format") != format_.name:
                value.metadata_props["ryzc.format"] = format_.name
                value.metadata_props["ryzc.bits"] = str(format_.bits_per_weight)
                noted += 1
        figures: dict[str, int | float | str] = {"matrices": sum(chosen.values()), **chosen}
        if weights:
            figures["bits_per_weight"] = round(bits / weights, 3)
        return Report(self.name, noted > 0, figures)


def stored_format(weight: ir.Value) -> str:
    """The name of the format that a weight's float32 value is decoded from."""
    node = producer(weight)
    if node is not None and node.op_type.startswith(DEQUANTIZE):
        return node.op_type.removeprefix(DEQUANTIZE)
    stored = weight if node is None else operand(node, 0)
    if stored.dtype not in _FLOATS:
        raise ValueError(f"{weight.name} is {stored.dtype}, which is no weight format")
    return _FLOATS[stored.dtype]


def _matrices(graph: ir.Graph) -> list[ir.Value]:
    """The float32 values of all stored matrices, each once."""
    decoded = [node.outputs[0] for node in graph if node.op_type.startswith(DEQUANTIZE)]
    decoded += [node.outputs[0] for node in nodes(graph, "Cast") if operand(node, 0).is_initializer()]
    decoded += [value for value in graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
    return [value for value in decoded if len(dims(value)) == 2]
