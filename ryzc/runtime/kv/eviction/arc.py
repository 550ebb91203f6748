"""ARC: the cache itself finds how much of it recent keys deserve, and how much frequent ones.

Megiddo and Modha, *ARC: A Self-Tuning, Low Overhead Replacement Cache*, FAST 2003. One list holds keys that were used
once, another those that were used again; each remembers keys that it lost. When one of these comes back, its list was
too short, and gets more of the cache.

It was chosen over a TinyLFU whose window adapts because it has no parameter at all and learns from single events: a
pool of a few hundred pages sees too few of them to climb a hill by hit ratios.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from ryzc.runtime.kv.eviction import Key
from ryzc.runtime.kv.eviction._ranks import Base, Ranks


class Policy(Base):
    """The paper's ARC(c). What cannot be evicted is passed over; where one list has nothing to give, the other does.

    A pool does not know what it evicts for. There, the lists adapt when the key comes in.
    """

    def clear(self) -> None:
        super().clear()
        self._once, self._again = Ranks(self._offered), Ranks(self._offered)  # T1, T2
        self._lost_once: OrderedDict[Key, None] = OrderedDict()  # B1
        self._lost_again: OrderedDict[Key, None] = OrderedDict()  # B2
        self._share = 0.0  # p: keys that ``_once`` may have
        self._adapted: Key | None = None

    def resize(self, capacity: int) -> None:
        super().resize(capacity)
        self._share = min(self._share, float(capacity))
        self._trim()

    def insert(self, key: Key) -> None:
        known = key in self._lost_once or key in self._lost_again
        if known:
            self._adapt(key)
            self._lost_once.pop(key, None)
            self._lost_again.pop(key, None)
        self._adapted = None
        self._append(key, self._again if known else self._once)
        self._trim()

    def hit(self, key: Key) -> None:
        self._append(key, self._again)

    def touch(self, key: Key) -> None:
        self._where[key].append(key)

    def evict(self, incoming: Key | None = None) -> Key | None:
        if incoming is not None and (incoming in self._lost_once or incoming in self._lost_again):
            self._adapt(incoming)
            return self._replace(incoming)
        if len(self._once) + len(self._lost_once) >= self.capacity:
            if not self._lost_once:
                return self._first([(self._once, None), (self._again, self._lost_again)])
            self._lost_once.popitem(last=False)
        elif len(self) + len(self._lost_once) + len(self._lost_again) >= 2 * self.capacity and self._lost_again:
            self._lost_again.popitem(last=False)
        return self._replace(incoming)

    def _adapt(self, key: Key) -> None:
        """Move the share towards the list that has lost a key too early, faster where it remembers less."""
        if self._adapted == key:  # when it was evicted for
            return
        self._adapted = key
        once, again = len(self._lost_once), len(self._lost_again)
        if key in self._lost_once:
            self._share = min(float(self.capacity), self._share + max(1.0, again / once))
        else:
            self._share = max(0.0, self._share - max(1.0, once / again))

    def _replace(self, incoming: Key | None) -> Key | None:
        over = len(self._once) > self._share or (incoming in self._lost_again and len(self._once) == self._share)
        lists = [(self._once, self._lost_once), (self._again, self._lost_again)]
        return self._first(lists if len(self._once) and over else lists[::-1])

    def _first(self, lists: Iterable[tuple[Ranks, OrderedDict[Key, None] | None]]) -> Key | None:
        """Evict from the first list that has something on offer, and remember it in the one beside."""
        for keys, lost in lists:
            key = keys.least()
            if key is not None:
                self.remove(key)
                if lost is not None:
                    lost[key] = None
                return key
        return None

    def _trim(self) -> None:
        """Forget lost keys beyond the paper's bounds."""
        while self._lost_once and len(self._once) + len(self._lost_once) > self.capacity:
            self._lost_once.popitem(last=False)
        while self._lost_again and len(self) + len(self._lost_once) + len(self._lost_again) > 2 * self.capacity:
            self._lost_again.popitem(last=False)
