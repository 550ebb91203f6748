"""Models whose weights a build rounds: compiled, they are what their final graph says; and a build tells the loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_chat
import tiny_models
from compiled import runnable_targets, write_lowered

from ryzc import cli, models, sources
from ryzc.bundle import Bundle
from ryzc.compiler import build, plan
from ryzc.errors import UsageError
from ryzc.graph.oracle import PagedOracle
from ryzc.passes import pipeline
from ryzc.passes.quantize_weights import LAYERS, Asked
from ryzc.runtime import kv_quality, weight_quality
from ryzc.runtime.step import CompiledModel
from ryzc.runtime.weight_quality import Loss


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_compiled_model_is_what_its_final_graph_says(name: str, tmp_path: Path) -> None:
    checkpoint, asked = tiny_models.llama(mix=("q4_1", "f16")), Asked(LAYERS[name], "q8_0")
    tokens = np.random.default_rng(0).integers(0, 40, 45).astype(np.int32)
    # Rounded activations tip over between oracle and kernels, floats do not.
    for activations, bound in (("f32", 1e-5), ("int8", 0.05)):
        semantic = models.load(checkpoint).ir_model
        pipeline.run(semantic, activations=activations, kv_dtype="f32", weights=asked)
        expected = PagedOracle(semantic).prompt(tokens.tolist())
        lowered = plan(checkpoint, activations=activations, kv="f32", weights=asked)
        path = write_lowered(lowered, tmp_path / f"{activations}.ryzc", target=runnable_targets()[0])
        with CompiledModel(path, context=128) as model:
            model.page_table[:] = np.arange(model.pages, dtype=np.int32).reshape(model.page_table.shape)
            found = model.step(tokens, np.arange(45), np.zeros(45, int), np.arange(45)).all_logits
            assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model's file, of which a build measures little."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and so on")
    monkeypatch.setattr(sources, "open", lambda source: replace(tiny_chat.checkpoint(), path=path))
    monkeypatch.setattr(kv_quality, "CONTEXT", 32)
    monkeypatch.setattr(kv_quality, "WINDOWS", 3)
    given = {**(kv_quality.measure.__kwdefaults__ or {}), "context": 32, "windows": 3}
    monkeypatch.setattr(kv_quality.measure, "__kwdefaults__", given)
    return path


def test_a_build_tells_what_its_weights_cost(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weight_quality, "USELESS", 0.0)
    path = tmp_path / "a.ryzc"
    assert cli.main(["build", str(source), "-o", str(path), "--quant", "ternary2", "--head", "q4_0"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(path)
    bundle = Bundle.open(path)
    made = bundle.manifest.provenance
    assert (made["quant"], made["head"]) == ("ternary2", "q4_0")
    assert str(made["quant_cost"]) in err
    assert "useless" in err
    assert {weight.format for weight in bundle.plan.weights} >= {"trit2", "q4_0"}
    figures = json.loads(str(bundle.plan.notes["quantize_weights"]))
    assert (figures["rounded"], figures["kept"]) == (15, 0)
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "error of rounded weights" in shown
    assert "blk.*.ffn_down.weight" in shown


def test_what_is_useless() -> None:
    assert not Loss(19.9, 10.0).useless
    assert Loss(20.1, 10.0).useless
    assert str(Loss(15.0, 10.0)) == "perplexity 15.00 beside 10.00 of the source, +50.0%"


def test_a_plan_that_is_not_asked_rounds_nothing() -> None:
    made = plan(tiny_chat.checkpoint()).plan
    assert {weight.format for weight in made.weights} <= {"q4_1", "q8_0", "f32", "f64"}
    assert "quantize_weights" not in made.notes


def test_nothing_to_round_is_an_error(source: Path, tmp_path: Path) -> None:
    already = tiny_chat.checkpoint().tensors["token_embd.weight"].format
    with pytest.raises(UsageError, match=f"nothing to round to {already}"):
        build(source, tmp_path / "a.ryzc", head=already)
    assert not (tmp_path / "a.ryzc").exists()
