"""Whether products take activations from memory by themselves, as kernels ask for and only the assembly shows."""

from __future__ import annotations

import re

import pytest
from tiny_models import hollow, llama

from ryzc import targets
from ryzc.compiler import plan
from ryzc.lower.module import assembly

PRODUCT = re.compile(r"^\s+vpdpbusd\s.*$", re.MULTILINE)
BY_ITSELF = re.compile(r"\d*\(%r\w+\)\{1to16\}")
"""An element for all lanes, at a register and a constant: with a second register Intel issues two instructions."""


@pytest.mark.parametrize("target", ["znver4", "znver5"])
@pytest.mark.parametrize(("format_", "least"), [("q4_0", 0.6), ("q4_k", 0.6), ("q6_k", 0.6), ("q8_0", 0.05)])
def test_products_take_activations_from_memory(format_: str, least: float, target: str) -> None:
    found = plan(
        llama(hidden=256, head_dim=64, heads=4, kv_heads=2, feed_forward=512, mix=(format_,), make=hollow)
    ).plan
    symbol = next(k.symbol for k in found.kernels if k.family == "linear" and k.parameters["epilogue"] == "residual")
    products = PRODUCT.findall(assembly(found, symbol, targets.get(target)))
    assert products
    assert sum(bool(BY_ITSELF.search(line)) for line in products) > least * len(products)
