"""The KV pool's pages: none lost, none shared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzc.errors import ContextError, InternalError
from ryzc.runtime.kv import PagePool


def pool(pages: int = 6, sequences: int = 2, row: int = 4) -> tuple[PagePool, np.ndarray]:
    table = np.full((sequences, row), 99, np.int32)
    return PagePool(pages, 16, table), table


def test_grows_and_shrinks_in_place() -> None:
    pages, table = pool()
    pages.resize(0, 17)
    assert (pages.held(0), pages.free) == (2, 4)
    before = table[0, :2].tolist()
    pages.resize(0, 33)
    assert table[0, :2].tolist() == before
    pages.resize(0, 16)
    assert table[0].tolist() == [before[0], 0, 0, 0]
    pages.resize(0, 0)
    assert (pages.held(0), pages.free) == (0, 6)
    pages.check_integrity()


def test_refuses_more_than_a_context_or_the_pool() -> None:
    pages, table = pool()
    pages.resize(0, 64)
    with pytest.raises(ContextError, match="do not fit into a context of 64") as caught:
        pages.resize(0, 65)
    assert caught.value.hint
    before = table.copy()
    with pytest.raises(ContextError, match="need 3 more pages of the KV pool, but 2 are free"):
        pages.resize(1, 33)
    np.testing.assert_array_equal(table, before)
    pages.check_integrity()


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 70)), max_size=40))
def test_sequences_never_share_a_page(count: int, steps: list[tuple[int, int]]) -> None:
    table = np.zeros((3, 4), np.int32)
    pages = PagePool(count, 16, table)
    held = [0, 0, 0]
    for sequence, tokens in steps:
        needed = -(-tokens // 16)
        if needed > 4 or needed - held[sequence] > count - sum(held):
            with pytest.raises(ContextError):
                pages.resize(sequence, tokens)
        else:
            pages.resize(sequence, tokens)
            held[sequence] = needed
        pages.check_integrity()
        used = [int(page) for row, n in zip(table, held, strict=True) for page in row[:n]]
        assert len(set(used)) == len(used) == sum(held)
        assert pages.free == count - sum(held)
        assert all(0 <= page < count for page in used)


def test_integrity_check_sees_damage() -> None:
    pages, table = pool()
    pages.resize(0, 40)
    table[0, 1] = table[0, 0]
    with pytest.raises(InternalError, match="sequence 0"):
        pages.check_integrity()
