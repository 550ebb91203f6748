"""W-TinyLFU: a newcomer has to be wanted more often than what it would replace.

Einziger, Friedman and Manes, *TinyLFU: A Highly Efficient Cache Admission Policy*, ACM Transactions on Storage 13(4),
2017. A small window takes newcomers, in order of their last use. What falls out of it competes with the next victim of
the main part, and the one of which a sketch counted fewer uses goes. The main part is a segmented LRU: keys that are
used there are protected, until others push them out of protection.

A cache evicts when a key comes in. A pool evicts when a sequence needs a page, and learns later what it holds: then a
newcomer may fall out of the window with nothing to be evicted. It competes all the same. If it loses, it is kept, and
is the next to go.
"""

from __future__ import annotations

from ryzc.runtime.kv.eviction import Key
from ryzc.runtime.kv.eviction._ranks import Base, Ranks
from ryzc.runtime.kv.eviction._sketch import Sketch

_WINDOW = 0.01
_PROTECTED = 0.8


class Policy(Base):
    """The window is 1 % of the cache, and four fifths of the rest can be protected."""

    def clear(self) -> None:
        super().clear()
        self._window, self._lost, self._probation, self._protected = (Ranks(self._offered) for _ in range(4))
        self._owed = 0
        """Keys that were evicted for others that did not come in yet."""
        self._sketch = Sketch(self.capacity)
        self.resize(self.capacity)

    def resize(self, capacity: int) -> None:
        super().resize(capacity)
        self._window_size = max(1, int(_WINDOW * capacity))
        self._protected_size = int(_PROTECTED * max(0, capacity - self._window_size))
        if capacity > self._sketch.capacity:
            self._sketch = Sketch(capacity)

    def insert(self, key: Key) -> None:
        self._sketch.add(key)
        compete = self._owed > 0
        self._owed -= compete
        self._append(key, self._window)
        while len(self._window) > self._window_size:
            newcomer = self._window.first()
            lost = compete and len(self._probation) > 0 and not self._beats(newcomer, self._probation.first())
            self._append(newcomer, self._lost if lost else self._probation)

    def hit(self, key: Key) -> None:
        self._sketch.add(key)
        if self._where[key] is self._window:
            self._window.append(key)
            return
        self._append(key, self._protected)
        while len(self._protected) > self._protected_size:
            self._append(self._protected.first(), self._probation)

    def touch(self, key: Key) -> None:
        self._where[key].append(key)

    def evict(self, incoming: Key | None = None) -> Key | None:
        key = self._lost.least()
        if key is None:
            key = self._compete()
        if key is not None:
            self.remove(key)
            self._owed = min(self._owed + 1, self.capacity)
        return key

    def _compete(self) -> Key | None:
        """The loser of the window's oldest key and the main part's; the winner is in the main part."""
        victim = self._probation.least()
        if victim is None:
            victim = self._protected.least()
        newcomer = self._window.least() if len(self._window) >= self._window_size or victim is None else None
        if newcomer is None or victim is None:
            return newcomer if victim is None else victim
        if not self._beats(newcomer, victim):
            return newcomer
        self._append(newcomer, self._probation)
        return victim

    def _beats(self, newcomer: Key, victim: Key) -> bool:
        return self._sketch.count(newcomer) > self._sketch.count(victim)
