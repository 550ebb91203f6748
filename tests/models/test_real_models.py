"""The two models that ryzc is developed with, by the oracle: plausible figures, and the pipeline's error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzc import models
from ryzc.graph import oracle
from ryzc.passes import pipeline

pytestmark = pytest.mark.slow

# "The capital of France is", and the five likeliest next tokens with their logits as llama.cpp's own
# kernels (int8 activations) compute them from the same files.
SMOLLM2 = ([504, 3575, 282, 4649, 314], {7042: 17.344, 260: 14.804, 4528: 13.208, 1315: 13.149, 5145: 13.121})
GEMMA3 = ([2, 818, 5279, 529, 7001, 563], {506: 18.999, 496: 18.492, 9079: 18.324, 886: 18.103, 3224: 17.701})
NOISE = 0.4
"""Logits of the two models move by less than this when activations are int8."""


@pytest.mark.parametrize(
    ("fixture", "ids", "likely"), [("smollm2_path", *SMOLLM2), ("gemma3_path", *GEMMA3)], ids=["smollm2", "gemma3"]
)
def test_capital_of_france(
    fixture: str, ids: list[int], likely: dict[int, float], request: pytest.FixtureRequest
) -> None:
    from ryzc.sources import gguf

    path: Path = request.getfixturevalue(fixture)
    checkpoint = gguf.read(path)
    exact = oracle.logits(models.load(checkpoint).ir_model, ids)
    assert exact[-1].argmax() == next(iter(likely))
    for token, logit in likely.items():
        assert abs(exact[-1, token] - logit) < NOISE

    for activations, kv_dtype, bound in (("f32", "f32", 1e-5), ("int8", "f16", 6e-2), ("int8", "int16", 6e-2)):
        model = models.load(checkpoint).ir_model
        pipeline.run(model, activations=activations, kv_dtype=kv_dtype)
        got = oracle.PagedOracle(model).prompt(ids, chunk=3)
        assert np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean()) < bound
        assert got[-1].argmax() == exact[-1].argmax()
