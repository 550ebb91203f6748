"""Least frequently used."""

from __future__ import annotations

from ryzc.runtime.kv.eviction import Key
from ryzc.runtime.kv.eviction._ranks import Base, Ranks


class Policy(Base):
    """Evicts the key with the fewest uses since it came in; of several, the one whose last use lies back the longest.

    Counts never fade: what was popular once stays.
    """

    def clear(self) -> None:
        super().clear()
        self._keys = Ranks(self._offered)
        self._uses: dict[Key, int] = {}
        self._clock = 0

    def insert(self, key: Key) -> None:
        self._where[key] = self._keys
        self._rank(key, 1)

    def hit(self, key: Key) -> None:
        self._rank(key, self._uses[key] + 1)

    def touch(self, key: Key) -> None:
        self._rank(key, self._uses[key])

    def _rank(self, key: Key, uses: int) -> None:
        self._clock += 1
        self._uses[key] = uses
        self._keys.put(key, (uses, self._clock))

    def remove(self, key: Key) -> None:
        super().remove(key)
        del self._uses[key]

    def evict(self, incoming: Key | None = None) -> Key | None:
        key = self._keys.least()
        if key is not None:
            self.remove(key)
        return key
