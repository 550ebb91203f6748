"""Cut nodes, weights and constants that nothing reads."""

from __future__ import annotations

import onnx_ir as ir

from ryzc.graph.nodes import cut
from ryzc.passes.pass_ import Pass, Report


class DeadCode(Pass):
    name = "dead_code"

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        removed = cut(graph)
        unused = [name for name, value in graph.initializers.items() if not value.uses()]
        for name in unused:
            del graph.initializers[name]
        return self.report(nodes=removed, constants=len(unused))
