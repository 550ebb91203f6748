"""First in, first out."""

from __future__ import annotations

from ryzc.runtime.kv.eviction import Key
from ryzc.runtime.kv.eviction._ranks import Base, Ranks


class Policy(Base):
    """Evicts the key that came in first, whatever was made of it since."""

    def clear(self) -> None:
        super().clear()
        self._keys = Ranks(self._offered)

    def insert(self, key: Key) -> None:
        self._append(key, self._keys)

    def hit(self, key: Key) -> None:
        pass

    def touch(self, key: Key) -> None:
        pass

    def evict(self, incoming: Key | None = None) -> Key | None:
        key = self._keys.least()
        if key is not None:
            self.remove(key)
        return key
