"""A suffix automaton that grows token by token (Blumer et al. 1985)."""

from __future__ import annotations

from collections.abc import Iterable

_REFRESHED = 8
"""Shorter suffixes of a match whose latest place is kept up to date; of ``aaaa…`` there are as many as tokens."""


class Automaton:
    """Knows every part of a text, and where the longest suffix of the text stood before.

    Extending takes amortised constant time; there are at most two nodes a token.

    Attributes:
        text: the tokens.
        matched: length of the longest suffix of the text that also ends earlier in it.
        follows: the place behind that earlier end, the latest one known; 0 where nothing matched.
    """

    def __init__(self, text: Iterable[int] = ()) -> None:
        self.text: list[int] = []
        self.matched = self.follows = 0
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._end = [-1]
        self._last = 0
        self.extend(text)

    def extend(self, ids: Iterable[int]) -> None:
        """Append tokens."""
        following, link, length, end = self._next, self._link, self._length, self._end
        last, place = self._last, len(self.text)
        for id_ in ids:
            new = len(length)
            following.append({})
            length.append(length[last] + 1)
            end.append(place)
            link.append(0)
            node = last
            while node >= 0 and id_ not in following[node]:
                following[node][id_] = new
                node = link[node]
            matched = following[node][id_] if node >= 0 else 0
            if node >= 0 and length[node] + 1 < length[matched]:
                matched = self._split(matched, node, id_)
            link[new] = matched
            self.matched, self.follows = length[matched], end[matched] + 1
            node, left = matched, _REFRESHED
            while node > 0 and left:
                end[node] = place
                node = link[node]
                left -= 1
            self.text.append(id_)
            last = new
            place += 1
        self._last = last

    def _split(self, node: int, before: int, id_: int) -> int:
        """Part from a node those of its texts that end in more places than the longer ones do; their new node."""
        following, link, length = self._next, self._link, self._length
        clone = len(length)
        following.append(following[node].copy())
        length.append(length[before] + 1)
        self._end.append(self._end[node])
        link.append(link[node])
        link[node] = clone
        while before >= 0 and following[before].get(id_) == node:
            following[before][id_] = clone
            before = link[before]
        return clone

    def walk(self, node: int, matched: int, ids: Iterable[int]) -> tuple[int, int]:
        """Read another text: the node and the length of its longest suffix that stands in this text.

        Args:
            node: where the walk stands, 0 at first; this text may have grown since.
            matched: how long the suffix was, 0 at first.
            ids: what comes next in the other text.
        """
        following, link, length = self._next, self._link, self._length
        while node and matched <= length[link[node]]:
            node = link[node]
        for id_ in ids:
            while node and id_ not in following[node]:
                node = link[node]
                matched = length[node]
            node = following[node].get(id_, 0)
            matched = matched + 1 if node else 0
            while node and matched <= length[link[node]]:
                node = link[node]
        return node, matched

    def behind(self, node: int) -> int:
        """The place behind the latest known end of a node's texts."""
        return self._end[node] + 1
