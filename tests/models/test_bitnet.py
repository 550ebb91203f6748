"""BitNet models mean what transformers computes, in whatever form their weights come, which ends in the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bitnet_golden
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from ternary_models import checkpoint, model, write_gguf, write_hf

from ryzc import formats, models, sources
from ryzc.errors import SourceError, UnsupportedError
from ryzc.graph import nodes, oracle
from ryzc.passes.pass_ import apply
from ryzc.passes.ternarize import Ternarize
from ryzc.sources.checkpoint import Checkpoint, Scalar, StoredTensor

TOLERANCE = 1e-5
"""Of the largest logit: both compute in float32, in another order. Measured: 4e-7."""

Make = Callable[[Path], Path]


def golden(case: str) -> npt.NDArray[np.float32]:
    with np.load(bitnet_golden.FILE) as stored:
        assert str(stored["weights"]) == bitnet_golden.digest(), "other weights; run tests/golden/make_bitnet.py"
        assert list(stored["ids"]) == bitnet_golden.IDS
        found: npt.NDArray[np.float32] = stored[f"logits.{case}"]
        return found


def error(graph: ir.Model, wanted: npt.NDArray[np.float32]) -> float:
    got = oracle.logits(graph, bitnet_golden.IDS)[:, bitnet_golden.COLUMNS]
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def rows(graph: ir.Model) -> dict[str, bytes]:
    decoders = nodes.nodes(graph.graph, "Dequantize_ternary")
    found = {nodes.name_of(value): value.const_value for value in (nodes.operand(node, 0) for node in decoders)}
    return {name: tensor.numpy().tobytes() for name, tensor in found.items() if tensor is not None}


def directory(form: str, model_type: str) -> Make:
    return lambda path: write_hf(path / form, bitnet_golden.made(model_type), form, model_type)


def file(form: str, model_type: str) -> Make:
    architecture = {"bitnet": "bitnet-b1.58", "llama": "llama"}[model_type]
    return lambda path: write_gguf(path / "model.gguf", bitnet_golden.made(model_type), form, architecture)


@pytest.mark.parametrize(
    ("make", "case"),
    [
        (directory("offline", "bitnet"), "bitnet_offline"),
        (directory("online", "bitnet"), "bitnet_online"),
        (file("tq1_0", "bitnet"), "bitnet_offline"),
        (file("tq2_0", "bitnet"), "bitnet_offline"),
        (file("i2_s", "bitnet"), "bitnet_offline"),
        (file("bf16", "bitnet"), "bitnet_offline"),
        (directory("bitlinear", "llama"), "llama_bitlinear"),
        (directory("offline", "llama"), "llama_bitlinear"),
        (directory("online", "llama"), "llama_bitlinear"),
        (file("i2_s", "llama"), "llama_bitlinear"),
        (directory("plain", "llama"), "llama_plain"),
        (directory("stretched", "llama"), "llama_stretched"),
        (file("tq2_0", "llama"), "llama_plain"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_logits_are_those_of_transformers(make: Make, case: str, tmp_path: Path) -> None:
    graph = models.load(sources.open(make(tmp_path))).ir_model
    wanted = golden(case)
    assert error(graph, wanted) < TOLERANCE
    apply(Ternarize(), graph)
    assert error(graph, wanted) < TOLERANCE
    matrices = bitnet_golden.made(case.split("_")[0]).matrices
    if case in ("llama_plain", "llama_stretched"):
        assert rows(graph) == {}
    elif "bitlinear" in str(sorted(tmp_path.iterdir())):  # its scale went through a reciprocal
        ternary = formats.get("ternary")
        for name, stored in rows(graph).items():
            raw = np.frombuffer(stored, np.uint8).reshape(len(matrices[name.removesuffix(".weight")].trits), -1)
            want = matrices[name.removesuffix(".weight")].stored("ternary")
            assert np.array_equal(raw[:, 4:], want[:, 4:])
            np.testing.assert_allclose(ternary.decode(raw), ternary.decode(want), rtol=2e-7)
    else:
        assert rows(graph) == {f"{name}.weight": m.stored("ternary").tobytes() for name, m in matrices.items()}


def with_tensor(source: Checkpoint, name: str, values: npt.NDArray[np.float32]) -> Checkpoint:
    tensor = StoredTensor(name, "f32", values.shape, values.view(np.uint8))
    return replace(source, tensors={**source.tensors, name: tensor})


def with_keys(source: Checkpoint, **keys: Scalar) -> Checkpoint:
    changed = {f"bitnet.{key.replace('__', '.')}": value for key, value in keys.items()}
    return replace(source, metadata={**source.metadata, **changed})


def test_rope_turns_halves_and_scaling_by_one_is_none() -> None:
    source = checkpoint(model(0), "bitnet")
    as_converters_write = with_keys(source, rope__scaling__type="linear", rope__scaling__factor=1.0)
    config = models.load(as_converters_write).config
    assert config == models.load(source).config
    graph = models.load(source).ir_model
    assert {nodes.integer(node, "interleaved") for node in nodes.nodes(graph.graph, "Rope")} == {0}


@pytest.mark.parametrize(
    ("keys", "kind", "told"),
    [
        ({"rope__scaling__type": "yarn"}, UnsupportedError, "'yarn'"),
        ({"rope__scaling__factor": 2.0}, UnsupportedError, "factor is 2.0"),
        ({"expert_count": 8}, UnsupportedError, "expert_count"),
        ({"attention__head_count_kv": 4}, SourceError, "attn_k.weight has shape"),
        ({"block_count": 1}, UnsupportedError, "tensors are not part"),
    ],
)
def test_what_is_not_known_is_refused(keys: dict[str, Scalar], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        models.load(with_keys(checkpoint(model(0)), **keys))


@pytest.mark.parametrize(
    ("name", "values", "kind", "told"),
    [
        ("blk.0.attn_q.bias", np.zeros(256, np.float32), UnsupportedError, "attn_q.bias"),
        ("blk.0.attn_q.scale", np.ones(2, np.float32), SourceError, r"\[2\], not \[1\]"),
        ("blk.0.attn_q.scale", np.array([np.nan], np.float32), SourceError, "scale is nan"),
    ],
)
def test_strange_tensors_are_refused(
    name: str, values: npt.NDArray[np.float32], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        models.load(with_tensor(checkpoint(model(0)), name, values))
