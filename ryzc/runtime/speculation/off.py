"""No speculation."""

from __future__ import annotations

from collections.abc import Sequence

from ryzc.runtime.speculation import Draft, Draw, Found


class Off:
    """Proposes nothing."""

    name = "off"
    candidates = 0

    def open(self, prompt: Sequence[int], *, private: bool = False, draw: Draw | None = None) -> Off:
        return self

    def extend(self, ids: Sequence[int], found: Found | None) -> None:
        pass

    def propose(self, most: int) -> Draft:
        return Draft([], [])

    def close(self) -> None:
        pass


drafter = Off
