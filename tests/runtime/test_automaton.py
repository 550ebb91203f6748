"""The suffix automaton against searching the text."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from ryzc.runtime.speculation.automaton import Automaton

TEXTS = st.integers(1, 4).flatmap(lambda letters: st.lists(st.integers(0, letters - 1), max_size=60))


def ends_of(part: Sequence[int], text: Sequence[int]) -> list[int]:
    """The places behind each occurrence of a part in a text."""
    n = len(part)
    return [i + n for i in range(len(text) - n + 1) if list(text[i : i + n]) == list(part)]


def longest_suffix(text: Sequence[int], within: Sequence[int]) -> int:
    """Length of the longest suffix of a text that stands in another."""
    return next((n for n in range(min(len(text), len(within)), 0, -1) if ends_of(text[-n:], within)), 0)


@given(TEXTS)
def test_finds_the_longest_suffix_that_stood_before(text: list[int]) -> None:
    automaton = Automaton()
    for i, id_ in enumerate(text, 1):
        automaton.extend([id_])
        # The earlier end may overlap the suffix, but is not its own.
        assert automaton.matched == longest_suffix(text[:i], text[: i - 1])
        if automaton.matched:
            assert automaton.follows in ends_of(text[i - automaton.matched : i], text[: i - 1])


@given(TEXTS, st.integers(0, 60))
def test_text_at_once_and_in_pieces_is_the_same(text: list[int], cut: int) -> None:
    whole, pieces = Automaton(text), Automaton(text[:cut])
    pieces.extend(text[cut:])
    assert (whole.text, whole.matched, whole.follows) == (pieces.text, pieces.matched, pieces.follows)


@given(TEXTS, TEXTS, st.integers(0, 60), st.integers(0, 60))
def test_walks_along_another_text_while_it_grows(text: list[int], other: list[int], known: int, read: int) -> None:
    automaton = Automaton(text[:known])
    node, matched = automaton.walk(0, 0, other[:read])
    assert matched == longest_suffix(other[:read], text[:known])
    automaton.extend(text[known:])
    node, matched = automaton.walk(node, matched, other[read:])
    # What was matched before the text grew is not looked for again, and may have become longer.
    expected = longest_suffix(other, text)
    assert matched <= expected
    if matched:
        assert automaton.behind(node) in ends_of(other[-matched:], text)
    if known >= len(text):
        assert matched == expected


def test_follows_the_latest_occurrence() -> None:
    assert Automaton([1, 2, 3, 1, 2, 4, 1, 2]).follows == 5


def test_a_repeated_token_takes_linear_time_and_space() -> None:
    def seconds(tokens: int) -> float:
        start = time.thread_time()
        automaton = Automaton([7] * tokens)
        assert len(automaton._length) <= 2 * tokens + 1
        return time.thread_time() - start

    assert min(seconds(8000) for _ in range(3)) < 30 * min(seconds(1000) for _ in range(3))
