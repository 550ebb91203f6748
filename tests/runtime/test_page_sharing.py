"""Pages that several sequences and the prefix tree share: everybody reads its own tokens, always."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ryzc.errors import ContextError, InternalError, PoolFullError
from ryzc.runtime.kv import PagePool, eviction
from ryzc.runtime.kv.prefix import Node

PAGE, SEQUENCES, CONTEXT_PAGES = 4, 4, 6
SALTS = ("", "a", "b")


class Store:
    """A pool over pages that hold tokens instead of keys and values."""

    def __init__(self, pages: int = 10, policy: str = "lru", sequences: int = SEQUENCES) -> None:
        self.table = np.full((sequences, CONTEXT_PAGES), 99, np.int32)
        self.pages = np.full((pages, PAGE), -1, np.int64)
        self.copies = 0
        self.pool = PagePool(pages, PAGE, self.table, copy_page=self.copy, policy=eviction.get(policy)(pages))

    def copy(self, source: int, target: int) -> None:
        self.copies += 1
        self.pages[target] = self.pages[source]

    def write(self, sequence: int, first: int, ids: list[int]) -> None:
        for position, token in enumerate(ids, first):
            self.pages[self.table[sequence, position // PAGE], position % PAGE] = token

    def read(self, sequence: int, count: int) -> list[int]:
        used = self.table[sequence, : -(-count // PAGE)]
        return [int(token) for token in self.pages[used].reshape(-1)[:count]]

    def append(self, sequence: int, ids: list[int]) -> None:
        """Let a sequence go on with some tokens."""
        before = self.pool.tokens(sequence)
        self.pool.resize(sequence, before + len(ids))
        self.write(sequence, before, ids)

    def run(self, sequence: int, ids: list[int], salt: str = "") -> int:
        """A whole request; returns what it did not have to compute."""
        found = self.pool.adopt(sequence, ids[:-1], salt)
        self.append(sequence, ids[found:])
        self.pool.publish(sequence, ids, salt)
        self.pool.release(sequence)
        return found


@dataclass
class Expected:
    """What a sequence must hold, and whether it may be found."""

    ids: list[int] = field(default_factory=list)
    salt: str = ""


class Pool(RuleBasedStateMachine):
    """Whatever is done to the pool, sequences hold what they were given, and the cache what it was told."""

    policy = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(policy=self.policy)
        self.pool = self.store.pool
        self.expected = [Expected() for _ in range(SEQUENCES)]

    sequences = st.integers(0, SEQUENCES - 1)
    # Few different tokens, so that prefixes meet.
    tokens = st.lists(st.integers(0, 1), min_size=1, max_size=PAGE * CONTEXT_PAGES)
    whole_pages = st.lists(st.booleans(), min_size=1, max_size=CONTEXT_PAGES).map(
        lambda pages: [int(page) for page in pages for _ in range(PAGE)]
    )

    def unchanged(self, action: Callable[[], object]) -> None:
        """Let something fail for want of pages, and hold it to changing nothing."""
        table, pages = self.store.table.copy(), self.store.pages.copy()
        before = (self.pool.used, self.pool.cached, self.pool.free, self.pool.evicted)
        with pytest.raises(ContextError):
            action()
        np.testing.assert_array_equal(self.store.table, table)
        np.testing.assert_array_equal(self.store.pages, pages)
        assert (self.pool.used, self.pool.cached, self.pool.free, self.pool.evicted) == before

    @rule(sequence=sequences, ids=tokens | whole_pages)
    def append(self, sequence: int, ids: list[int]) -> None:
        self.rewrite(sequence, len(self.expected[sequence].ids), ids)

    @rule(sequence=sequences, share=st.floats(0, 1), ids=tokens | whole_pages)
    def rewrite_part(self, sequence: int, share: float, ids: list[int]) -> None:
        self.rewrite(sequence, int(share * len(self.expected[sequence].ids)), ids)

    def rewrite(self, sequence: int, first: int, ids: list[int]) -> None:
        """Go back to a position and on with other tokens, in one call."""
        kept = self.expected[sequence].ids[:first]
        wanted = kept + ids
        try:
            self.pool.resize(sequence, len(wanted), writable_from=first)
        except PoolFullError:
            # Exactly then: what nobody else holds would be enough for no more.
            others = {page for s in range(SEQUENCES) if s != sequence for page in self.held(s)}
            shared = [page for page in self.held(sequence)[: first // PAGE] if page in others]
            assert len(others) + -(-len(wanted) // PAGE) - len(shared) > self.pool.capacity
            self.unchanged(lambda: self.pool.resize(sequence, len(wanted), writable_from=first))
            return
        except ContextError:
            assert len(wanted) > PAGE * CONTEXT_PAGES
            self.unchanged(lambda: self.pool.resize(sequence, len(wanted), writable_from=first))
            return
        self.store.write(sequence, first, ids)
        self.expected[sequence].ids = wanted

    def held(self, sequence: int) -> list[int]:
        return [int(page) for page in self.store.table[sequence, : self.pool.held(sequence)]]

    @rule(sequence=sequences, share=st.floats(0, 1))
    def truncate(self, sequence: int, share: float) -> None:
        ids = self.expected[sequence].ids
        del ids[int(share * len(ids)) :]
        self.pool.resize(sequence, len(ids))

    @rule(sequence=sequences, ids=tokens | whole_pages, salt=st.sampled_from(SALTS), array=st.booleans())
    def adopt(self, sequence: int, ids: list[int], salt: str, array: bool) -> None:
        expected = self.expected[sequence]
        if not expected.ids:
            expected.salt = salt
        ids = expected.ids + ids
        match = min(self.pool.match(ids, expected.salt), PAGE * CONTEXT_PAGES)
        got = self.pool.adopt(sequence, np.array(ids, np.int32) if array else ids, expected.salt)
        assert got == max(len(expected.ids), match)
        assert self.pool.tokens(sequence) == got
        expected.ids = ids[:got]

    @rule(sequence=sequences)
    def publish(self, sequence: int) -> None:
        expected = self.expected[sequence]
        self.pool.publish(sequence, expected.ids, expected.salt)
        assert self.pool.match(expected.ids, expected.salt) == len(expected.ids) // PAGE * PAGE

    @rule(source=sequences, to=sequences, share=st.floats(0, 1))
    def fork(self, source: int, to: int, share: float) -> None:
        if source == to or self.expected[to].ids:
            return
        tokens = int(share * len(self.expected[source].ids))
        self.pool.fork(source, to, tokens)
        self.expected[to] = Expected(self.expected[source].ids[:tokens], self.expected[source].salt)

    @rule(sequence=sequences)
    def release(self, sequence: int) -> None:
        self.pool.release(sequence)
        self.expected[sequence] = Expected()
        assert self.pool.held(sequence) == 0

    @rule(capacity=st.integers(-1, 12))
    def shrink(self, capacity: int) -> None:
        used, given_back = self.pool.used, []
        self.pool.shrink(capacity, given_back.extend)
        assert self.pool.used == used
        assert self.pool.cached == 0 or used + self.pool.cached <= self.pool.capacity <= max(0, capacity)
        assert self.pool.resident == used + self.pool.cached
        self.store.pages[given_back] = -1

    @rule(capacity=st.integers(-1, 12))
    def grow(self, capacity: int) -> None:
        before = self.pool.capacity
        self.pool.grow(capacity)
        assert self.pool.capacity == max(before, min(capacity, self.pool.pages))

    @precondition(lambda self: self.pool.cached)
    @rule()
    def clear(self) -> None:
        self.pool.clear()
        assert self.pool.cached == 0
        assert self.pool.match([0] * PAGE) == self.pool.match([1] * PAGE) == 0

    @rule(ids=whole_pages, salt=st.sampled_from(SALTS))
    def find(self, ids: list[int], salt: str) -> None:
        """Whatever the tree says it has, it has."""
        pages = self.pool.find(ids, salt)
        assert [int(token) for token in self.store.pages[pages].reshape(-1)] == ids[: PAGE * len(pages)]

    @invariant()
    def sequences_hold_their_tokens(self) -> None:
        for sequence, expected in enumerate(self.expected):
            assert self.store.read(sequence, len(expected.ids)) == expected.ids

    @invariant()
    def books_are_right(self) -> None:
        self.pool.check_integrity()
        assert self.pool.available <= self.pool.free + self.pool.cached
        assert self.pool.available == max(0, self.pool.capacity - self.pool.used)

    def teardown(self) -> None:
        for sequence in range(SEQUENCES):
            self.pool.release(sequence)
        self.pool.check_integrity()
        assert self.pool.used == 0
        self.pool.clear()
        self.pool.grow(self.pool.pages)
        assert self.pool.free == self.pool.pages
        assert not self.pool._tree.roots


Pool.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestLru = Pool.TestCase


class ArcPool(Pool):
    policy = "arc"


class TinyLfuPool(Pool):
    policy = "w_tinylfu"


TestArc, TestTinyLfu = ArcPool.TestCase, TinyLfuPool.TestCase
TestArc.settings = TestTinyLfu.settings = settings(max_examples=30, stateful_step_count=40)


def chat(length: int, start: int = 100) -> list[int]:
    return list(range(start, start + length))


def test_a_second_prompt_takes_the_pages_of_the_first() -> None:
    store = Store()
    assert store.run(0, chat(11)) == 0
    assert (store.pool.used, store.pool.cached, store.pool.free) == (0, 2, 8), "full pages stay"
    assert store.run(1, [*chat(11), 7, 8, 9]) == 8
    assert store.pool.cached == 3
    assert store.run(2, chat(11)) == 8
    assert store.run(2, [1, *chat(11)]) == 0, "the same tokens elsewhere are something else"
    assert (store.pool.queried_tokens, store.pool.hit_tokens) == (10 + 13 + 10 + 11, 16)


def test_a_prompt_that_is_cached_whole_leaves_its_last_token_to_compute() -> None:
    store = Store()
    store.run(0, chat(8))
    assert store.pool.match(chat(8)) == 8
    assert store.pool.adopt(0, chat(8)[:-1]) == 4


def test_tenants_find_nothing_of_each_other() -> None:
    store = Store()
    store.run(0, chat(8), salt="one")
    assert store.pool.match(chat(8), "one") == 8
    assert store.pool.match(chat(8), "two") == store.pool.match(chat(8)) == 0
    assert store.run(0, chat(8), salt="two") == 0
    assert store.pool.cached == 4, "each has pages of its own"
    store.pool.shrink(0)
    assert store.pool.evicted == 4
    assert not store.pool._tree.roots, "salts that hold nothing vanish"


def test_a_prompt_that_another_is_computing_is_shared_as_far_as_it_got() -> None:
    store = Store()
    store.append(0, chat(10))
    store.pool.publish(0, chat(10))
    store.append(1, chat(2))
    assert store.pool.adopt(1, chat(20)) == 8, "the pages that it began itself are given up"
    store.append(0, chat(6, 110))
    store.pool.publish(0, chat(16))
    assert store.pool.adopt(1, chat(20)) == 16
    assert store.pool.used == 4
    assert store.read(1, 16) == chat(16)


def test_equal_pages_become_one() -> None:
    store = Store()
    for sequence in (0, 1):
        store.append(sequence, chat(9))
    assert store.pool.used == 6
    store.pool.publish(0, chat(9))
    store.pool.publish(1, chat(9))
    assert store.pool.used == 4
    assert store.read(0, 9) == store.read(1, 9) == chat(9)
    assert store.copies == 0


def test_a_fork_is_copied_where_it_parts() -> None:
    store = Store()
    store.append(0, chat(10))
    store.pool.fork(0, 1, 10)
    store.pool.fork(0, 2, 7)
    assert (store.pool.used, store.copies) == (3, 0)
    store.append(1, [1])
    store.append(2, [2])
    assert store.copies == 2
    store.append(0, [0])
    assert store.copies == 2, "nobody else has its last page any more"
    assert store.read(0, 11) == [*chat(10), 0]
    assert store.read(1, 11) == [*chat(10), 1]
    assert store.read(2, 8) == [*chat(7), 2]
    assert store.pool.used == 5


def test_drafts_that_were_refused_cost_no_copy() -> None:
    store = Store()
    store.append(0, chat(6))
    store.pool.publish(0, chat(6))
    for _ in range(3):
        store.pool.resize(0, 11)
        store.pool.resize(0, 7)
    assert store.copies == 0


def test_a_lone_sequence_may_rewrite_what_fills_the_pool() -> None:
    store = Store(pages=4)
    store.append(0, chat(16))
    store.pool.publish(0, chat(16))
    store.pool.resize(0, 16, writable_from=6)
    store.write(0, 6, chat(10, 300))
    assert store.copies == 0, "there was no page to copy to"
    assert store.read(0, 16) == chat(6) + chat(10, 300)
    assert store.pool.match(chat(16)) == 4
    store.pool.check_integrity()


def test_eviction_starts_at_the_end_of_what_was_used_least() -> None:
    store = Store(pages=6)
    store.run(0, chat(12))
    store.run(0, chat(12, 500))
    store.run(0, chat(13))
    store.append(1, chat(8, 900))
    assert store.pool.match(chat(12)) == 12
    assert store.pool.match(chat(12, 500)) == 4
    assert store.pool.evicted == 2


def test_what_a_sequence_holds_is_never_evicted() -> None:
    store = Store(pages=6)
    store.run(0, chat(16))
    assert store.pool.adopt(1, chat(9)) == 8
    assert store.pool.available == 4
    store.append(2, chat(16, 500))
    assert store.pool.match(chat(16)) == 8
    with pytest.raises(PoolFullError):
        store.pool.resize(3, 1)
    assert store.read(1, 8) == chat(8)


def test_what_was_used_until_now_is_evicted_after_what_was_not() -> None:
    store = Store(pages=6)
    store.append(0, chat(9))
    store.pool.publish(0, chat(9))
    store.run(1, chat(8, 500))
    store.pool.release(0)
    store.append(2, chat(12, 900))
    assert store.pool.match(chat(8)) == 8
    assert store.pool.match(chat(8, 500)) == 4


def half_published(pages: int) -> Store:
    """Sequences 0 and 1 share their second page, but not the first: 0 has the tree's instead."""
    store = Store(pages=pages)
    store.append(0, chat(8))
    store.pool.fork(0, 1, 8)
    store.run(2, chat(5))
    store.pool.publish(0, chat(4))
    store.pool.check_integrity()
    assert store.table[0, 0] != store.table[1, 0]
    assert store.table[0, 1] == store.table[1, 1]
    return store


