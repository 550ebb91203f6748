"""The oracle, the nodes' helpers and the text form."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_models import gemma3, llama

from ryzc import models
from ryzc.errors import InternalError, UsageError
from ryzc.graph import nodes, oracle, text
from ryzc.passes import pipeline


def test_both_ways_to_decode_weights_agree_bit_for_bit() -> None:
    model = models.load(llama(mix=("q4_1", "f16"))).ir_model
    feeds = {"tokens": np.array([1, 2, 3]), "positions": np.arange(3)}
    fast = oracle.evaluate(model, feeds, keep=["blk.0.attn_q.weight.f32"])
    plain = oracle.evaluate(model, feeds, keep=["blk.0.attn_q.weight.f32"], decode="functions")
    assert fast.keys() == plain.keys() == {"logits", "blk.0.attn_q.weight.f32"}
    for name in fast:
        np.testing.assert_array_equal(fast[name], plain[name])


def test_wrong_feeds_and_options_are_errors() -> None:
    model = models.load(llama(layers=1)).ir_model
    with pytest.raises(UsageError, match="the graph takes tokens, positions; given were tokens"):
        oracle.evaluate(model, {"tokens": np.array([1])})
    with pytest.raises(UsageError, match="decode"):
        oracle.Oracle(model, decode="guess")
    with pytest.raises(UsageError, match="no pages"):
        oracle.PagedOracle(model)
    pipeline.run(model)
    with pytest.raises(UsageError, match=r"0 \.\. 31"):
        oracle.PagedOracle(model, context=20).prompt([1] * 33)


def test_weights_are_the_files_bytes_and_not_copies() -> None:
    checkpoint = llama(layers=1, mix=("q4_1", "f16"))
    model = models.load(checkpoint).ir_model
    for name, tensor in checkpoint.tensors.items():
        value = model.graph.initializers[name].const_value
        assert value is not None
        assert np.shares_memory(value.numpy(), tensor.data), name


def test_graphs_are_valid_onnx_before_and_after_the_pipeline() -> None:
    for checkpoint in (llama(), gemma3()):
        for activations in (None, "f32", "int8"):
            model = models.load(checkpoint).ir_model
            if activations:
                pipeline.run(model, activations=activations)
            onnx.checker.check_model(ir.to_proto(model), full_check=True)
            assert model.metadata_props["ryzc.name"] == checkpoint.architecture


def test_a_model_read_back_from_its_file_computes_the_same() -> None:
    model = models.load(llama()).ir_model
    pipeline.run(model)
    again = ir.from_proto(onnx.load_from_string(ir.to_proto(model).SerializeToString()))
    ids = [7, 1, 7, 3]
    np.testing.assert_array_equal(oracle.PagedOracle(again).prompt(ids), oracle.PagedOracle(model).prompt(ids))
    assert [r.changed for r in pipeline.run(again)] == [False] * len(pipeline.passes())


def test_sequences_in_one_step_do_not_see_each_other() -> None:
    model = models.load(gemma3(layers=6, window=3)).ir_model
    pipeline.run(model, activations="f32", kv_dtype="f32", page_tokens=4)
    first, second = [1, 2, 3, 4, 5, 6], [9, 8, 7]
    together = oracle.PagedOracle(model, sequences=2, context=8)
    got = together.step([*first[:4], *second], [0, 1, 2, 3, 0, 1, 2], [0, 0, 0, 0, 1, 1, 1], rows=[3, 6])
    more = together.step([second[0], *first[4:]], [3, 4, 5], [1, 0, 0], rows=[2])
    alone = oracle.PagedOracle(model, context=8).prompt(first)
    other = oracle.PagedOracle(model, context=8).prompt(second)
    np.testing.assert_allclose(got, [alone[3], other[2]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(more, alone[5:], rtol=1e-4, atol=1e-5)


def test_summary() -> None:
    model = models.load(llama(layers=3)).ir_model
    assert "MatMul(blk.0.attn_norm, blk.0.attn_q.columns)" in text.summary(model)
    pipeline.run(model)
    shown = text.summary(model, layer=1)
    assert "k_pages.1 i16[pages, 2, 16, 32]" in shown
    assert "k_pages.0" not in shown
    assert "blk.1.attn_qkv f32[T, 128] = Linear(" in shown
    assert "blk.0.attn_qkv" not in shown
    assert "logits f32[R, 40] = Linear(" in shown
    assert "blk.2." in text.summary(model, layer=None)
    assert text.counts(model)["RopeAppendInt16"] == 3


def test_helpers_name_what_is_wrong() -> None:
    model = nodes.new_model("g", {})
    x = nodes.add_input(model.graph, "x", nodes.FLOAT, ["T", 4])
    assert nodes.add_input(model.graph, "x", nodes.FLOAT, ["T", 4]) is x
    y = nodes.add(model.graph, "Relu", [x], name="y", shape=["T", 4])
    node = y.producer()
    assert node is not None
    with pytest.raises(InternalError, match="Relu node y lacks input 1"):
        nodes.operand(node, 1)
    with pytest.raises(InternalError, match="x is no node's output"):
        nodes.replace(model.graph, x, node)
    with pytest.raises(InternalError, match="no shape"):
        nodes.dims(ir.val("z"))


@pytest.mark.parametrize("format_", ["f32", "f16"])
def test_vectors_are_float32_constants(format_: str) -> None:
    model = nodes.new_model("g", {})
    values = np.array([1.5, -2, 0.25], np.float32)
    raw = values.astype(np.float32 if format_ == "f32" else np.float16).view(np.uint8)
    weight = nodes.add_weight(model.graph, "w", format_, (3,), raw)
    assert weight.const_value is not None
    assert weight.dtype == nodes.FLOAT
    np.testing.assert_array_equal(weight.const_value.numpy(), values)
