"""Eviction policies: each does on every trace what its definition says, and is good at what it is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.eviction import (
    CAPACITY,
    Replay,
    Trace,
    best,
    loop,
    replay,
    scan,
    shifting,
    traces,
    zipf,
    zipf_and_scans,
)
from ryzc.errors import UsageError
from ryzc.runtime.kv import eviction
from ryzc.runtime.kv.eviction._ranks import Ranks
from ryzc.runtime.kv.eviction._sketch import MOST, Sketch


class Oracle:
    """A cache written as its policy is defined, in plain lists, the oldest key first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def access(self, key: int, evicted: list[object]) -> bool:
        raise NotImplementedError


class Lru(Oracle):
    moves = True

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.keys: list[int] = []

    def access(self, key: int, evicted: list[object]) -> bool:
        hit = key in self.keys
        if hit and self.moves:
            self.keys.remove(key)
        if not hit and len(self.keys) == self.capacity:
            evicted.append(self.keys.pop(0))
        if not hit or self.moves:
            self.keys.append(key)
        return hit


class Fifo(Lru):
    moves = False


class Lfu(Oracle):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.uses: Counter[int] = Counter()
        self.last: dict[int, int] = {}
        self.now = 0

    def access(self, key: int, evicted: list[object]) -> bool:
        hit = key in self.uses
        if not hit and len(self.uses) == self.capacity:
            worst = min(self.uses, key=lambda k: (self.uses[k], self.last[k]))
            del self.uses[worst]
            evicted.append(worst)
        self.now += 1
        self.uses[key] += 1
        self.last[key] = self.now
        return hit


class WTinyLfu(Oracle):
    """As in the paper; frequencies are the sketch's, which has a test of its own."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.window: list[int] = []
        self.probation: list[int] = []
        self.protected: list[int] = []
        self.window_size = max(1, capacity // 100)
        self.protected_size = (capacity - self.window_size) * 4 // 5
        self.sketch = Sketch(capacity)

    def access(self, key: int, evicted: list[object]) -> bool:
        for segment in (self.window, self.probation, self.protected):
            if key in segment:
                self.sketch.add(key)
                segment.remove(key)
                (self.window if segment is self.window else self.protected).append(key)
                if len(self.protected) > self.protected_size:
                    self.probation.append(self.protected.pop(0))
                return True
        self.admit(evicted)
        self.sketch.add(key)
        self.window.append(key)
        return False

    def admit(self, evicted: list[object]) -> None:
        """Make room in the window."""
        if len(self.window) < self.window_size:
            return
        newcomer = self.window.pop(0)
        main = self.probation or self.protected
        if len(self.probation) + len(self.protected) < self.capacity - self.window_size:
            self.probation.append(newcomer)
        elif main and self.sketch.count(newcomer) > self.sketch.count(main[0]):
            evicted.append(main.pop(0))
            self.probation.append(newcomer)
        else:
            evicted.append(newcomer)


class Arc(Oracle):
    """The pseudocode of figure 4 of the paper."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.t1: list[int] = []
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []
        self.p = 0.0

    def replace(self, key: int, evicted: list[object]) -> None:
        if self.t1 and ((key in self.b2 and len(self.t1) == self.p) or len(self.t1) > self.p):
            self.b1.append(self.t1.pop(0))
            evicted.append(self.b1[-1])
        else:
            self.b2.append(self.t2.pop(0))
            evicted.append(self.b2[-1])

    def access(self, key: int, evicted: list[object]) -> bool:
        t1, t2, b1, b2, c = self.t1, self.t2, self.b1, self.b2, self.capacity
        if key in t1 or key in t2:  # case I
            (t1 if key in t1 else t2).remove(key)
            t2.append(key)
            return True
        if key in b1:  # case II
            self.p = min(c, self.p + max(1, len(b2) / len(b1)))
            self.replace(key, evicted)
            b1.remove(key)
            t2.append(key)
            return False
        if key in b2:  # case III
            self.p = max(0, self.p - max(1, len(b1) / len(b2)))
            self.replace(key, evicted)
            b2.remove(key)
            t2.append(key)
            return False
        if len(t1) + len(b1) == c:  # case IV
            if len(t1) < c:
                b1.pop(0)
                self.replace(key, evicted)
            else:
                evicted.append(t1.pop(0))
        elif len(t1) + len(t2) + len(b1) + len(b2) >= c:
            if len(t1) + len(t2) + len(b1) + len(b2) == 2 * c:
                b2.pop(0)
            self.replace(key, evicted)
        t1.append(key)
        return False


