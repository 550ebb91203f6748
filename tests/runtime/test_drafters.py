"""Drafters: whatever they propose, the output is the same; and what they are to find, they find."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from speculating import decode
from toy_model import EOS, VOCAB, ToyStep, greedy

from ryzc.errors import UsageError
from ryzc.runtime import speculation
from ryzc.runtime.kv import PagePool
from ryzc.runtime.mixes import MIXES, PROMPTS
from ryzc.runtime.speculation import Draft, Draw, Found
from ryzc.runtime.speculation.automaton import Automaton
from ryzc.runtime.speculation.chances import Chances, Guesses
from ryzc.runtime.speculation.lookup import Lookup
from ryzc.runtime.speculation.recycling import Recycling, Successors
from ryzc.runtime.speculation.speculator import Speculator

DRAFTERS = sorted(speculation.names())
IDS = st.integers(2, VOCAB - 1)
LOOPS = st.builds(lambda loop, times: loop * times, st.lists(IDS, min_size=1, max_size=7), st.integers(1, 12))
SCRIPTS = st.lists(LOOPS, min_size=1, max_size=4).map(lambda parts: list(chain(*parts))[:60])
"""Repetitions of all lengths; of single tokens and once each they are random text."""


def toy(script: Sequence[int], prompt: Sequence[int]) -> ToyStep:
    step = ToyStep(128, max_tokens=8, max_rows=8, script=script)
    step.prompt_length = len(prompt)
    PagePool(step.pages, step.page_tokens, step.page_table).resize(0, step.context)
    return step


@pytest.mark.parametrize("name", DRAFTERS)
@given(script=SCRIPTS, prompt=st.lists(IDS, min_size=1, max_size=20), slope=st.floats(0, 0.5))
def test_output_is_the_same_with_and_without(name: str, script: list[int], prompt: list[int], slope: float) -> None:
    speculator = Speculator(speculation.get(name))
    for _ in range(2):  # the second request meets what the drafter learned from the first
        step = toy(script, prompt)
        [ids] = decode(step, [prompt], len(script), speculator, seconds=lambda tokens: 1 + slope * tokens)
        assert ids == script


@pytest.mark.parametrize("name", DRAFTERS)
def test_output_of_a_random_model_is_the_same(name: str) -> None:
    step, prompt = toy([], [5, 6, 7]), [5, 6, 7]
    [ids] = decode(step, [prompt], 30, Speculator(speculation.get(name)))
    expected = list(greedy(step, prompt, 30))
    assert ids[: len(expected)] == expected
    assert len(expected) == 30 or expected[-1] == EOS


class Liar:
    """Proposes at random, and is sure of it."""

    name, candidates = "liar", 0

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def open(self, prompt: Sequence[int], *, private: bool = False, draw: Draw | None = None) -> Liar:
        return self

    def extend(self, ids: Sequence[int], found: Found | None) -> None:
        pass

    def propose(self, most: int) -> Draft:
        count = int(self._random.integers(0, most + 1))
        return Draft(self._random.integers(0, VOCAB, count).tolist(), [0.99] * count)

    def close(self) -> None:
        pass


@given(SCRIPTS, st.integers(0, 1 << 32))
def test_a_wrong_drafter_changes_nothing(script: list[int], seed: int) -> None:
    [ids] = decode(toy(script, [3]), [[3]], len(script), Speculator(Liar(seed)))
    assert ids == script


@pytest.mark.parametrize("name", sorted({"lookup", "auto", "recycling"}))
def test_a_loop_takes_few_steps(name: str) -> None:
    script = [5, 6, 7, 8, 9] * 20
    step = toy(script, [3])
    speculator = Speculator(speculation.get(name))
    decode(step, [[3]], len(script), speculator, most=7)
    assert len(step.batches) < 40
    assert speculator.accepted > 0.8 * speculator.proposed


def test_a_copy_of_the_prompt_is_looked_up() -> None:
    text = list(range(2, 32))
    state = Lookup().open([*text, 2, 3, 4])
    assert state.propose(8).ids == list(range(5, 13))


def test_a_loop_is_unrolled_beyond_its_end() -> None:
    state = Lookup().open([1, 8, 9, 8, 9])
    assert state.propose(7).ids == [8, 9, 8, 9, 8, 9, 8]


def test_past_outputs_are_looked_up_but_not_private_ones() -> None:
    lookup = Lookup()
    for first, private in ((10, False), (40, True)):
        state = lookup.open([1], private=private)
        state.extend(list(range(first, first + 9)), None)
        state.close()
    other = lookup.open([1])
    other.extend([10, 11, 12], None)
    assert other.propose(4).ids == [13, 14, 15, 16]
    other.extend([40, 41, 42], None)
    assert other.propose(4).ids == []


def test_no_draft_runs_from_one_output_into_the_next() -> None:
    lookup = Lookup()
    for first in (10, 20):
        state = lookup.open([1])
        state.extend(list(range(first, first + 5)), None)
        state.close()
    other = lookup.open([1])
    other.extend([12, 13], None)
    assert other.propose(6).ids == [14]


@given(st.lists(st.lists(IDS, max_size=40), max_size=30))
def test_the_store_is_bounded_and_keeps_the_latest(outputs: list[list[int]]) -> None:
    lookup = Lookup(limit=64)
    running = lookup.open([2])
    for output in outputs:
        state = lookup.open([2])
        state.extend(output, None)
        state.close()
        assert len(lookup.store.index.text) <= 64
        kept = [*[2, *output][-32:], -1]
        assert lookup.store.index.text[-len(kept) :] == kept
        running.extend([5], None)
        running.propose(4)


def test_recycling_follows_what_the_model_said_of_other_texts() -> None:
    recycling = Recycling()
    state = recycling.open([1, 2])
    state.extend([3, 4, 5], np.array([[3], [4], [5]], np.int32))
    other = recycling.open([9, 2])
    assert other.propose(3).ids == [3, 4, 5]
    # The second row is that of a refused draft.
    state.extend([6], np.array([[6], [8]], np.int32))
    state = recycling.open([9, 5])
    assert state.propose(1).ids == [6]


def test_recycling_prefers_two_tokens_to_one() -> None:
    recycling = Recycling()
    state = recycling.open([1, 2])
    state.extend([3], np.array([[3]], np.int32))
    state = recycling.open([7, 2])
    state.extend([4], np.array([[4]], np.int32))
    assert recycling.open([1, 2]).propose(1).ids == [3]
    assert recycling.open([8, 2]).propose(1).ids == [4]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 3)), max_size=300))
def test_successors_are_bounded_and_the_latest(learned: list[tuple[int, int]]) -> None:
    table = Successors(20)
    for context, best in learned:
        table.learn(context, best)
        found = table.get(context)
        assert found is not None
        assert found[0] == best
        assert len(table._young) + len(table._old) <= 22


def test_chances_approach_the_share_that_was_right() -> None:
    chances = Chances((0.5,))
    for i in range(4000):
        chances.count(0, i % 4 == 0)
    assert chances[0] == pytest.approx(0.25, abs=0.02)


def test_a_guess_counts_until_the_first_wrong_one() -> None:
    chances, guesses = Chances([0.5] * 4, 1.0), Guesses()
    guesses.draft([(7, chances, 0), (8, chances, 1), (9, chances, 2), (10, chances, 3)])
    guesses.settle([7, 5, 9, 10])
    assert [chances[kind] for kind in range(4)] == [0.75, 0.25, 0.5, 0.5]


def test_drafters_are_found_by_name() -> None:
    assert set(DRAFTERS) == {"off", "lookup", "recycling", "auto"}
    assert all(speculation.get(name).name == name for name in DRAFTERS)
    with pytest.raises(UsageError, match="no drafter 'magic'"):
        speculation.get("magic")


def test_a_long_prompt_is_read_fast() -> None:
    ids = np.random.default_rng(0).zipf(1.3, 4096).clip(max=40_000).tolist()
    assert len(Automaton(ids)._length) <= 2 * len(ids) + 1
    speculation.get("auto").open(ids)


def test_every_mix_has_prompts_of_its_own() -> None:
    assert {prompt.mix for prompt in PROMPTS} == set(MIXES)
    assert len({prompt.name for prompt in PROMPTS}) == len(PROMPTS)
    assert all(message["content"] for prompt in PROMPTS for message in prompt.messages)
