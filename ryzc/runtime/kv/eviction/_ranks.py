"""What policies are made of: keys in an order, of which only those on offer can be taken."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any

from ryzc.runtime.kv.eviction import Key

_SLACK = 64


class Ranks:
    """Keys by rank. The least on offer is found in logarithmic time, however many are not on offer.

    A heap holds a key on offer with the rank that it had; entries that no longer hold are dropped when they come up,
    or all at once when they are the most.

    Args:
        offered: the keys on offer, shared by all ranks of a policy.
    """

    def __init__(self, offered: set[Key]) -> None:
        self._offered = offered
        self._ranks: OrderedDict[Key, Any] = OrderedDict()
        self._heap: list[tuple[Any, Key]] = []
        self._clock = 0

    def put(self, key: Key, rank: Any) -> None:
        """Give a key a rank, which no other key has."""
        self._ranks[key] = rank
        if key in self._offered:
            self._push(key, rank)

    def append(self, key: Key) -> None:
        """Give a key a rank above all others that were given by this method."""
        self._clock = rank = self._clock + 1
        ranks = self._ranks
        ranks[key] = rank
        ranks.move_to_end(key)
        if key in self._offered:
            self._push(key, rank)

    def offer(self, key: Key) -> None:
        """Take notice that a key is on offer now."""
        self._push(key, self._ranks[key])

    def remove(self, key: Key) -> None:
        del self._ranks[key]

    def least(self) -> Key | None:
        """The lowest key on offer."""
        heap, ranks, offered = self._heap, self._ranks, self._offered
        while heap:
            rank, key = heap[0]
            if key in offered and ranks.get(key) == rank:
                return key
            heappop(heap)
        return None

    def first(self) -> Key:
        """The key that was appended first, on offer or not."""
        key: Key = next(iter(self._ranks))
        return key

    def _push(self, key: Key, rank: Any) -> None:
        heappush(self._heap, (rank, key))
        if len(self._heap) > 2 * len(self._ranks) + _SLACK:
            self._heap = [(rank, key) for key, rank in self._ranks.items() if key in self._offered]
            heapify(self._heap)

    def __contains__(self, key: object) -> bool:
        return key in self._ranks

    def __iter__(self) -> Iterator[Key]:
        return iter(self._ranks)

    def __len__(self) -> int:
        return len(self._ranks)


class Base:
    """What every policy does alike: it knows which of its ranks a key is in.

    Args:
        capacity: the most keys that there can be.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.clear()

    def clear(self) -> None:
        self._offered: set[Key] = set()
        self._where: dict[Key, Ranks] = {}

    def resize(self, capacity: int) -> None:
        self.capacity = capacity

    def offer(self, key: Key) -> None:
        self._offered.add(key)
        self._where[key].offer(key)

    def withdraw(self, key: Key) -> None:
        self._offered.discard(key)

    def remove(self, key: Key) -> None:
        self._where.pop(key).remove(key)
        self._offered.discard(key)

    def offered(self) -> frozenset[Key]:
        return frozenset(self._offered)

    def _append(self, key: Key, to: Ranks) -> None:
        """Make a key the last of some ranks, wherever it was."""
        before = self._where.get(key)
        if before is not to:
            if before is not None:
                before.remove(key)
            self._where[key] = to
        to.append(key)

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def __iter__(self) -> Iterator[Key]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
