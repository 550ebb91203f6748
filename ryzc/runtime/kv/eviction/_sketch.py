"""How often keys were seen lately, in memory that does not grow with their number: a count-min sketch that fades."""

from __future__ import annotations

from typing import Final

from ryzc.runtime.kv.eviction import Key

MOST: Final = 15
"""Counts end here: more often makes no difference."""

_FACTOR: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1
_COUNTERS_PER_KEY: Final = 4
_SAMPLE_PER_KEY: Final = 10
_HALVES: Final = bytes(i // 2 for i in range(256))


class Sketch:
    """Estimates how often keys were added.

    An estimate is the least of a key's counters, one in each row, which it may share with others; so it is never too
    low, but for fading: after ten additions per key of the cache, all counts are halved.

    Args:
        capacity: keys that the cache holds.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        size = 1 << max(4, (_COUNTERS_PER_KEY * capacity - 1).bit_length())
        self._last = size - 1
        self._rows = [bytearray(size) for _ in range(4)]
        self._additions = 0
        self._sample = _SAMPLE_PER_KEY * max(1, capacity)

    def _places(self, key: Key) -> tuple[int, int, int, int]:
        """A key's counter in each row: two hashes in four combinations."""
        mixed = (hash(key) + 1) * _FACTOR & _MASK
        one, other, last = mixed >> 40, mixed >> 16 | 1, self._last
        return one & last, one + other & last, one + 2 * other & last, one + 3 * other & last

    def add(self, key: Key) -> None:
        """Count a use of a key. Only its lowest counters rise: the others are too high already."""
        a, b, c, d = self._rows
        i, j, k, m = self._places(key)
        least = min(a[i], b[j], c[k], d[m])
        if least < MOST:
            more = least + 1
            a[i], b[j], c[k], d[m] = max(a[i], more), max(b[j], more), max(c[k], more), max(d[m], more)
        self._additions += 1
        if self._additions >= self._sample:
            self._rows = [row.translate(_HALVES) for row in self._rows]
            self._additions //= 2

    def count(self, key: Key) -> int:
        """How often a key was added lately."""
        a, b, c, d = self._rows
        i, j, k, m = self._places(key)
        return min(a[i], b[j], c[k], d[m])