def test_who_shares_a_page_that_is_published_takes_what_comes_before_it() -> None:
    store = half_published(8)
    store.pool.publish(0, chat(8))
    store.pool.check_integrity()
    assert store.table[0, :2].tolist() == store.table[1, :2].tolist()
    assert store.read(1, 8) == chat(8)
    store.pool.release(0)
    assert (store.pool.used, store.pool.cached) == (2, 0)
    store.pool.check_integrity()


def test_taking_a_page_out_of_the_tree_does_not_make_the_next_one_ones_own() -> None:
    store = half_published(4)
    store.pool.resize(0, 8, writable_from=0)
    store.write(0, 0, chat(8, 300))
    assert store.read(1, 8) == chat(8)
    store.pool.check_integrity()


def test_a_sequence_that_was_cut_inside_a_page_finds_what_others_made_of_it() -> None:
    store = Store()
    store.run(0, chat(6) + chat(2, 300))
    store.append(1, chat(8))
    store.pool.publish(1, chat(8))
    store.pool.resize(1, 6)
    assert store.pool.adopt(1, chat(6) + chat(2, 300)) == 8
    assert store.read(1, 8) == chat(6) + chat(2, 300)
    store.pool.check_integrity()


def test_a_page_is_known_by_one_salt() -> None:
    store = Store()
    store.append(0, chat(8))
    store.pool.fork(0, 1, 8)
    store.pool.publish(0, chat(8), "a")
    store.pool.publish(1, chat(8), "b")
    assert (store.pool.match(chat(8), "a"), store.pool.match(chat(8), "b")) == (8, 0)
    store.pool.check_integrity()


