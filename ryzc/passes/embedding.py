"""``Gather`` of the table by the tokens, and the factor after it, become one ``Embedding``."""

from __future__ import annotations

import onnx_ir as ir

from ryzc.graph.nodes import FLOAT, dims, factor_after, make, name_of, nodes, operand, replace
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
            factor = factor_after(result)
            if factor is not None:
                result, scale = factor
            new = make("Embedding", [tokens, table], [(name_of(result), FLOAT, dims(result))], {"scale": scale})
            replace(graph, result, new)
            count += 1
        return self.report(embeddings=count)
