"""Linear layers with integer weights take int8 activations, one scale a block of 32.

The only pass of the pipeline that changes numbers: each element of an activation moves by at most half
a step, ``amax / 254`` of its block (plus float32 rounding). Layers whose weights are floats, wholly or in
part, keep float activations.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from ryzc.graph.nodes import (
    FLOAT,
    dims,
    formats_of,
    is_affine,
    make,
    name_of,
    nodes,
    only_use,
    operand,
    producer,
    real,
    replace,
)
from ryzc.passes.pass_ import Pass, Report

BLOCK = 32
_INTEGER_FORMS = {
    "LinearF32": "Linear",
    "LinearF32Residual": "LinearResidual",
    "LinearF32Gated": "LinearGated",
}
_WEIGHTS = {"LinearF32": (1,), "LinearF32Residual": (1,), "LinearF32Gated": (1, 2)}


class QuantizeActivations(Pass):
    name = "quantize_activations"
    requires = ("formats", "linear", "qkv", "gated", "residual", "rows")
    ensures = ("quantized",)

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        quantized: dict[ir.Value, ir.Node] = {}
        layers = floats = 0
        for node in nodes(graph, *_INTEGER_FORMS):
            x = operand(node, 0)
            weights = [operand(node, i) for i in _WEIGHTS[node.op_type]]
            if not all(is_affine(weight) for weight in weights) or int(dims(x)[1]) % BLOCK:
                floats += 1
                continue
            if x not in quantized:
                quantized[x] = _quantize(x)
                graph.insert_before(node, quantized[x])
            y = node.outputs[0]
            inputs = [*quantized[x].outputs, *node.inputs[1:]]
            attributes = (
                {"activation": node.attributes["activation"].as_string()} if "activation" in node.attributes else {}
            )
            replace(graph, y, make(_INTEGER_FORMS[node.op_type], inputs, [(name_of(y), FLOAT, dims(y))], attributes))
            layers += 1
        kinds = Counter(node.op_type for node in quantized.values())
        figures = {
            "int8_layers": layers,
            "float_layers": floats,
            "quantizations": len(quantized),
            "with_norm": kinds["NormQuantize"],
            "with_gate": kinds["LinearGatedQuantize"],
        }
        return Report(self.name, layers > 0, figures)


def _quantize(x: ir.Value) -> ir.Node:
    """The codes and scales of ``x``; a norm before it, or gated layers of one format, are computed in the same node."""
    tokens, k = dims(x)
    outputs: list[tuple[str, ir.DataType, list[int | str]]] = [
        (f"{name_of(x)}.codes", ir.DataType.INT8, [tokens, k]),
        (f"{name_of(x)}.scales", FLOAT, [tokens, int(k) // BLOCK]),
    ]
    norm = producer(x, "RMSNormalization")
    if norm is not None:
        return make("NormQuantize", [operand(norm, 0), operand(norm, 1)], outputs, {"epsilon": real(norm, "epsilon")})
    gated = producer(x, "LinearGated")
    if gated is not None and only_use(x) and formats_of(operand(gated, 2)) == formats_of(operand(gated, 3)):
        activation = gated.attributes["activation"].as_string()
        return make("LinearGatedQuantize", gated.inputs, outputs, {"activation": activation})
    return make("Quantize", [x], outputs)
