"""From the final graph to a plan: every node in turn, by its handler in :mod:`ryzc.lower.nodes`."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ryzc.bundle.plan import Parameter
from ryzc.errors import InternalError
from ryzc.formats import trits
from ryzc.lower.nodes import HANDLERS, reduce_logits
from ryzc.lower.planner import MAX_CANDIDATES, MAX_ROWS, MAX_TOKENS, Lowered, ModelFacts, Planner, kv_spec


def lower(
    model: ir.Model,
    facts: ModelFacts,
    *,
    architecture: str,
    activations: str = "int8",
    max_tokens: int = MAX_TOKENS,
    max_rows: int = MAX_ROWS,
    ternary: Mapping[tuple[int, int], str] | str = trits.USUAL,
    notes: Mapping[str, Parameter] | None = None,
) -> Lowered:
    """Plan the final graph of the pipeline.

    Args:
        ternary: how ternary weights are laid out (see :mod:`ryzc.formats.trits`): all alike, or by rows and columns.

    Raises:
        InternalError: where a node has no lowering.
    """
    planner = Planner(facts, max_tokens, max_rows, activations, min(MAX_CANDIDATES, facts.vocab_size), ternary)
    for node in model.graph:
        handler = HANDLERS.get((node.domain, node.op_type))
        if handler is None:
            raise InternalError(f"no lowering for {node.domain or 'onnx'}::{node.op_type} (node {node.name})")
        handler(planner, node)
    reduce_logits(planner, model.graph.outputs[0])
    return planner.finish(architecture, kv_spec(facts, planner.page_tokens, planner.kv_dtype), notes or {})
