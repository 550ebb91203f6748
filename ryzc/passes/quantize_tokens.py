"""BitNet's linear layers take int8 codes under one scale a token, as they were trained to.

No number changes: ``RoundTokens`` is codes times scales, and the layers that read it multiply the codes. A norm before
it is computed in the same node.
"""

from __future__ import annotations

import onnx_ir as ir

from ryzc.errors import UnsupportedError
from ryzc.graph.nodes import FLOAT, Dim, dims, is_ternary, make, name_of, nodes, operand, producer, real, replace
from ryzc.passes.pass_ import Pass, Report

_BIT_FORMS = {
    "LinearF32": "BitLinear",
    "LinearF32Residual": "BitLinearResidual",
    "LinearF32Gated": "BitLinearGated",
}
_WEIGHTS = {"LinearF32": (1,), "LinearF32Residual": (1,), "LinearF32Gated": (1, 2)}


class QuantizeTokens(Pass):
    """See the module.

    ``run`` raises :class:`UnsupportedError` where a layer that reads rounded tokens has other than ternary weights.
    """

    name = "quantize_tokens"
    requires = ("ternary", "linear", "qkv", "gated", "residual", "rows")
    ensures = ("tokens_quantized",)

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        layers = quantizations = norms = 0
        for rounding in nodes(graph, "RoundTokens"):
            rounded = rounding.outputs[0]
            quantize = _quantize(operand(rounding, 0))
            graph.insert_before(rounding, quantize)
            quantizations += 1
            norms += quantize.op_type == "NormQuantizeTokens"
            for node in tuple(rounded.consumers()):
                _check(node)
                y = node.outputs[0]
                inputs = [*quantize.outputs, *node.inputs[1:]]
                kept = (
                    {"activation": node.attributes["activation"].as_string()} if "activation" in node.attributes else {}
                )
                replace(graph, y, make(_BIT_FORMS[node.op_type], inputs, [(name_of(y), FLOAT, dims(y))], kept))
                layers += 1
        return self.report(bit_layers=layers, quantizations=quantizations, with_norm=norms)


def _check(node: ir.Node) -> None:
    """Raise unless a reader of rounded tokens is a linear layer with ternary weights."""
    if node.op_type not in _BIT_FORMS:
        raise UnsupportedError(f"{node.name}: {node.op_type} reads rounded activations, and only linear layers can")
    for i in _WEIGHTS[node.op_type]:
        if not is_ternary(operand(node, i)):
            raise UnsupportedError(
                f"{node.name}: {operand(node, i).name} of a BitNet layer is not ternary under one scale a row",
                hint="the weights were quantized to something else; take a file of type TQ1_0, TQ2_0, I2_S, or bf16",
            )


def _quantize(x: ir.Value) -> ir.Node:
    """The codes and scales of ``x``; a norm before it is computed in the same node."""
    tokens, k = dims(x)
    outputs: list[tuple[str, ir.DataType, list[Dim]]] = [
        (f"{name_of(x)}.codes", ir.DataType.INT8, [tokens, k]),
        (f"{name_of(x)}.scales", FLOAT, [tokens, 1]),
    ]
    norm = producer(x, "RMSNormalization")
    if norm is not None:
        inputs = [operand(norm, 0), operand(norm, 1)]
        return make("NormQuantizeTokens", inputs, outputs, {"epsilon": real(norm, "epsilon")})
    return make("QuantizeTokens", [x], outputs)
