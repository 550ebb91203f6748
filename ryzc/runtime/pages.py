"""Which page of the KV pool holds which part of which sequence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ryzc.errors import ContextError, InternalError


class PagePool:
    """Hands pages to sequences and writes the page table that native code reads.

    A page belongs to one sequence or is free. The page freed last is handed out first, while it may
    still be in a cache.

    Args:
        pages: pages in the pool.
        page_tokens: tokens that a page holds.
        page_table: ``int32 [sequences, pages of a full context]``; only this class writes it. Entries
            that a sequence does not use are 0.
    """

    def __init__(self, pages: int, page_tokens: int, page_table: npt.NDArray[np.int32]) -> None:
        self.pages = pages
        self.page_tokens = page_tokens
        self._table = page_table
        self._table[:] = 0
        self._free = list(range(pages - 1, -1, -1))
        self._held: list[list[int]] = [[] for _ in page_table]

    @property
    def free(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    def held(self, sequence: int) -> int:
        """Pages that a sequence holds."""
        return len(self._held[sequence])

    def resize(self, sequence: int, tokens: int) -> None:
        """Give a sequence exactly the pages that ``tokens`` tokens need; what it keeps stays where it is.

        Raises:
            ContextError: more than a full context, or not enough pages are free; nothing has changed then.
        """
        held, free = self._held[sequence], self._free
        needed, possible = -(-tokens // self.page_tokens), self._table.shape[1]
        missing = needed - len(held)
        if missing == 0:
            return
        if needed > possible:
            raise ContextError(
                f"{tokens} tokens do not fit into a context of {possible * self.page_tokens}",
                hint="set a larger context (-c)",
            )
        if missing > len(free):
            raise ContextError(
                f"{tokens} tokens need {missing} more pages of the KV pool, but {len(free)} are free",
                hint="end another sequence, or load the model with more pages",
            )
        if missing > 0:
            free, new = free[:-missing], free[-missing:]
            held = held + new[::-1]
        else:
            held, old = held[:needed], held[needed:]
            free = free + old[::-1]
        row = np.zeros(possible, np.int32)
        row[:needed] = held
        # Nothing but stores from here on: Python runs no signal handler between them, so that Ctrl-C
        # cannot leave the pool half changed.
        self._table[sequence] = row
        self._held[sequence] = held
        self._free = free

    def check_integrity(self) -> None:
        """Check that every page is free or held by one sequence, and that the table says so.

        Raises:
            InternalError: where that does not hold.
        """
        everywhere = [page for held in self._held for page in held] + self._free
        if sorted(everywhere) != list(range(self.pages)):
            raise InternalError("KV pool: a page is lost or held twice")
        for sequence, (row, held) in enumerate(zip(self._table, self._held, strict=True)):
            if row[: len(held)].tolist() != held or row[len(held) :].any():
                raise InternalError(f"KV pool: the page table of sequence {sequence} is not what it holds")