def test_a_pool_that_shrank_waits_for_sequences_to_end() -> None:
    store = Store(pages=8)
    store.run(0, chat(12, 500))
    store.append(1, chat(16))
    given_back: list[int] = []
    store.pool.shrink(2, given_back.extend)
    assert (store.pool.used, store.pool.cached, store.pool.available) == (4, 0, 0)
    assert len(given_back) == store.pool.evicted == 3
    assert store.read(1, 16) == chat(16)
    store.pool.release(1)
    assert store.pool.available == 2
    with pytest.raises(PoolFullError, match="12 tokens need 3 more pages of the KV pool, but 2 are free"):
        store.pool.resize(0, 12)
    store.pool.shrink(2, given_back.extend)
    assert store.pool.resident == 0
    store.pool.grow(8)
    store.append(0, chat(24))
    store.pool.check_integrity()


def damage(action: Callable[[PagePool], object]) -> str:
    """What the integrity check says of a busy pool after something was done to its books."""
    store = Store()
    store.run(0, chat(9))
    store.run(1, chat(9, 500), salt="a")
    store.append(2, chat(6, 700))
    store.pool.adopt(3, chat(9))
    store.pool.check_integrity()
    action(store.pool)
    with pytest.raises(InternalError) as caught:
        store.pool.check_integrity()
    return str(caught.value)


