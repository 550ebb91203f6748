"""The adjustments that a request's penalties and biases make, kept up to date token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ryzc.runtime.sampling.params import SamplingParams
from ryzc.runtime.sampling.rows import RowParameters

_FIRST_CAPACITY = 64


class Adjustments:
    """One entry for every token whose logit changes.

    Args:
        params: the request's.
        prompt: its tokens.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        self._last = params.repeat_last_n if params.penalizes_recent else 0
        self._history = list(map(int, prompt)) if self._last else []
        self._recent = Counter(self._history if self._last < 0 else self._history[-self._last :] if self._last else ())
        self._generated: Counter[int] = Counter()
        self._moves = params.penalizes_recent or params.penalizes_generated
        self._bias = {id_: bias for id_, bias in params.logit_bias.items() if bias != 0}
        self._place: dict[int, int] = {}
        self._ids = np.zeros(_FIRST_CAPACITY, np.int32)
        self._factors = np.zeros(_FIRST_CAPACITY, np.float32)
        self._offsets = np.zeros(_FIRST_CAPACITY, np.float32)
        for id_ in self._recent.keys() | self._bias.keys():
            self._refresh(id_)

    def __len__(self) -> int:
        return len(self._place)

    def push(self, id_: int) -> None:
        """Count a token as generated."""
        self._shift(id_, 1)

    def pop(self, id_: int) -> None:
        """Take the last token back; it was ``id_``."""
        self._shift(id_, -1)

    def _shift(self, id_: int, by: int) -> None:
        if not self._moves:
            return
        changed = {id_}
        if self._last:
            if by < 0:
                self._history.pop()
            if 0 < self._last <= len(self._history):
                oldest = self._history[-self._last]
                self._recent[oldest] -= by
                changed.add(oldest)
            if by > 0:
                self._history.append(id_)
            self._recent[id_] += by
        if self._params.penalizes_generated:
            self._generated[id_] += by
        for each in changed:
            self._refresh(each)

    def write(self, rows: RowParameters) -> tuple[int, int]:
        """Hand the entries over; returns the span for a record."""
        n = len(self._place)
        return rows.adjust(self._ids[:n], self._factors[:n], self._offsets[:n]) if n else (0, 0)

    def _refresh(self, id_: int) -> None:
        p, count = self._params, self._generated[id_]
        factor = p.repeat_penalty if self._recent[id_] > 0 else 1.0
        offset = self._bias.get(id_, 0.0)
        if count:
            offset -= p.presence_penalty + p.frequency_penalty * count
        if factor == 1 and offset == 0:
            self._remove(id_)
        else:
            place = self._place.setdefault(id_, len(self._place))
            if place == len(self._ids):
                self._grow()
            self._ids[place], self._factors[place], self._offsets[place] = id_, factor, offset

    def _remove(self, id_: int) -> None:
        place = self._place.pop(id_, None)
        last = len(self._place)
        if place is None or place == last:
            return
        for column in (self._ids, self._factors, self._offsets):
            column[place] = column[last]
        self._place[int(self._ids[place])] = place

    def _grow(self) -> None:
        self._ids, self._factors, self._offsets = (
            np.concatenate([old, np.zeros_like(old)]) for old in (self._ids, self._factors, self._offsets)
        )
