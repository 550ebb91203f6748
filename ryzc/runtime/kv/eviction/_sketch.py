"""How often keys were seen lately, in memory that does not grow with their number: a count-min sketch that fades."""

from __future__ import annotations

from typing import Final

from ryzc.runtime.kv.eviction import Key

MOST: Final = 15
"""Counts end here: more often makes no difference."""

_FACTORS: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)
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
        bits = max(4, (_COUNTERS_PER_KEY * capacity - 1).bit_length())
        self._shift = 64 - bits
        self._rows = [bytearray(1 << bits) for _ in _FACTORS]
        self._additions = 0
        self._sample = _SAMPLE_PER_KEY * max(1, capacity)

    def _places(self, key: Key) -> list[int]:
        value, shift = hash(key) + 1, self._shift
        return [(value * factor & _MASK) >> shift for factor in _FACTORS]

    def add(self, key: Key) -> None:
        """Count a use of a key. Only its lowest counters rise: the others are too high already."""
        places = self._places(key)
        counts = [row[place] for row, place in zip(self._rows, places, strict=True)]
        least = min(counts)
        if least < MOST:
            for row, place, count in zip(self._rows, places, counts, strict=True):
                if count == least:
                    row[place] = least + 1
        self._additions += 1
        if self._additions >= self._sample:
            self._rows = [row.translate(_HALVES) for row in self._rows]
            self._additions //= 2

    def count(self, key: Key) -> int:
        """How often a key was added lately."""
        return min(row[place] for row, place in zip(self._rows, self._places(key), strict=True))