ORACLES: dict[str, Callable[[int], Oracle]] = {"lru": Lru, "fifo": Fifo, "lfu": Lfu, "w_tinylfu": WTinyLfu, "arc": Arc}


def expected(oracle: Oracle, trace: Trace) -> Replay:
    evicted: list[object] = []
    return Replay([oracle.access(key, evicted) for key in trace], evicted)


def test_every_policy_has_an_oracle() -> None:
    assert set(ORACLES) == set(eviction.names())
    assert eviction.DEFAULT in eviction.names()


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="'magic' is not known") as caught:
        eviction.get("magic")
    assert caught.value.hint == "choose one of arc, fifo, lfu, lru, w_tinylfu"
    with pytest.raises(UsageError):
        eviction.get("_ranks")


keys = st.integers(0, 11)


@pytest.mark.parametrize("name", sorted(ORACLES))
@given(capacity=st.integers(1, 9), trace=st.lists(keys, max_size=120))
def test_does_what_it_is_defined_to_do(name: str, capacity: int, trace: Trace) -> None:
    policy = eviction.get(name)(capacity)
    assert replay(policy, trace, capacity) == expected(ORACLES[name](capacity), trace)
    assert len(policy) == len(set(policy)) == min(capacity, len(set(trace)))


@pytest.mark.parametrize("name", sorted(ORACLES))
@pytest.mark.parametrize("trace", ["zipf and scans", "shifting zipf", "mixed"])
def test_does_so_on_long_traces(name: str, trace: str) -> None:
    for capacity in (7, CAPACITY):
        accesses = traces(3000)[trace]
        assert replay(eviction.get(name)(capacity), accesses, capacity) == expected(ORACLES[name](capacity), accesses)


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_does_so_where_keys_come_and_go(name: str) -> None:
    for capacity in range(1, 9):
        accesses = zipf(1500, 3 * capacity, skew=0.5, seed=capacity)
        assert replay(eviction.get(name)(capacity), accesses, capacity) == expected(ORACLES[name](capacity), accesses)


@pytest.mark.parametrize("name", sorted(ORACLES))
@settings(max_examples=40)
@given(data=st.data())
def test_evicts_nothing_but_what_is_on_offer(name: str, data: st.DataObject) -> None:
    """What a pool does to a policy, in any order: ranks stay whole, and evict finds something exactly if it may."""
    capacity = data.draw(st.integers(1, 6))
    policy = eviction.get(name)(capacity)
    present: set[int] = set()
    offered: set[int] = set()
    for _ in range(data.draw(st.integers(0, 50))):
        key = data.draw(keys)
        if key not in present:
            if len(present) < capacity:
                policy.insert(key)
                present.add(key)
        else:
            action = data.draw(st.sampled_from(["hit", "touch", "offer", "withdraw", "remove"]))
            getattr(policy, action)(key)
            if action == "remove":
                present.discard(key)
            if action in ("withdraw", "remove"):
                offered.discard(key)
            elif action == "offer":
                offered.add(key)
        if data.draw(st.booleans()):
            gone = policy.evict(data.draw(st.none() | keys.filter(lambda key: key not in present)))
            assert (gone in offered) if offered else gone is None
            present.discard(gone)  # type: ignore[arg-type]
            offered.discard(gone)  # type: ignore[arg-type]
        if data.draw(st.integers(0, 9)) == 0:
            capacity = data.draw(st.integers(max(1, len(present)), 8))
            policy.resize(capacity)
        assert set(policy) == present
        assert all(key in policy for key in present)
        assert len(policy) == len(present)
        assert policy.offered() == offered
    policy.clear()
    assert not set(policy)
    assert policy.evict() is None


