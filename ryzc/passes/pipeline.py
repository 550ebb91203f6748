"""From the semantic graph to the graph of a step, top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

from ryzc.errors import UsageError
from ryzc.kv_formats import USUAL
from ryzc.passes.choose_formats import ChooseFormats
from ryzc.passes.dead_code import DeadCode
from ryzc.passes.embedding import Embedding
from ryzc.passes.fuse_gate_up import FuseGateUp
from ryzc.passes.fuse_qkv import FuseQKV
from ryzc.passes.fuse_residual import FuseResidual
from ryzc.passes.kv_layout import KVLayout
from ryzc.passes.linear import Linear
from ryzc.passes.pass_ import Pass, Report, apply
from ryzc.passes.quantize_activations import QuantizeActivations
from ryzc.passes.quantize_tokens import QuantizeTokens
from ryzc.passes.quantize_weights import Asked, QuantizeWeights
from ryzc.passes.select_rows import SelectRows
from ryzc.passes.ternarize import Ternarize

Observer: TypeAlias = Callable[[str, ir.Model], None]

ACTIVATIONS = ("int8", "f32")


def passes(
    *, activations: str = "int8", kv_dtype: str = USUAL, page_tokens: int = 32, weights: Asked | None = None
) -> tuple[Pass, ...]:
    """The default pipeline.

    Args:
        activations: ``int8`` in blocks of 32, or ``f32`` throughout.
        kv_dtype: a name of :data:`ryzc.kv_formats.KV_FORMATS`: how keys and values are kept.
        page_tokens: tokens in a page of the cache.
        weights: how weights are to be quantized; ``None`` leaves them as they are.

    Raises:
        UsageError: an argument is none of these.
    """
    if activations not in ACTIVATIONS:
        raise UsageError(f"activations cannot be {activations!r}", hint="use int8 or f32")
    quantize: tuple[Pass, ...] = (QuantizeActivations(),) if activations == "int8" else ()
    fewer_bits: tuple[Pass, ...] = () if weights is None else (QuantizeWeights(weights),)
    return (
        Ternarize(),
        *fewer_bits,
        ChooseFormats(),
        Embedding(),
        Linear(),
        FuseQKV(),
        FuseGateUp(),
        FuseResidual(),
        KVLayout(page_tokens=page_tokens, dtype=kv_dtype),
        SelectRows(),
        QuantizeTokens(),
        *quantize,
        DeadCode(),
    )


def run(
    model: ir.Model,
    *,
    activations: str = "int8",
    kv_dtype: str = USUAL,
    page_tokens: int = 32,
    weights: Asked | None = None,
    observer: Observer | None = None,
) -> list[Report]:
    """Turn a semantic graph into a final one, in place.

    Args:
        activations, kv_dtype, page_tokens, weights: see :func:`passes`.
        observer: called with a pass's name and the model after each pass; it must not change the model.
    """
    reports = []
    for pass_ in passes(activations=activations, kv_dtype=kv_dtype, page_tokens=page_tokens, weights=weights):
        reports.append(apply(pass_, model))
        if observer is not None:
            observer(pass_.name, model)
    return reports
