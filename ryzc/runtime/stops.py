"""Texts that end a generation."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Lets text through until a stop text comes, holding back what may be the beginning of one.

    Attributes:
        hit: the stop text that came, or ``None``.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop text came."""
        return self.hit is not None

    def push(self, text: str) -> str:
        """What can be said for sure not to belong to a stop text."""
        if not self._stops:
            return text
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.hit = min(found, key=lambda pair: pair[0])
            kept, self._held = self._held[:at], ""
            return kept
        held = max(self._overlap(stop) for stop in self._stops)
        safe = len(self._held) - held
        text, self._held = self._held[:safe], self._held[safe:]
        return text

    def flush(self) -> str:
        """What was held back, once nothing more comes."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """Characters at the end of the held text that begin a stop text."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
