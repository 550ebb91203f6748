"""The two sample models, compiled, against engines that nobody here wrote.

The golden figures are of transformers in float32 and of llama.cpp on the same files; see
:mod:`golden.make_reference`. Three kinds of bounds hold here:

- float32 activations: the compiled model must be transformers' within rounding;
- int8 activations, statistically: the gates of the design, see :data:`KL_MEAN` and the rest;
- int8 activations, greedily: the same next token wherever the reference's lead is larger than int8 noise.
  llama.cpp's activations are int8 in blocks too, so the noise is read off it: :data:`NOISE` times the root mean
  square by which its lead of the same two tokens differs from the reference's, over all greedy positions.

Continuations are teacher-forced: each position is judged after the reference's own tokens, so that one choice
within the noise does not make all later positions incomparable.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from golden import reference_data as golden

import ryzc
from ryzc.runtime import perplexity
from ryzc.runtime.model import Model

KL_MEAN, KL_MAX, TOP1 = 5e-3, 5e-2, 0.94
KV_MEAN = 1e-6
NOISE = 4.0
FLOAT32 = 1e-5
"""How far a logit may be from transformers', as a share of the largest one of the text; about 2e-6 is usual."""
WORSE_THAN_REFERENCE, WORSE_THAN_LLAMA_CPP = 0.01, 0.005
CONTEXT = 1024

F32: TypeAlias = npt.NDArray[np.float32]
FIXTURES = {"smollm2": "smollm2_path", "gemma3-270m": "gemma3_path"}


@dataclass(frozen=True)
class Case:
    """A compiled model and what it is held against."""

    source: Path
    model: Model
    reference: golden.Reference


