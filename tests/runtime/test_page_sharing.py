"""Pages that several sequences and the prefix tree share: everybody reads its own tokens, always."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ryzc.errors import ContextError, PoolFullError
from ryzc.runtime.kv import PagePool, eviction

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


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestPool = Pool.TestCase
