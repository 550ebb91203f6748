"""The sample that comes with ryzc, compiled, against transformers on the same codes and scales.

``golden/bitnet_stories.json`` holds greedy continuations of 50 prompts, see :mod:`golden.make_stories`. They are
teacher-forced: each position is judged after transformers' own tokens, wherever the best logit leads by more than what
rounding can change. An activation near a half falls to one code or the next by the order of a sum, and is then off by
a 127th of its token's largest: that is the noise of ``f32``; ``int8`` also rounds what the head is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ryzc
from ryzc import sources
from ryzc.runtime.model import Model

GOLDEN = Path(__file__).parent / "golden" / "bitnet_stories.json"
LEAD = {"f32": 0.05, "int8": 0.15}
"""By how much a token must lead to be certain, in logits."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(GOLDEN.read_text())
    return document


@pytest.fixture(scope="module", params=list(LEAD))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, float]]:
    place = tmp_path_factory.mktemp("stories") / f"{request.param}.ryzc"
    bundle = ryzc.build("bitnet-stories", place, activations=request.param)
    with ryzc.load(bundle, threads=1) as model:
        yield model, LEAD[request.param]


def test_the_golden_file_can_tell(golden: dict[str, Any]) -> None:
    assert golden["model"] == sources.SAMPLES["bitnet-stories"].sha256
    assert len(golden["cases"]) == 50
    leads = np.concatenate([each["margins"] for each in golden["cases"]])
    assert len(leads) > 1500
    assert (leads > LEAD["int8"]).mean() > 0.8


def test_prompts_are_the_golden_tokens(case: tuple[Model, float], golden: dict[str, Any]) -> None:
    model, _ = case
    for each in golden["cases"]:
        assert model.tokenize(each["text"], raw=True) == each["prompt"]


def test_greedy_tokens_are_transformers(case: tuple[Model, float], golden: dict[str, Any]) -> None:
    model, least = case
    for each in golden["cases"]:
        ids = [*each["prompt"], *each["ids"]]
        rows = model.logits(ids[:-1])[len(each["prompt"]) - 1 :]
        certain = np.array(each["margins"]) > least
        np.testing.assert_array_equal(
            rows.argmax(axis=1)[certain], np.array(each["ids"])[certain], err_msg=repr(each["text"])
        )


def test_logits_are_transformers(case: tuple[Model, float], golden: dict[str, Any]) -> None:
    model, least = case
    found = model.logits(golden["cases"][0]["prompt"])[-1]
    assert np.abs(found - golden["logits"]).max() < least
