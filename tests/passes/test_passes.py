"""Every pass keeps the meaning of random models, changes nothing when repeated, and says what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import available, gemma3, llama, qwen3

from ryzc import formats, models
from ryzc.errors import InternalError, UnsupportedError, UsageError
from ryzc.graph import nodes, oracle, text
from ryzc.graph.ops.paged_codes import cache, suffix
from ryzc.kv_formats import KV_FORMATS
from ryzc.passes import pipeline
from ryzc.passes.dead_code import DeadCode
from ryzc.passes.kv_layout import KVLayout, of_pages
from ryzc.passes.pass_ import Pass, Report, apply
from ryzc.passes.quantize_activations import QuantizeActivations
from ryzc.sources.checkpoint import Checkpoint

F32 = npt.NDArray[np.float32]

PACKED = sorted(set(available()) - {"f32", "f16"})
FLOATS = sorted({"f32", "f16"} & set(available()))


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    """Tiny models of every architecture: sizes, heads, windows and mixes of formats drawn."""
    mix = draw(st.lists(st.sampled_from(PACKED + FLOATS), min_size=1, max_size=3, unique=True))
    hidden = max(64, *(formats.get(name).block for name in mix))
    kv_heads = draw(st.sampled_from([1, 2]))
    seed = draw(st.integers(0, 2**31))
    # hidden columns for the output projection, too, where formats have large blocks
    head_dim = 32 if hidden == 64 else 128
    heads = kv_heads * (2 if hidden == 64 or kv_heads == 1 else 1)
    make = draw(st.sampled_from([llama, gemma3, qwen3]))
    if make is not gemma3:
        return make(
            seed,
            layers=draw(st.integers(1, 2)),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            feed_forward=hidden,
            mix=mix,
            tied=draw(st.booleans()),
        )
    return gemma3(
        seed,
        layers=draw(st.sampled_from([1, 6])),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=hidden,
        window=draw(st.integers(1, 9)),
        mix=mix,
    )


def logits(model: ir.Model, ids: list[int], chunk: int | None = None) -> F32:
    """Of a graph at any stage of the pipeline."""
    if any(value.name == "page_table" for value in model.graph.inputs):
        return oracle.PagedOracle(model, context=16).prompt(ids, chunk=chunk)
    return oracle.logits(model, ids)


def snapshot(model: ir.Model) -> str:
    return text.summary(model, layer=None)


def assert_close(got: F32, wanted: F32, tolerance: float) -> None:
    error = np.abs(got.astype(np.float64) - wanted)
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error[worst] <= tolerance * np.abs(wanted).max(), f"worst at {worst}: {got[worst]} against {wanted[worst]}"


@settings(max_examples=12, deadline=None)
@given(
    checkpoint=checkpoints(),
    ids=st.lists(st.integers(0, 39), min_size=1, max_size=12),
    page_tokens=st.sampled_from([1, 4, 32]),
    data=st.data(),
)
def test_every_float_pass_keeps_the_meaning_and_is_idempotent(
    checkpoint: Checkpoint, ids: list[int], page_tokens: int, data: st.DataObject
) -> None:
    model = models.load(checkpoint).ir_model
    wanted = logits(model, ids)
    chunk = data.draw(st.integers(1, len(ids)))
    for pass_ in pipeline.passes(activations="f32", kv_dtype="f32", page_tokens=page_tokens):
        before = snapshot(model)
        report = apply(pass_, model)
        after = snapshot(model)
        # choose_formats writes notes, which the text does not show
        assert report.changed == (before != after) or pass_.name == "choose_formats"
        # The same float32 sums in another order: the same bound as against float64.
        assert_close(logits(model, ids, chunk), wanted, 2e-5)
        repeated = apply(pass_, model)
        assert not repeated.changed, pass_.name
        assert snapshot(model) == after


@settings(max_examples=10, deadline=None)
@given(checkpoint=checkpoints(), ids=st.lists(st.integers(0, 39), min_size=1, max_size=12), data=st.data())
def test_int8_graphs_compute_nearly_the_same(checkpoint: Checkpoint, ids: list[int], data: st.DataObject) -> None:
    """The bound of one layer is tested with its operator; over a whole random model, errors stay small."""
    model = models.load(checkpoint).ir_model
    wanted = logits(model, ids)
    reports = pipeline.run(model)
    got = logits(model, ids)
    rms = float(np.sqrt(((got - wanted) ** 2).mean() / (wanted**2).mean()))
    assert rms < 0.15
    assert_close(logits(model, ids, data.draw(st.integers(1, len(ids)))), got, 0.1)
    by_name = {report.name: report for report in reports}
    quantized = int(by_name["quantize_activations"].figures["int8_layers"])
    assert text.counts(model).get("Linear", 0) <= quantized
    before = snapshot(model)
    assert not any(report.changed for report in pipeline.run(model))
    assert snapshot(model) == before


FINAL = {
    "Embedding",
    "RopeAngles",
    "NormQuantize",
    "Quantize",
    "Linear",
    "LinearResidual",
    "LinearGated",
    "LinearGatedQuantize",
    "LinearF32",
    "LinearF32Residual",
    "LinearF32Gated",
    "RMSNormalization",
    "NormAdd",
    "RopeAppend",
    "PagedAttention",
    *(f"{kind}{suffix(name)}" for kind in ("RopeAppend", "PagedAttention") for name in KV_FORMATS),
    "Gather",
    "Concat",
    "Cast",
}


@settings(max_examples=10, deadline=None)
@given(checkpoint=checkpoints(), activations=st.sampled_from(["int8", "f32"]), kv=st.sampled_from(sorted(KV_FORMATS)))
def test_final_graphs_hold_nothing_but_the_contracts_nodes(checkpoint: Checkpoint, activations: str, kv: str) -> None:
    model = models.load(checkpoint).ir_model
    pipeline.run(model, activations=activations, kv_dtype=kv)
    kinds = {n.op_type for n in model.graph if not n.op_type.startswith(nodes.DEQUANTIZE)}
    assert kinds <= FINAL
    inputs = {value.name: value for value in model.graph.inputs}
    assert list(inputs)[:4] == ["tokens", "positions", "sequences", "page_table"]
    assert of_pages(inputs["k_pages.0"].dtype, inputs["v_pages.0"].dtype) == kv
    for node in nodes.nodes(model.graph, f"RopeAppend{suffix(kv)}"):
        assert len(node.inputs) == 8 + len(cache(kv))
    names = [value.name for node in model.graph for value in node.outputs]
    assert max(Counter(names).values()) == 1


def test_figures_and_counts_of_a_llama() -> None:
    model = models.load(llama(layers=3)).ir_model
    figures = {report.name: dict(report.figures) for report in pipeline.run(model)}
    assert figures == {
        "ternarize": {"exact": 0, "rounded": 0, "factors": 0},
        "choose_formats": {"matrices": 22, "q4_1": 22, "bits_per_weight": 5.0},
        "embedding": {"embeddings": 1},
        "linear": {"linear_layers": 22},
        "fuse_qkv": {"fused": 3},
        "fuse_gate_up": {"fused": 3},
        "fuse_residual": {"linear_layers": 6, "norms": 0},
        "kv_layout": {"layers": 3},
        "select_rows": {"selections": 1},
        "quantize_tokens": {"bit_layers": 0, "quantizations": 0, "with_norm": 0},
        "quantize_activations": {
            "int8_layers": 13,
            "float_layers": 0,
            "quantizations": 13,
            "with_norm": 7,
            "with_gate": 3,
        },
        "dead_code": {"nodes": 0, "constants": 1},
    }
    assert text.counts(model) == {
        "Dequantize_q4_1": 22,
        "NormQuantize": 7,
        "Quantize": 3,
        "LinearResidual": 6,
        "Linear": 4,
        "Concat": 3,
        "RopeAppendInt16": 3,
        "PagedAttentionInt16": 3,
        "LinearGatedQuantize": 3,
        "RopeAngles": 1,
        "Embedding": 1,
        "Gather": 1,
    }
    weight = next(n for n in model.graph if n.name == "blk.0.ffn_up.weight.f32").outputs[0]
    assert (weight.metadata_props["ryzc.format"], weight.metadata_props["ryzc.bits"]) == ("q4_1", "5.0")


def test_gates_are_quantized_where_both_weights_have_one_format() -> None:
    model = models.load(llama(layers=8, mix=("q4_0", "q8_0"))).ir_model
    pipeline.run(model)
    for kind, same in (("LinearGatedQuantize", True), ("LinearGated", False)):
        found = list(nodes.nodes(model.graph, kind))
        assert found
        for node in found:
            gate, up = (nodes.formats_of(nodes.operand(node, i)) for i in (2, 3))
            assert (gate == up) is same


def test_gemma3_norms_after_blocks_join_the_residual() -> None:
    model = models.load(gemma3(layers=6)).ir_model
    figures = {report.name: report.figures for report in pipeline.run(model, activations="f32")}
    assert figures["fuse_residual"] == {"linear_layers": 0, "norms": 12}
    windows = [nodes.integer(n, "window") for n in nodes.nodes(model.graph, "PagedAttentionInt16")]
    assert windows == [5, 5, 5, 5, 5, 0]
    embedding = next(nodes.nodes(model.graph, "Embedding"))
    assert nodes.real(embedding, "scale") == 8.0


@pytest.mark.skipif("f16" not in FLOATS, reason="format f16 is not there yet")
def test_float_weights_keep_float_activations() -> None:
    model = models.load(llama(mix=("f16",))).ir_model
    reports = {report.name: report for report in pipeline.run(model)}
    assert not reports["quantize_activations"].changed
    assert reports["quantize_activations"].figures["float_layers"] == 9
    assert "Linear" not in text.counts(model)


def test_the_observer_sees_every_stage() -> None:
    model = models.load(llama(layers=1)).ir_model
    seen: dict[str, dict[str, int]] = {}
    pipeline.run(model, observer=lambda name, m: seen.update({name: text.counts(m)}))
    assert list(seen) == [p.name for p in pipeline.passes()]
    assert "MatMul" in seen["embedding"]
    assert "MatMul" not in seen["linear"]
    assert model.metadata_props["ryzc.passes"].split(",") == list(seen)


def test_a_pass_out_of_order_names_itself_and_those_before() -> None:
    model = models.load(llama(layers=1)).ir_model
    with pytest.raises(InternalError, match=r"pass kv_layout requires qkv.*before it ran: no pass"):
        apply(KVLayout(), model)
    for pass_ in pipeline.passes()[:4]:
        apply(pass_, model)
    with pytest.raises(
        InternalError,
        match=r"pass quantize_activations requires qkv, gated, residual, rows.*choose_formats, embedding, linear",
    ):
        apply(QuantizeActivations(), model)


def test_a_pass_that_fails_names_itself_and_those_before() -> None:
    class Broken(Pass):
        name: ClassVar[str] = "broken"
        error: ClassVar[Callable[[], Exception]]

        def run(self, model: ir.Model) -> Report:
            raise type(self).error()

    model = models.load(llama(layers=1)).ir_model
    apply(DeadCode(), model)
    Broken.error = staticmethod(lambda: IndexError("oops"))
    with pytest.raises(InternalError, match=r"pass broken failed: IndexError\('oops'\); before it ran: dead_code"):
        apply(Broken(), model)
    Broken.error = staticmethod(lambda: UnsupportedError("the user can mend this"))
    with pytest.raises(UnsupportedError, match="mend this"):
        apply(Broken(), model)


def test_wrong_options_are_errors() -> None:
    with pytest.raises(UsageError, match="int4"):
        pipeline.passes(activations="int4")
    with pytest.raises(UsageError, match="q8_0"):
        pipeline.passes(kv_dtype="q8_0")
    with pytest.raises(UsageError, match="0 tokens"):
        pipeline.passes(page_tokens=0)


def test_dead_code_cuts_what_no_output_needs() -> None:
    model = models.load(llama(layers=1)).ir_model
    wanted = snapshot(model)
    x = nodes.add_constant(model.graph, "stray", np.ones(3, np.float32))
    y = nodes.add(model.graph, "Relu", [x], name="stray.relu", shape=[3])
    nodes.add(model.graph, "Abs", [y], name="stray.abs", shape=[3])
    report = apply(DeadCode(), model)
    assert report.figures == {"nodes": 2, "constants": 1}
    assert snapshot(model) == wanted


def test_attention_that_cannot_be_paged_is_an_error() -> None:
    """Without fused queries, keys and values there is no such node for the runtime."""
    model = models.load(llama(layers=1)).ir_model
    for pass_ in pipeline.passes()[:4]:
        apply(pass_, model)
    model.metadata_props["ryzc.facts"] += ",qkv"
    with pytest.raises(InternalError, match="does not come from a joined linear layer"):
        apply(KVLayout(), model)
