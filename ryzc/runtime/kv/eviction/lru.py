"""Least recently used."""

from __future__ import annotations

from ryzc.runtime.kv.eviction import Key
from ryzc.runtime.kv.eviction._ranks import Base, Ranks


class Policy(Base):
    """Evicts the key whose last use lies back the longest."""

    def clear(self) -> None:
        super().clear()
        self._keys = Ranks(self._offered)

    def insert(self, key: Key) -> None:
        self._append(key, self._keys)

    def hit(self, key: Key) -> None:
        self._keys.append(key)

    def touch(self, key: Key) -> None:
        self._keys.append(key)

    def evict(self, incoming: Key | None = None) -> Key | None:
        key = self._keys.least()
        if key is not None:
            self.remove(key)
        return key