def test_the_integrity_check_sees_every_damage() -> None:
    def leaf(pool: PagePool) -> Node:
        return next(node for node in pool._tree if not node.children and not pool._refs[node.page])

    assert "page table of sequence 2" in damage(lambda p: p._table.__setitem__((2, 0), 9))
    assert "page table of sequence 0" in damage(lambda p: p._table.__setitem__((0, 5), 1))
    assert "holds a page twice" in damage(lambda p: p._held[2].__setitem__(1, p._held[2][0]))
    assert "for 9 tokens" in damage(lambda p: p._tokens.__setitem__(2, 9))
    assert "more or fewer sequences" in damage(lambda p: p._refs.__setitem__(p._held[2][0], 2))
    assert "lost or held twice" in damage(lambda p: p._free.pop())
    assert "lost or held twice" in damage(lambda p: p._free.append(p._held[2][0]))
    assert "lost or held twice" in damage(lambda p: p._retired.append(p._free[0]))
    assert "within the capacity" in damage(lambda p: p._retired.append(p._free.pop()))
    assert "counted" in damage(lambda p: setattr(p, "_live", p._live - 1))
    assert "counted" in damage(lambda p: setattr(p, "_idle", p._idle + 1))
    assert "the policy may evict" in damage(lambda p: p._policy.withdraw(leaf(p).key))
    assert "the policy may evict" in damage(lambda p: p._policy.offer(p._nodes[p._held[3][0]].key))  # type: ignore[union-attr]
    assert "the policy ranks other" in damage(lambda p: p._policy.remove(leaf(p).key))
    assert "the policy ranks other" in damage(lambda p: p._policy.insert(1))
    assert "place in the tree" in damage(lambda p: p._tree.remove(leaf(p)))
    assert "place in the tree" in damage(lambda p: p._nodes.__setitem__(leaf(p).page, None))
    assert "a key leads" in damage(lambda p: p._by_key.pop(leaf(p).key))
    assert "salt 'new'" in damage(lambda p: p._tree.root("new"))
    assert "not a child" in damage(lambda p: setattr(leaf(p), "parent", Node(None, b"", -1, 0)))
    assert "not full" in damage(shorten)
    assert "but not what comes before it" in damage(lambda p: swap(p, 3))
    assert "a published page" in damage(lambda p: p._published.__setitem__(2, 1))
    assert "counts as its own" in damage(lambda p: p._own.__setitem__(3, 0))


def shorten(pool: PagePool) -> None:
    """A page that holds less than a page."""
    parent = next(iter(pool._tree.roots.values()))
    tokens, node = parent.children.popitem()
    node.tokens = tokens[:4]
    parent.children[node.tokens] = node


def swap(pool: PagePool, sequence: int) -> None:
    """Let a sequence begin with another page, and all books say so."""
    old, new = pool._held[sequence][0], pool._take(1)[0]
    pool._held[sequence][0] = pool._table[sequence, 0] = new
    pool._drop([old])
    pool._published[sequence] = 0
