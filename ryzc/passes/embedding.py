"""``Gather`` of the table by the tokens, and the factor after it, become one ``Embedding``."""

from __future__ import annotations

import onnx_ir as ir

from ryzc.graph.nodes import FLOAT, dims, make, name_of, nodes, only_use, operand, replace
from ryzc.passes.pass_ import Pass, Report


class Embedding(Pass):
    name = "embedding"
    ensures = ("embedding",)

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        count = 0
        for gather in nodes(graph, "Gather"):
            table, tokens = operand(gather, 0), operand(gather, 1)
            if name_of(tokens) != "tokens" or not tokens.is_graph_input():
                continue
            result, scale = gather.outputs[0], 1.0
            factor = _factor_after(result)
            if factor is not None:
                result, scale = factor
            new = make("Embedding", [tokens, table], [(name_of(result), FLOAT, dims(result))], {"scale": scale})
            replace(graph, result, new)
            count += 1
        return self.report(embeddings=count)


def _factor_after(x: ir.Value) -> tuple[ir.Value, float] | None:
    """The product of ``x`` and a constant number, and that number, if that is all that ``x`` is used for."""
    if not only_use(x):
        return None
    use = next(iter(x.consumers()))
    if use.op_type != "Mul":
        return None
    other = operand(use, 1) if operand(use, 0) is x else operand(use, 0)
    if other.const_value is None or other.const_value.size != 1:
        return None
    return use.outputs[0], float(other.const_value.numpy().item())
