"""Cut nodes, weights and constants that nothing reads."""

from __future__ import annotations

import onnx_ir as ir

from ryzc.graph.nodes import drop_unused
from ryzc.passes.pass_ import Pass, Report


class DeadCode(Pass):
    name = "dead_code"

    def run(self, model: ir.Model) -> Report:
        removed, constants = drop_unused(model.graph)
        return self.report(nodes=removed, constants=constants)
