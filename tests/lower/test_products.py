"""Whether two products share each activation that is loaded, as kernels ask for and only the assembly shows."""

from __future__ import annotations

import re

import pytest
from tiny_models import hollow, llama

from ryzc import targets
from ryzc.compiler import plan
from ryzc.lower.module import assembly

PRODUCT = re.compile(r"^\s+vpdpbusd\s.*$", re.MULTILINE)
LOADED = re.compile(r"^\s+vpbroadcastd\s+\S*\(%r.*%zmm", re.MULTILINE)


@pytest.mark.parametrize("target", ["znver4", "znver5"])
@pytest.mark.parametrize("format_", ["q4_0", "q4_1", "q4_k", "q6_k", "q8_0"])
def test_products_share_activations(format_: str, target: str) -> None:
    found = plan(
        llama(hidden=256, head_dim=64, heads=4, kv_heads=2, feed_forward=512, mix=(format_,), make=hollow)
    ).plan
    symbol = next(k.symbol for k in found.kernels if k.family == "linear" and k.parameters["epilogue"] == "residual")
    text = assembly(found, symbol, targets.get(target))
    products = PRODUCT.findall(text)
    assert products
    assert not any("{1to" in line for line in products)  # each would load its own
    # The rest are the starts of sums, one a token and block, and scales.
    assert len(products) / 2 <= len(LOADED.findall(text)) < 0.8 * len(products)
