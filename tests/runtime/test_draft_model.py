"""A small model drafting for a large one, both compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import tiny_chat
import tiny_models
import tiny_vocabularies
from compiled import write_bundle
from speculating import decode, step

from ryzc.bundle import Bundle
from ryzc.errors import UsageError
from ryzc.runtime import speculation
from ryzc.runtime.kv import PagePool
from ryzc.runtime.speculation.draft_model import DraftModel, require_same_vocabulary
from ryzc.runtime.speculation.speculator import Speculator
from ryzc.runtime.step import CompiledModel, StepResult
from ryzc.sources import tokenizers
from ryzc.sources.checkpoint import Vocabulary

CONTEXT, SEQUENCES, COUNT = 96, 3, 40
PROMPTS = [[1, 2, 3, 4, 5], list(range(2, 30)), [7]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A large model and another of the same vocabulary."""
    place = tmp_path_factory.mktemp("draft")
    large = write_bundle(tiny_models.llama(1, layers=3), place / "large.ryzc")
    return large, write_bundle(tiny_models.llama(2, layers=1), place / "small.ryzc")


def load(path: Path) -> CompiledModel:
    return CompiledModel(path, context=CONTEXT, sequences=SEQUENCES, threads=1)


@pytest.fixture
def large(bundles: tuple[Path, Path]) -> Iterator[CompiledModel]:
    with load(bundles[0]) as model:
        pool = PagePool(model.pages, model.page_tokens, model.page_table)
        for sequence in range(SEQUENCES):
            pool.resize(sequence, CONTEXT)
        yield model


@pytest.fixture(params=["the same", "another"])
def drafter(request: pytest.FixtureRequest, bundles: tuple[Path, Path]) -> Iterator[DraftModel]:
    with load(bundles[request.param == "another"]) as model:
        drafter = DraftModel(model, Bundle.open(bundles[0]).plan)
        drafter.relative_cost = 0.01
        yield drafter


def free(tokens: int) -> float:
    return 1.0


def plain(model: CompiledModel) -> list[list[int]]:
    return decode(model, PROMPTS, COUNT, Speculator(speculation.get("off")))


def test_output_is_that_of_the_large_model_alone(large: CompiledModel, drafter: DraftModel) -> None:
    speculator = Speculator(drafter)
    for _ in range(2):
        assert decode(large, PROMPTS, COUNT, speculator, seconds=free) == plain(large)
    assert speculator.proposed > 0


@pytest.mark.parametrize("drafter", ["the same"], indirect=True)
def test_a_draft_of_the_same_model_is_always_right(large: CompiledModel, drafter: DraftModel) -> None:
    speculator = Speculator(drafter)
    decode(large, PROMPTS, COUNT, speculator, seconds=lambda tokens: 1e3)
    assert speculator.accepted == speculator.proposed > 2 * COUNT


@pytest.mark.parametrize("drafter", ["the same"], indirect=True)
def test_requests_are_drafted_for_in_the_same_steps(drafter: DraftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = drafter.model.step

    def counted(tokens: Sequence[int], *rest: Sequence[int]) -> StepResult:
        sizes.append(len(tokens))
        return real(tokens, *rest)

    monkeypatch.setattr(drafter.model, "step", counted)
    states = [drafter.open(prompt) for prompt in PROMPTS]
    chains = drafter.propose_all(states, [4, 2, 0], 0.0)
    assert [len(chain.ids) for chain in chains] == [4, 2, 0]
    assert sizes == [len(PROMPTS[0]) + len(PROMPTS[1]), 2, 1, 1]


@pytest.mark.parametrize("drafter", ["the same"], indirect=True)
def test_drafts_do_not_depend_on_what_was_refused_before(drafter: DraftModel) -> None:
    straight = drafter.open([1, 2, 3, 9, 8])
    expected = straight.propose(5).ids
    winding = drafter.open([1, 2, 3])
    winding.propose(6)
    winding.extend([9], None)
    winding.propose(3)
    winding.propose(3)
    winding.extend([8], None)
    assert winding.propose(5).ids == expected


@pytest.mark.parametrize("drafter", ["the same"], indirect=True)
def test_drafts_end_with_the_context_and_without_a_sequence(drafter: DraftModel) -> None:
    state = drafter.open([2] * (CONTEXT - 2))
    assert len(state.propose(9).ids) == 2
    state.extend([3, 4, 5], None)
    assert state.propose(9).ids == []
    others = [drafter.open([1]) for _ in range(SEQUENCES)]
    assert [len(other.propose(1).ids) for other in others] == [1, 1, 0]
    others[0].close()
    assert len(drafter.open([1]).propose(1).ids) == 1


class Second:
    """Draws the second best token."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, list[int]]] = []

    def prepare(self, model: CompiledModel, row: int, position: int, drafts: Sequence[int]) -> None:
        self.asked.append((row, position, list(drafts)))

    def drawn(self, result: StepResult, row: int) -> int:
        return int(np.argsort(-result.full(row), kind="stable")[1])


@pytest.mark.parametrize("drafter", ["the same"], indirect=True)
def test_drafts_are_drawn_as_the_request_draws(drafter: DraftModel, large: CompiledModel) -> None:
    draw = Second()
    ids = drafter.open([1, 2, 3], draw=draw).propose(2).ids
    assert draw.asked == [(0, 3, []), (0, 4, ids[:1])]
    result = step(large, [1, 2, 3], range(3), [0] * 3, [2])
    assert ids[0] == Second().drawn(result, 0)


def tokenizer_of(vocabulary: Vocabulary, place: Path) -> Bundle:
    """A bundle of nothing but a tokenizer."""
    place.mkdir()
    (place / "tokenizer.json").write_text(tokenizers.build(vocabulary))
    (place / "tokenizer_config.json").write_text(json.dumps(tokenizers.settings(vocabulary)))
    return cast(Bundle, SimpleNamespace(path=place))


@pytest.mark.parametrize("drafter", ["the same"], indirect=True)
def test_a_drafter_as_slow_as_the_model_is_hardly_asked(large: CompiledModel, drafter: DraftModel) -> None:
    drafter.relative_cost = 1.0
    speculator = Speculator(drafter)
    assert decode(large, PROMPTS, COUNT, speculator, seconds=lambda tokens: 1e-9) == plain(large)
    assert speculator.proposed <= 1


def test_other_tokens_are_refused(tmp_path: Path) -> None:
    vocabulary = tiny_vocabularies.bpe()
    bundle = tokenizer_of(vocabulary, tmp_path / "a.ryzc")
    require_same_vocabulary(bundle, bundle)
    swapped = list(vocabulary.tokens)
    swapped[-1], swapped[-2] = swapped[-2], swapped[-1]
    other = tokenizer_of(replace(vocabulary, tokens=tuple(swapped)), tmp_path / "b.ryzc")
    with pytest.raises(UsageError, match=r"b\.ryzc does not have the tokens"):
        require_same_vocabulary(other, bundle)


def test_a_bundle_drafts_within_its_own_context(tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_chat.write(tmp_path / "tiny.ryzc"))
    with DraftModel.load(bundle.path, bundle, context=1 << 20, sequences=2, threads=1).model as model:
        assert model.context == bundle.plan.context_length
