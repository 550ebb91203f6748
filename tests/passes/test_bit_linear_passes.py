"""The passes of BitNet's layers: meaning kept, repeated to no effect, and equal weights made equal bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ternary_models import FORMATS, Shape, checkpoint, model
from tiny_models import llama

from ryzc import formats, models
from ryzc.errors import UnsupportedError
from ryzc.formats import exact_ternary
from ryzc.graph import nodes, oracle, text
from ryzc.passes import pipeline
from ryzc.passes.pass_ import apply
from ryzc.passes.ternarize import Ternarize
from ryzc.sources.checkpoint import Checkpoint, StoredTensor

F32 = npt.NDArray[np.float32]
ARCHITECTURES = ("bitnet", "bitnet-b1.58", "bitnet-25", "llama")
ONE_LAYER = Shape(layers=1, feed_forward=256)


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    architecture = draw(st.sampled_from(ARCHITECTURES))
    seed = draw(st.integers(0, 2**31))
    made = model(seed, ONE_LAYER, sub_norms=architecture != "llama")
    mix = draw(st.lists(st.sampled_from([*FORMATS, "master"]), min_size=1, max_size=4, unique=True))
    scales = architecture != "llama" and draw(st.booleans())
    return checkpoint(made, architecture, mix=tuple(mix), scales=scales, seed=seed)


def logits(graph: ir.Model, ids: list[int], chunk: int | None = None) -> F32:
    """Of a graph at any stage of the pipeline."""
    if any(value.name == "page_table" for value in graph.graph.inputs):
        return oracle.PagedOracle(graph, context=16).prompt(ids, chunk=chunk)
    return oracle.logits(graph, ids)


def rows(graph: ir.Model) -> dict[str, bytes]:
    """The stored rows of each ternary matrix."""
    found = {}
    for node in nodes.nodes(graph.graph, "Dequantize_ternary"):
        tensor = nodes.operand(node, 0).const_value
        assert tensor is not None
        found[nodes.name_of(nodes.operand(node, 0))] = tensor.numpy().tobytes()
    return found


@settings(max_examples=12, deadline=None)
@given(
    source=checkpoints(),
    ids=st.lists(st.integers(0, 63), min_size=1, max_size=8),
    activations=st.sampled_from(["f32", "int8"]),
    data=st.data(),
)
def test_every_pass_keeps_the_meaning_and_is_idempotent(
    source: Checkpoint, ids: list[int], activations: str, data: st.DataObject
) -> None:
    graph = models.load(source).ir_model
    wanted = logits(graph, ids)
    chunk = data.draw(st.integers(1, len(ids)))
    for pass_ in pipeline.passes(activations=activations, kv_dtype="f32", page_tokens=4):
        before = text.summary(graph, layer=None)
        report = apply(pass_, graph)
        after = text.summary(graph, layer=None)
        assert report.changed == (before != after) or pass_.name == "choose_formats"
        got = logits(graph, ids, chunk)
        # A code that lies on the edge may fall to either side: then one activation moves by a step, 1/127.
        assert np.abs(got - wanted).max() <= 2e-2 * np.abs(wanted).max()
        assert np.median(np.abs(got - wanted)) <= 2e-5 * np.abs(wanted).max()
        assert not apply(pass_, graph).changed, pass_.name
        assert text.summary(graph, layer=None) == after
    kinds = text.counts(graph)
    assert (kinds["BitLinear"], kinds["BitLinearResidual"], kinds["BitLinearGated"]) == (1, 2, 1)
    assert "RoundTokens" not in kinds
    assert "RoundWeights" not in kinds


@pytest.mark.parametrize("architecture", ["bitnet", "llama"])
@pytest.mark.parametrize("form", [*FORMATS, "master"])
def test_every_form_of_the_same_weights_becomes_the_same_bytes(form: str, architecture: str) -> None:
    made = model(3, ONE_LAYER, sub_norms=architecture != "llama")
    graph = models.load(checkpoint(made, architecture, mix=(form,))).ir_model
    before = logits(graph, [5, 1, 44])
    report = apply(Ternarize(), graph)
    assert rows(graph) == {f"{name}.weight": m.stored("ternary").tobytes() for name, m in made.matrices.items()}
    assert np.array_equal(logits(graph, [5, 1, 44]), before)
    converted = 0 if form == "ternary" else len(made.matrices)
    kind = "rounded" if form == "master" else "exact"
    assert {k: v for k, v in report.figures.items() if v} == ({kind: converted} if converted else {})


def test_numbers_beside_weights_join_their_scales() -> None:
    made = model(4, ONE_LAYER)
    graph = models.load(checkpoint(made, mix=("tq2_0", "f16", "ternary"), scales=True)).ir_model
    assert apply(Ternarize(), graph).figures["factors"] == 7
    assert rows(graph) == {f"{name}.weight": m.stored("ternary").tobytes() for name, m in made.matrices.items()}
    assert "Mul" not in {n.op_type for n in graph.graph if n.name.startswith("blk.0.attn_q")}


def test_figures_and_counts() -> None:
    graph = models.load(checkpoint(model(0, ONE_LAYER), "bitnet-b1.58")).ir_model
    figures = {report.name: dict(report.figures) for report in pipeline.run(graph)}
    assert figures["ternarize"] == {"exact": 7, "rounded": 0, "factors": 0}
    assert figures["quantize_tokens"] == {"bit_layers": 4, "quantizations": 4, "with_norm": 4}
    assert figures["fuse_gate_up"] == {"fused": 1}
    gated = next(nodes.nodes(graph.graph, "BitLinearGated"))
    assert gated.attributes["activation"].as_string() == "relu2"
    codes, scales = next(nodes.nodes(graph.graph, "NormQuantizeTokens")).outputs
    assert (nodes.dims(codes), nodes.dims(scales)) == (("T", 256), ("T", 1))
    assert (codes.dtype, scales.dtype) == (ir.DataType.INT8, ir.DataType.FLOAT)


def test_a_llama_of_ternary_formats_that_nobody_calls_bitnet_stays_as_it_is() -> None:
    """Its activations are quantized in blocks of 32, as those of any other format."""
    sizes = {"hidden": 256, "head_dim": 64, "feed_forward": 256}
    graph = models.load(llama(layers=1, mix=("tq1_0", "tq2_0"), **sizes)).ir_model
    figures = {report.name: report.figures for report in pipeline.run(graph)}
    assert not any(figures["ternarize"].values())
    assert figures["quantize_activations"]["int8_layers"] == 5
    assert "BitLinear" not in text.counts(graph)


def test_weights_that_were_quantized_to_something_else_are_refused() -> None:
    source = checkpoint(model(0, ONE_LAYER))
    name = "blk.0.ffn_down.weight"
    other = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    fourth_code = np.zeros((256, 66), np.uint8)
    fourth_code[:, :64], fourth_code[:, 65] = 0b11_01_10_00, 0x3C
    two_scales = formats.get("tq2_0").quantize(np.sign(other) * np.where(np.arange(256) < 128, 1, 0.5)[:, None])
    assert np.array_equal(exact_ternary.row_scales("tq2_0", two_scales), [1.0] * 128 + [0.5] * 128)
    for format_, stored in (("q4_0", formats.get("q4_0").quantize(other)), ("tq2_0", fourth_code)):
        broken = StoredTensor(name, format_, (256, 256), stored)
        graph = models.load(replace(source, tensors={**source.tensors, name: broken})).ir_model
        with pytest.raises(UnsupportedError, match=r"blk\.0\.ffn_down\.weight\.f32 of a BitNet layer is not ternary"):
            pipeline.run(graph)


halves = st.sampled_from([0.0, 0.5, -0.25, 1.0])


@settings(max_examples=60)
@given(format_=st.sampled_from(["tq1_0", "tq2_0", "f32", "f16", "bf16"]), seed=st.integers(0, 2**31), data=st.data())
def test_exact_conversion_keeps_every_weight_or_refuses(format_: str, seed: int, data: st.DataObject) -> None:
    """Blocks of any scales: ternary where the blocks of a row that are not zero share one."""
    rng = np.random.default_rng(seed)
    n, blocks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    scales = np.array([[data.draw(halves) for _ in range(blocks)] for _ in range(n)], np.float32)
    if data.draw(st.booleans()):
        scales[:] = scales[:, :1]
    w = (rng.integers(-1, 2, (n, blocks, 256)) * scales[:, :, None]).reshape(n, -1).astype(np.float32)
    stored = formats.get(format_).quantize(w)
    found = exact_ternary.row_scales(format_, stored)
    one_size = all(len({abs(x) for x in row[row != 0]}) <= 1 for row in w)
    assert (found is not None) == one_size
    if found is not None:
        ternary = exact_ternary.convert(format_, stored, found)
        assert np.array_equal(formats.get("ternary").decode(ternary), w)
        plain = exact_ternary.row_scales("f32", w.view(np.uint8))
        assert plain is not None
        assert np.array_equal(ternary, exact_ternary.convert("f32", w.view(np.uint8), plain))