@pytest.fixture(scope="module", params=list(FIXTURES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    source: Path = request.getfixturevalue(FIXTURES[request.param])
    bundle = ryzc.build(source, tmp_path_factory.mktemp("reference") / "int8.ryzc")
    with ryzc.load(bundle, context=CONTEXT, threads=1) as model:
        yield Case(source, model, golden.load(request.param))


def logits_after(model: Model, tokens: list[int], first: int) -> Iterator[tuple[slice, F32]]:
    """Logits after position ``first`` and later ones, a few rows at a time; views that the next step overwrites."""
    for start, result in model.evaluate(tokens, first):
        rows = result.all_logits
        yield slice(start - first, start - first + len(rows)), rows


def lead_of(row: F32, token: int) -> float:
    """How far a token's logit lies above the largest of the others; negative where it is not the largest."""
    return float(row[token] - np.delete(row, token).max())


def test_golden_files_can_tell(case: Case) -> None:
    """The goldens cover what the gates promise, and most positions are decided beyond noise."""
    full = [g for g in case.reference.greedy if len(g.continuation) == 64]
    leads = np.concatenate([g.margin for g in case.reference.greedy])
    assert len(full) >= 20
    assert sum(len(g.tokens) > 600 for g in full) >= 1
    assert (leads > noise(case.reference)).mean() > 0.6
    assert case.reference.agreement["llama_cpp_float32"]["greedy"]["logits_relative_rms"] < 1e-3


def noise(reference: golden.Reference) -> float:
    """The lead beyond which int8 activations may not change the choice."""
    return NOISE * float(reference.agreement["llama_cpp_shipped"]["greedy"]["margin_error_rms"])


def test_prompts_become_the_same_tokens(case: Case) -> None:
    """Chat template and tokenizer together."""
    for prompt, greedy in zip(golden.prompts(case.reference.name), case.reference.greedy, strict=True):
        assert prompt.name == greedy.name
        assert case.model.tokenize(prompt.text)[: prompt.first_tokens] == greedy.tokens, prompt.name
    for name, text in golden.texts().items():
        tokens = next(t.tokens for t in case.reference.texts if t.name == name)
        assert case.model.tokenize(text, raw=True) == tokens.tolist(), name


def test_greedy_choices_beyond_noise(case: Case) -> None:
    threshold = noise(case.reference)
    wrong = []
    for greedy in case.reference.greedy:
        tokens = [*greedy.tokens, *greedy.continuation[:-1]]
        for place, rows in logits_after(case.model, tokens, len(greedy.tokens) - 1):
            steps = range(place.start, place.stop)
            for step, row in zip(steps, rows, strict=True):
                expected = greedy.continuation[step]
                if row.argmax() != expected and greedy.margin[step] > threshold:
                    wrong.append((greedy.margin[step], lead_of(row, expected), greedy.name, step))
    assert not wrong, f"beyond a lead of {threshold:.3f}, worst (lead, ours, prompt, step): {max(wrong)}; all: {wrong}"


def test_generated_text_is_the_reference_up_to_noise(case: Case) -> None:
    """Token by token as a user gets it: equal up to the first choice that noise may change."""
    threshold = noise(case.reference)
    compared = 0
    for greedy in case.reference.greedy[::4]:
        generation = case.model.generate(greedy.tokens, max_tokens=len(greedy.continuation), temperature=0.0)
        generation.text()
        got = generation.new_ids
        differs = (step for step, pair in enumerate(zip(got, greedy.continuation, strict=False)) if pair[0] != pair[1])
        step = next(differs, None)
        if step is None:
            assert got == greedy.continuation, greedy.name
        else:
            assert greedy.margin[step] <= threshold, f"{greedy.name}: step {step}, lead {greedy.margin[step]}"
        compared += len(got) if step is None else step
    assert compared >= 100


def divergences(model: Model, reference: golden.Reference) -> tuple[npt.NDArray[np.float64], float]:
    """The KL divergence at each position of three texts, and how often the likeliest token is the reference's."""
    found, agrees = [], []
    for text in reference.texts:
        for place, rows in logits_after(model, text.tokens.tolist(), 0):
            found.append(text.part(place).kl(rows))
            agrees.append(rows.argmax(axis=1) == text.top_ids[place, 0])
    return np.concatenate(found), float(np.concatenate(agrees).mean())


def test_distance_from_the_reference(case: Case, tmp_path: Path) -> None:
    """KL divergence and the likeliest token, on three texts.

    The largest divergence is that of one position, where codes of activations tip over or not with the last bits of
    what came before: of forty models that differed in these bits alone it was 0.026 to 0.074, and above the gate in
    fourteen. So the gate asks of several such models what it asks of one: that no more than one position in as many
    as the texts have lies above it.
    """
    bound = case.reference.agreement["llama_cpp_shipped"]["texts"]["kl_max"]
    # Gemma has positions where int8 activations cost more than the gate, in llama.cpp (0.11) as here (0.06).
    gate, others = max(KL_MAX, bound), (1.01, 1.02, 1.03, 1.04) if bound < KL_MAX else ()
    found = [divergences(case.model, case.reference)]
    for factor in others:
        bundle = ryzc.build(with_epsilon(case.source, tmp_path / "other.gguf", factor), tmp_path / f"{factor}.ryzc")
        with ryzc.load(bundle, context=CONTEXT, threads=1) as model:
            found.append(divergences(model, case.reference))
    for kl, agrees in found:
        assert kl.mean() <= KL_MEAN
        assert agrees >= TOP1
    largest = np.sort(np.concatenate([kl for kl, _ in found]))[::-1]
    assert largest[len(found) - 1] <= gate, largest[: 2 * len(found)]


def with_epsilon(source: Path, place: Path, factor: float) -> Path:
    """A model whose norms add ``factor`` times as much to a mean square, which at 1.01 changes little but last bits."""
    data = bytearray(source.read_bytes())
    key = b".attention.layer_norm_rms_epsilon"
    at = data.index(key) + len(key) + 4  # behind the name stands the value's type
    (epsilon,) = struct.unpack_from("<f", data, at)
    assert 0 < epsilon < 1e-3
    struct.pack_into("<f", data, at, epsilon * factor)
    place.write_bytes(data)
    return place


@pytest.mark.parametrize("kv", ["f16", "int16"])
def test_what_rounded_keys_and_values_cost(case: Case, kv: str, tmp_path: Path) -> None:
    """Alone, with activations that are not rounded: a thousandth of what those cost."""
    bundle = ryzc.build(case.source, tmp_path / "kv.ryzc", activations="f32", kv=kv)
    with ryzc.load(bundle, context=CONTEXT, threads=1) as model:
        kl, agrees = divergences(model, case.reference)
    assert kl.mean() <= KV_MEAN
    assert agrees >= 0.995


def test_perplexity(case: Case) -> None:
    figures = case.reference.perplexity
    windows = case.reference.windows
    got = perplexity.of_tokens(case.model, windows.ravel().tolist(), context=windows.shape[1]).value
    reference = figures["transformers_float32"]["perplexity"]
    llama_cpp = figures["llama_cpp_shipped"]["perplexity"]
    assert abs(got / reference - 1) <= WORSE_THAN_REFERENCE
    assert abs(got / llama_cpp - 1) <= WORSE_THAN_LLAMA_CPP


def test_float32_activations_are_transformers(case: Case, tmp_path: Path) -> None:
    """On the texts, and around the end of Gemma's sliding window, where one token more or less would show."""
    bundle = ryzc.build(case.source, tmp_path / "f32.ryzc", activations="f32")
    with ryzc.load(bundle, context=CONTEXT, threads=1) as model:
        for greedy in case.reference.greedy:
            if greedy.name in ("long-lighthouse", "window-crossed-while-decoding"):
                tokens = [*greedy.tokens, *greedy.continuation[:-1]]
                for place, rows in logits_after(model, tokens, len(greedy.tokens) - 1):
                    best = np.sort(rows, axis=1)[:, -2:]
                    expected = np.stack([greedy.logit[place], np.subtract(greedy.logit, greedy.margin)[place]], axis=1)
                    bound = FLOAT32 * max(greedy.logit) + 1e-4  # the golden figures have four decimals
                    np.testing.assert_allclose(best[:, ::-1], expected, rtol=0, atol=bound, err_msg=greedy.name)
        for text in case.reference.texts:
            bound = FLOAT32 * float(np.abs(text.top_logits).max())
            for place, rows in logits_after(model, text.tokens.tolist(), 0):
                expected, got = text.top_logits[place], np.take_along_axis(rows, text.top_ids[place], 1)
                worst = np.abs(got - expected).max(axis=1)
                assert worst.max() <= bound, f"{text.name}: off by {worst.max()} at {place.start + worst.argmax()}"
                decided = expected[:, 0] - expected[:, 1] > 2 * bound
                assert (rows.argmax(axis=1) == text.top_ids[place, 0])[decided].all(), text.name
