"""How large the KV pool is, and what it does when memory gets short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_page_sharing import Store, chat

from ryzc.errors import UsageError
from ryzc.runtime import memory
from ryzc.runtime.kv import PagePool, sizing
from ryzc.runtime.kv.sizing import MemoryWatch, limit

MB = 1 << 20


def pages(memory: int | None = None, free: int | None = None, context: int = 1000, sequences: int = 4) -> int:
    return sizing.pages(MB, 32, context=context, sequences=sequences, memory=memory, free=free)


def test_by_default_all_sequences_fit() -> None:
    assert pages() == pages(free=1 << 40) == 4 * 32


def test_no_more_than_half_of_what_is_free() -> None:
    assert pages(free=200 * MB) == 100
    assert pages(free=10 * MB) == 32, "one sequence must fit"


def test_as_much_as_was_asked_for() -> None:
    assert pages(memory=33 * MB + 5) == 33
    assert pages(memory=1000 * MB, free=MB) == 1000, "the rest keeps prefixes"
    with pytest.raises(UsageError, match="34 MB for keys and values do not hold a context of 1000") as caught:
        pages(memory=32 * MB - 1)
    assert "at least 34 MB" in str(caught.value.hint)
    assert pages(memory=34 * 10**6) == 32, "what the hint says is enough"


def busy() -> tuple[PagePool, list[int]]:
    """Ten pages: two of them held, three cached, one used and free again, four untouched."""
    store = Store(pages=10)
    store.run(0, chat(12))
    store.append(1, chat(8, 500))
    store.append(2, chat(4, 900))
    store.pool.release(2)
    assert (store.pool.used, store.pool.cached, store.pool.resident) == (2, 3, 6)
    return store.pool, []


def test_plenty_of_memory_changes_nothing() -> None:
    pool, given = busy()
    for spare in (None, 4 * MB, 100 * MB):
        assert limit(pool, MB, spare=spare, reserve=0, give_back=given.extend) == 10
    assert not given


def test_what_is_not_there_is_not_promised() -> None:
    pool, given = busy()
    assert limit(pool, MB, spare=3 * MB, reserve=MB, give_back=given.extend) == 8
    assert (pool.cached, given) == (3, []), "nothing is short yet"


def test_empty_pages_go_first_then_cached_ones_and_never_held_ones() -> None:
    pool, given = busy()
    assert limit(pool, MB, spare=0, reserve=MB, give_back=given.extend) == 5
    assert (pool.used, pool.cached, len(given)) == (2, 3, 1)
    assert limit(pool, MB, spare=-1, reserve=MB, give_back=given.extend) == 3
    assert (pool.used, pool.cached, len(given)) == (2, 1, 3)
    assert limit(pool, MB, spare=-100 * MB, reserve=MB, give_back=given.extend) == 0
    assert (pool.used, pool.cached, pool.resident, len(given)) == (2, 0, 2, 4)
    assert pool.available == 0
    pool.check_integrity()


def test_it_grows_again_as_memory_returns() -> None:
    pool, _ = busy()
    limit(pool, MB, spare=-2 * MB, reserve=0, give_back=lambda pages: None)
    assert pool.capacity == 4
    assert limit(pool, MB, spare=0, reserve=0) == 4
    assert limit(pool, MB, spare=2 * MB, reserve=0) == 6
    assert limit(pool, MB, spare=50 * MB, reserve=0) == 10
    pool.resize(0, 24)
    pool.check_integrity()


def test_small_changes_do_not_make_a_large_pool_swing() -> None:
    table = np.zeros((1, 64), np.int32)
    pool = PagePool(64, 4, table)
    assert limit(pool, MB, spare=40 * MB, reserve=0) == 40
    assert limit(pool, MB, spare=43 * MB, reserve=0) == 40
    assert limit(pool, MB, spare=44 * MB, reserve=0) == 44


def test_a_limit_of_the_users_holds_whatever_is_free() -> None:
    pool, given = busy()
    assert limit(pool, MB, spare=None, most=4 * MB, give_back=given.extend) == 4
    assert (pool.used + pool.cached, pool.resident) == (4, 4)
    assert limit(pool, MB, spare=100 * MB, reserve=0, most=7 * MB) == 7


def test_one_sequence_can_always_run() -> None:
    pool, _ = busy()
    assert limit(pool, MB, spare=-100 * MB, least=6) == 6
    pool.release(1)
    pool.resize(0, 24)


@given(st.lists(st.integers(-20 * MB, 20 * MB), max_size=12), st.integers(0, 6))
def test_a_pool_stays_sound_whatever_the_system_says(figures: list[int], least: int) -> None:
    pool, _ = busy()
    for spare in figures:
        resident = pool.resident
        capacity = limit(pool, MB, spare=spare, reserve=MB, least=least, give_back=lambda pages: None)
        assert capacity >= least
        assert pool.used == 2
        if spare < MB:
            assert pool.resident <= max(2, least, resident - (MB - spare) // MB)
        pool.check_integrity()


def test_the_watch_looks_now_and_then() -> None:
    pool, given = busy()
    now, asked = [100.0], list[float]()

    def spare() -> int:
        asked.append(now[0])
        return -MB

    watch = MemoryWatch(pool, MB, given.extend, reserve=0, every=1.0, spare=spare, clock=lambda: now[0])
    assert watch.look()
    assert (pool.capacity, len(given)) == (5, 1)
    assert not watch.look()
    now[0] = 101.5
    assert watch.look()
    assert asked == [100.0, 101.5]
    assert pool.capacity == 4


def test_memory_that_is_given_back_is_gone_and_its_neighbours_stay() -> None:
    page = 3 * 4096 + 64
    region = memory.anonymous(1000 * page)
    region[:] = 7
    given = memory.give_back(region, [2, 3, 4, 9, 998, 999], page)
    gone = np.flatnonzero(region == 0)
    assert len(gone) == given
    assert 4 * page < given <= 6 * page
    assert set((gone // page).tolist()) == {2, 3, 4, 9, 998, 999}
    assert memory.give_back(region, [], page) == 0
    assert memory.give_back(memory.anonymous(4096), [0], 64) == 0, "less than a page of the system"
