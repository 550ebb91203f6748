"""Compiled BitNets against the ReferenceEvaluator: one model whatever file, layout and instruction set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import ternary_models
from compiled import runnable_targets, write_bundle

from ryzc import models
from ryzc.graph.oracle import logits
from ryzc.runtime.step import CompiledModel
from ryzc.sources.checkpoint import Checkpoint

F32 = npt.NDArray[np.float32]
TOKENS = 45
CHECKPOINTS: dict[str, Callable[[], Checkpoint]] = {
    "bitnet": lambda: ternary_models.checkpoint(ternary_models.model(1), mix=("tq2_0",)),
    "bitnet-b1.58": lambda: ternary_models.checkpoint(
        ternary_models.model(2), "bitnet-b1.58", mix=("ternary", "tq1_0", "bf16", "master")
    ),
    "llama": lambda: ternary_models.checkpoint(ternary_models.model(3, sub_norms=False), "llama", mix=("ternary",)),
}


@pytest.fixture(scope="module", params=sorted(CHECKPOINTS))
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return CHECKPOINTS[request.param]()


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> F32:
    return logits(models.load(checkpoint).ir_model, tokens().tolist())


@pytest.fixture(scope="module")
def bundles(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each instruction set with each layout that it reads, activations and caches in float where a model may choose."""
    directory, made = tmp_path_factory.mktemp("bitnet"), {}
    for target in runnable_targets():
        for layout in ("planes", "dense", "lookup") if target == "znver4" else ("planes",):
            path = directory / f"{target}-{layout}.ryzc"
            made[path.stem] = write_bundle(checkpoint, path, target=target, activations="f32", ternary=layout)
    return made


def tokens() -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 64, TOKENS)


def feed(path: Path, chunks: list[int], *, threads: int = 1) -> F32:
    """Logits of every token, fed in chunks of these sizes."""
    found, start = [], 0
    with CompiledModel(path, context=128, threads=threads) as model:
        model.page_table[:] = np.arange(model.pages, dtype=np.int32).reshape(model.page_table.shape)
        for size in chunks:
            part = tokens()[start : start + size]
            result = model.step(part, np.arange(start, start + size), np.zeros(size, int), np.arange(size))
            found.append(result.all_logits.copy())
            start += size
    return np.concatenate(found)


def test_logits_are_those_of_the_semantic_graph(bundles: dict[str, Path], expected: F32) -> None:
    """Both round activations by token; where float32 rounding tips a tie, a code differs by one of 127."""
    found = feed(bundles["x86-64-v3-planes"], [TOKENS])
    size = np.sqrt((expected**2).mean())
    assert np.abs(found[0] - expected[0]).max() <= 1e-4 * size  # the first token has met almost no ties
    assert np.sqrt(((found - expected) ** 2).mean()) <= 5e-3 * size
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.97


def test_layouts_and_instruction_sets_agree_bit_for_bit(bundles: dict[str, Path]) -> None:
    found = [feed(path, [TOKENS]) for path in bundles.values()]
    assert all(np.array_equal(other, found[0]) for other in found[1:])


def test_bits_do_not_depend_on_chunks_or_threads(bundles: dict[str, Path]) -> None:
    for path in bundles.values():
        whole = feed(path, [TOKENS])
        assert np.array_equal(feed(path, [1] * TOKENS), whole)
        assert np.array_equal(feed(path, [3, 8, 1, 33], threads=3), whole)


def test_every_source_gives_the_same_weights(tmp_path: Path) -> None:
    """Packed, in float or as master weights: the weights file is the same to the byte."""
    made, found = ternary_models.model(4), {}
    for form in ("ternary", "tq1_0", "tq2_0", "f32", "f16", "bf16", "master"):
        bundle = write_bundle(ternary_models.checkpoint(made, mix=(form,)), tmp_path / f"{form}.ryzc")
        found[form] = (bundle / "weights.safetensors").read_bytes()
    scales = write_bundle(ternary_models.checkpoint(made, mix=("tq2_0",), scales=True), tmp_path / "scales.ryzc")
    found["scales beside"] = (scales / "weights.safetensors").read_bytes()
    assert all(data == found["ternary"] for data in found.values()), [
        f for f, d in found.items() if d != found["ternary"]
    ]