@given(st.lists(st.tuples(st.sampled_from(["append", "offer", "withdraw", "remove"]), keys), max_size=300))
def test_ranks_find_the_least_on_offer(steps: list[tuple[str, int]]) -> None:
    offered: set[object] = set()
    ranks, order = Ranks(offered), list[int]()
    for action, key in steps:
        if action == "append":
            ranks.append(key)
            order = [k for k in order if k != key] + [key]
        elif key in order:
            if action == "offer":
                offered.add(key)
                ranks.offer(key)
            else:
                offered.discard(key)
            if action == "remove":
                ranks.remove(key)
                order.remove(key)
        assert ranks.least() == next((k for k in order if k in offered), None)
        assert not order or ranks.first() == order[0]
        assert len(ranks._heap) <= 2 * len(ranks) + 66, "what no longer holds is dropped"


@given(st.lists(st.integers(0, 40), max_size=200))
def test_the_sketch_never_counts_too_few(trace: Trace) -> None:
    sketch = Sketch(30)  # fades after 300
    for key in trace:
        sketch.add(key)
    for key, count in Counter(trace).items():
        assert sketch.count(key) >= min(count, MOST)


def test_the_sketch_is_nearly_exact_and_fades() -> None:
    sketch, trace = Sketch(500), zipf(4000, 1000)
    for key in trace:
        sketch.add(key)
    counts = Counter(trace)
    assert sum(sketch.count(key) == min(counts[key], MOST) for key in range(1000)) > 950
    before = sketch.count(0)
    for key in range(1000, 2001):
        sketch.add(key)
    assert sketch.count(0) == before // 2


def ratio(name: str, trace: Trace) -> float:
    return replay(eviction.get(name)(CAPACITY), trace, CAPACITY).ratio


def test_nothing_beats_the_best() -> None:
    for trace in traces(3000).values():
        most = best(trace, CAPACITY).ratio
        assert all(ratio(name, trace) <= most for name in eviction.names())


def test_frequency_wins_where_popularity_stays() -> None:
    trace = zipf(10_000, 5 * CAPACITY)
    assert ratio("w_tinylfu", trace) > ratio("lru", trace) > ratio("fifo", trace)
    assert ratio("lfu", trace) > ratio("lru", trace)
    assert ratio("arc", trace) > ratio("lru", trace)


def test_recency_wins_where_popularity_moves() -> None:
    trace = shifting(10_000, 5 * CAPACITY)
    assert ratio("lru", trace) > ratio("lfu", trace), "old counts do not fade"
    assert ratio("w_tinylfu", trace) > ratio("lfu", trace), "the sketch's do"
    assert ratio("arc", trace) > ratio("lfu", trace)


@pytest.mark.parametrize("name", ["w_tinylfu", "arc"])
def test_scans_do_no_harm(name: str) -> None:
    trace = zipf_and_scans(10_000, 5 * CAPACITY)
    assert ratio(name, trace) > ratio("lru", trace) > ratio("fifo", trace)
    # What was popular before a scan is there after it; LRU has forgotten all of it.
    popular = zipf(4000, CAPACITY // 2)
    whole = popular + scan(10 * CAPACITY, first=CAPACITY)
    policy = eviction.get(name)(CAPACITY)
    replay(policy, whole, CAPACITY)
    again = {key for key, uses in Counter(popular).items() if uses > 1}
    assert len(again.intersection(policy)) > 0.9 * len(again)  # type: ignore[arg-type]
    lru = eviction.get("lru")(CAPACITY)
    replay(lru, whole, CAPACITY)
    assert not again.intersection(lru)  # type: ignore[arg-type]


def test_a_loop_slightly_too_long_defeats_recency() -> None:
    trace = loop(5000, CAPACITY + CAPACITY // 4)
    assert ratio("lru", trace) == ratio("fifo", trace) == 0
    assert ratio("w_tinylfu", trace) > 0.5 * best(trace, CAPACITY).ratio
