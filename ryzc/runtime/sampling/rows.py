"""What native code reads about the rows of a step."""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc.bundle import abi
from ryzc.errors import UsageError

I32: TypeAlias = npt.NDArray[np.int32]
F32: TypeAlias = npt.NDArray[np.float32]

_CODES = {"i64": "Q", "i32": "i", "f32": "f"}
_RECORD = struct.Struct("=" + "".join(_CODES[field.type] for field in abi.ROW_FIELDS))
assert [f.offset for f in abi.ROW_FIELDS] == [
    struct.calcsize(_RECORD.format[: i + 1]) for i in range(len(abi.ROW_FIELDS))
]
RECORD = np.dtype(
    {
        "names": [f.name for f in abi.ROW_FIELDS],
        "formats": [{"i64": "<u8", "i32": "<i4", "f32": "<f4"}[f.type] for f in abi.ROW_FIELDS],
        "offsets": [f.offset for f in abi.ROW_FIELDS],
        "itemsize": abi.ROW_SIZE,
    }
)
"""A row's record as numpy reads it."""
_FIRST_CAPACITY = 1024


class RowParameters:
    """How the rows of the next step are adjusted and drawn from; a step uses them up.

    Rows that nobody prepared are left as they are, and their best token is drawn. The arrays may be written to
    directly, but not while a step runs; native code stays within its buffers whatever they hold.

    Args:
        count: rows that a step may have.
        stride: bits of a row of :attr:`masks`, a multiple of 32.

    Attributes:
        records: of :data:`RECORD`, one a row.
        masks: ``int32 [count, stride / 32]``: bits of the allowed tokens of rows whose records say ``masked``.
        ids, factors, offsets: adjustments of single tokens, of which a record names a span.
        generation: changes when these three are replaced by larger ones.
    """

    def __init__(self, count: int, stride: int) -> None:
        self.count = count
        self.records = np.zeros(count, RECORD)
        self.masks: I32 = np.zeros((count, stride // 32), np.int32)
        self.ids: I32 = np.zeros(_FIRST_CAPACITY, np.int32)
        self.factors: F32 = np.zeros(_FIRST_CAPACITY, np.float32)
        self.offsets: F32 = np.zeros(_FIRST_CAPACITY, np.float32)
        self.generation = 0
        self._bytes = self.records.view(np.uint8)
        self._buffer = self._bytes.data
        self._top_k = self.records["top_k"]
        self._rows = self._adjustments = 0

    def put(self, row: int, values: tuple[Any, ...]) -> None:
        """Set a row's record; ``values`` in the order of :data:`ryzc.bundle.abi.ROW_FIELDS`.

        Raises:
            UsageError: there is no such row.
        """
        if not 0 <= row < self.count:
            raise UsageError(f"row {row}: a step of this bundle has up to {self.count}")
        _RECORD.pack_into(self._buffer, row * abi.ROW_SIZE, *values)
        if row >= self._rows:
            self._rows = row + 1

    def adjust(self, ids: I32, factors: F32, offsets: F32) -> tuple[int, int]:
        """Add adjustments; returns the span for a record.

        An adjusted logit is ``l / factor`` where ``l > 0``, else ``l * factor``, plus the offset.
        """
        start, end = self._adjustments, self._adjustments + len(ids)
        if end > len(self.ids):
            self._grow(end)
        self.ids[start:end] = ids
        self.factors[start:end] = factors
        self.offsets[start:end] = offsets
        self._adjustments = end
        return start, len(ids)

    def _grow(self, needed: int) -> None:
        size = max(needed, 2 * len(self.ids))
        self.ids, self.factors, self.offsets = (
            np.concatenate([old, np.zeros(size - len(old), old.dtype)])
            for old in (self.ids, self.factors, self.offsets)
        )
        self.generation += 1

    def most_candidates(self, rows: int) -> int:
        """The largest ``top_k`` of the first rows."""
        return int(self._top_k[:rows].max()) if min(rows, self._rows) else 0

    def clear(self) -> None:
        """Forget all that was set."""
        if self._rows:
            self._bytes[: self._rows * abi.ROW_SIZE] = 0
            self._rows = self._adjustments = 0
