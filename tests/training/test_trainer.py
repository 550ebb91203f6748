"""Training itself, which needs PyTorch: gradients, resuming to the same bits, and what the exported file means."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ryzc import formats, sources
from ryzc.errors import UsageError, UserError

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'ryzc[train]'")

from ryzc.training import export, text  # noqa: E402
from ryzc.training.model import BitNet, BitProduct, Shape, round_tokens, ternarize  # noqa: E402
from ryzc.training.trainer import Recipe, Training  # noqa: E402

pytestmark = pytest.mark.slow

SHAPE = Shape(vocabulary=300, context=32, layers=2, hidden=256, heads=4, kv_heads=2, feed_forward=256)
RECIPE = Recipe(steps=8, batch=2, warmup=2)
STORIES = tuple(f"Anna found {i} stones near the river. She gave Ben {i % 7} of them." for i in range(60))
CORPUS = text.Corpus(STORIES[6:], STORIES[:6], "0" * 64)
VOCABULARY = text.vocabulary(STORIES, SHAPE.vocabulary)


def training(**changes: Any) -> Training:
    return Training(CORPUS, VOCABULARY, SHAPE, replace(RECIPE, **changes))


def weights(made: Training) -> dict[str, Any]:
    return {name: weight.detach().clone() for name, weight in made.model.state_dict().items()}


@pytest.fixture(scope="module")
def trained() -> Training:
    made = training(steps=60)
    made.run()
    made.settle()
    return made


def test_products_and_gradients_are_straight_through() -> None:
    torch.manual_seed(1)
    x, w = torch.randn(2, 5, 256, requires_grad=True), torch.randn(64, 256, requires_grad=True)
    y = BitProduct.apply(x, w, False)
    ternary, scale = ternarize(w.detach())
    codes, steps = round_tokens(x.detach())
    assert set(ternary.unique().tolist()) == {-1, 0, 1}
    assert float(scale) == float(scale.half())
    assert codes.abs().amax(-1).unique().tolist() == [127]
    rounded_x, rounded_w = (x + (codes * steps - x).detach()), (w + (ternary * scale - w).detach())
    wanted = rounded_x @ rounded_w.t()
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    towards = torch.randn_like(y)
    ours, theirs = torch.autograd.grad(y, (x, w), towards), torch.autograd.grad(wanted, (x, w), towards)
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-4, atol=1e-4)
    # bfloat16 holds codes and ternary weights exactly, so only the sum is rounded.
    torch.testing.assert_close(BitProduct.apply(x, w, True), y, rtol=2**-7, atol=1e-6)


def test_it_learns(trained: Training) -> None:
    first = Training(CORPUS, VOCABULARY, SHAPE, RECIPE).held_out_loss()
    assert first == pytest.approx(math.log(SHAPE.vocabulary), abs=0.3)
    assert trained.held_out_loss() < first / 2


def test_two_stages() -> None:
    recipe = Recipe(steps=1000, warmup=10, peak=3.0, second_peak=2.0, weight_decay=0.1)
    assert recipe.at(0)[0] == pytest.approx(0.3)
    assert recipe.at(100) == (pytest.approx(2.7), 0.1)
    assert recipe.at(499) == (pytest.approx(1.503), 0.1)
    assert recipe.at(500) == (pytest.approx(1.0), 0.0)
    assert recipe.at(999)[0] == pytest.approx(0.002)


def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = training()
    whole.run()
    checkpoint = tmp_path / "state"
    training().run(checkpoint=checkpoint, every=3, until=5)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    resumed = training()
    resumed.load(checkpoint)
    assert resumed.step == 5
    resumed.run()
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name
    other = training(seed=2)
    other.run()
    assert not torch.equal(weights(other)["token_embd.weight"], weights(whole)["token_embd.weight"])


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state"
    training().save(checkpoint)
    with pytest.raises(UsageError, match="begun with seed 1, not 2"):
        training(seed=2).load(checkpoint)
    other = Training(replace(CORPUS, sha256="1" * 64), VOCABULARY, SHAPE, RECIPE)
    with pytest.raises(UsageError, match="another text"):
        other.load(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="no checkpoint"):
        training().load(checkpoint)
    with pytest.raises(UserError, match="cannot be read"):
        training().load(tmp_path / "missing")


def test_shapes_that_cannot_be_stored() -> None:
    with pytest.raises(UsageError, match="multiples of 256"):
        Shape(vocabulary=300, hidden=128)
    with pytest.raises(UsageError, match="do not fit"):
        Shape(vocabulary=300, heads=3)
    with pytest.raises(UsageError, match="device"):
        Training(CORPUS, VOCABULARY, SHAPE, RECIPE, device="nothing")


def test_the_exported_file_means_what_was_trained(trained: Training, tmp_path: Path) -> None:
    path = tmp_path / "trained.gguf"
    export.write(trained, path, name="tiny", license_="Apache-2.0")
    checkpoint = sources.open(path)
    assert checkpoint.metadata["general.license"] == "Apache-2.0"
    assert checkpoint.metadata["general.training.corpus.sha256"] == CORPUS.sha256
    assert checkpoint.vocabulary == VOCABULARY
    for tensor in checkpoint.tensors.values():
        weight = trained.model.state_dict()[tensor.name]
        found = formats.get(tensor.format).decode(tensor.data.reshape(-1, tensor.data.shape[-1])).reshape(tensor.shape)
        if tensor.format == "tq2_0":
            codes, scale = ternarize(weight)
            weight = codes * scale
        np.testing.assert_array_equal(found, weight.numpy(), err_msg=tensor.name)


def test_the_exported_graph_says_what_the_model_says(trained: Training, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from ryzc.graph import oracle
    from ryzc.models import bitnet

    path = tmp_path / "trained.gguf"
    export.write(trained, path, name="tiny")
    checkpoint = sources.open(path)
    model = bitnet.graph(bitnet.Config.from_checkpoint(checkpoint), checkpoint)
    ids = text.encode(VOCABULARY, STORIES[:1])[0][: SHAPE.context]
    logits = oracle.logits(model, ids.tolist())
    with torch.no_grad():
        wanted = trained.model(torch.from_numpy(ids[None]))[0].numpy()
    # A code of an activation may fall to the other side of a half where sums came in another order.
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())
    assert np.median(np.abs(logits - wanted)) < 1e-4


def test_narrow_products_learn_as_well() -> None:
    made = training(steps=60, narrow=True)
    made.run()
    assert made.held_out_loss() < math.log(SHAPE.vocabulary) / 2


def test_transformers_says_the_same(trained: Training, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="this compares with transformers: pip install transformers")
    from golden.make_stories import model_of

    path = tmp_path / "trained.gguf"
    export.write(trained, path, name="tiny")
    theirs = model_of(sources.open(path))
    ids = torch.from_numpy(text.encode(VOCABULARY, STORIES[:1])[0][None, : SHAPE.context])
    with torch.no_grad():
        wanted, found = trained.model(ids), theirs(ids).logits
    assert float((wanted - found).abs().median()) < 1e-4
    assert torch.equal(wanted.argmax(-1), found.argmax(-1))


def test_the_first_weights_follow_from_the_seed() -> None:
    first, again, other = BitNet(SHAPE, 1), BitNet(SHAPE, 1), BitNet(SHAPE, 2)
    assert torch.equal(first.token_embd.weight, again.token_embd.weight)
    assert not torch.equal(first.token_embd.weight, other.token_embd.weight)
