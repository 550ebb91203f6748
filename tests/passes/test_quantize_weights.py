"""Rounding weights where a build is asked to: what is rounded, what is kept, and what is said of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import ternary_models
import tiny_models

from ryzc import formats, models
from ryzc.errors import UsageError
from ryzc.graph import oracle
from ryzc.graph.nodes import name_of, nodes, operand
from ryzc.passes.choose_formats import stored_format
from ryzc.passes.pass_ import apply
from ryzc.passes.quantize_weights import HEADS, LAYERS, Asked, QuantizeWeights, check, importance, layers

TOKENS = [1, 5, 3, 9, 7, 2, 30]


def kept_in(model: ir.Model) -> dict[str, str]:
    """The format of each linear layer's weight, by the name of its initializer."""
    return {name_of(source): stored_format(weight) for _, weight, source, _ in layers(model.graph)}


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma3, tiny_models.qwen3])
def test_layers_are_rounded_and_the_embedding_stays(make: tiny_models.Make) -> None:
    checkpoint = make(mix=("q4_1", "f32", "f16"))
    model, asked = models.load(checkpoint).ir_model, Asked("trit2", "q8_0")
    before = oracle.logits(model, TOKENS)
    weights = {name_of(source): w for _, w, source, head in layers(model.graph) if not head}
    report = apply(QuantizeWeights(asked), model)
    kept = kept_in(model)
    assert all(kept[name] == "trit2" for name in weights)
    assert set(kept.values()) == {"trit2", "q8_0"}
    (table,) = nodes(model.graph, "Gather")
    assert stored_format(operand(table, 0)) == checkpoint.tensors["token_embd.weight"].format
    assert report.figures["rounded"] == len(kept)
    for name in weights:
        tensor = checkpoint.tensors[name]
        was = formats.get(tensor.format).decode(tensor.data.reshape(tensor.shape[0], -1))
        now = formats.get("trit2").decode(asked.done[name, "trit2"].stored)
        assert report.figures[name] == pytest.approx(np.linalg.norm(was - now) / np.linalg.norm(was), abs=1e-4)
    assert 0 < float(report.figures["error"]) < 0.2
    after = oracle.logits(model, TOKENS)
    assert 0 < np.linalg.norm(after - before) < np.linalg.norm(before)
    assert not apply(QuantizeWeights(asked), model).changed


def test_a_model_planned_again_finds_its_weights() -> None:
    asked, found = Asked("trit1"), []
    for _ in range(2):
        model = models.load(tiny_models.llama()).ir_model
        apply(QuantizeWeights(asked), model)
        found.append([rounded.stored for rounded in asked.done.values()])
    assert all(a is b for a, b in zip(*found, strict=True))


def test_rows_that_are_no_blocks_and_ternary_weights_are_kept_and_told() -> None:
    model = models.load(tiny_models.llama(mix=("f32",), hidden=48)).ir_model
    figures = apply(QuantizeWeights(Asked("trit1")), model).figures
    assert figures["blk.0.attn_q.weight"] == "kept: rows of 48 are no blocks of 32"
    assert isinstance(figures["blk.0.ffn_down.weight"], float)
    assert figures["kept"] == 10
    model = models.load(tiny_models.llama(mix=("tq2_0",), hidden=256, head_dim=64, feed_forward=256)).ir_model
    report = apply(QuantizeWeights(Asked("trit1")), model)
    assert not report.changed
    assert report.figures["kept"] == 14


def test_nothing_of_a_bitnet_is_rounded() -> None:
    model = models.load(ternary_models.checkpoint(ternary_models.model(1), mix=("tq2_0",))).ir_model
    assert importance(model, TOKENS) == {}
    assert not apply(QuantizeWeights(Asked("trit2")), model).changed


def test_columns_count_as_what_they_are_multiplied_by() -> None:
    model = models.load(tiny_models.llama()).ir_model
    products = {name_of(source): turned.outputs[0] for turned, _, source, head in layers(model.graph) if not head}
    reads = {name: name_of(operand(next(iter(value.consumers())), 0)) for name, value in products.items()}
    feeds = {"tokens": np.array(TOKENS), "positions": np.arange(len(TOKENS))}
    values = oracle.evaluate(model, feeds, keep=set(reads.values()))
    found = importance(model, TOKENS)
    assert found.keys() == reads.keys()
    for name, h in found.items():
        squares = np.square(values[reads[name]]).mean(axis=0)
        assert h == pytest.approx(squares + squares.mean() / 1000, rel=1e-5)


def test_what_can_be_asked_for() -> None:
    for name in LAYERS:
        check(name, None)
    for name in HEADS:
        check(None, name)
    with pytest.raises(UsageError, match="quant cannot be 'q2_k'"):
        check("q2_k", None)
    with pytest.raises(UsageError, match="head cannot be 'q6_k'"):
        check(None, "q6_k")
