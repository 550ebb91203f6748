"""How many pages the KV pool gets, and fewer of them while memory is short."""

from __future__ import annotations

import time
from collections.abc import Callable

from ryzc import targets
from ryzc.errors import UsageError
from ryzc.runtime.kv.pool import PagePool

FRACTION = 0.5
"""Of the free memory, the most that a pool takes by itself."""

RESERVE = 1 << 28
"""Bytes that are left to the rest of the system, by default."""


def pages(
    page_bytes: int,
    page_tokens: int,
    *,
    context: int,
    sequences: int,
    memory: int | None = None,
    free: int | None = None,
) -> int:
    """How many pages a pool shall have. Their memory appears as they are used.

    Args:
        page_bytes, page_tokens: of a page.
        context: tokens that a sequence may have.
        sequences: sequences that may be in flight.
        memory: bytes, if the user asked for some: as many pages as fit, for more than the sequences can hold keep more
            prefixes. By default enough for all sequences at full context, or what fits into half of the free memory,
            but always enough for one sequence.
        free: bytes of memory that nothing else needs, the weights least of all; ``None`` where the system doesn't tell.

    Raises:
        UsageError: ``memory`` does not hold one sequence.
    """
    one = -(-context // page_tokens)
    if memory is None:
        fits = one * sequences if free is None else int(FRACTION * free) // page_bytes
        return max(one, min(fits, one * sequences))
    if memory // page_bytes < one:
        raise UsageError(
            f"{memory / 1e6:.0f} MB for keys and values do not hold a context of {context} tokens",
            hint=f"give them at least {-(-one * page_bytes // 10**6)} MB, or set a smaller context (-c)",
        )
    return memory // page_bytes


def limit(
    pool: PagePool,
    page_bytes: int,
    *,
    spare: int | None,
    reserve: int = RESERVE,
    most: int | None = None,
    least: int = 0,
    give_back: Callable[[list[int]], None] | None = None,
) -> int:
    """Fit a pool's capacity to the memory that there is.

    Running sequences keep what they hold. When memory is short, pages that hold nothing give theirs back, and cached
    ones are evicted for it; as it returns, the capacity grows again, in steps, so that it doesn't swing.

    Args:
        pool: the pool.
        page_bytes: of a page.
        spare: bytes that the process can still fill, ``None`` where the system doesn't tell.
        reserve: how many of them shall be left.
        most: bytes that the pool may have at all.
        least: pages that it always may have, so that a sequence can run.
        give_back: see :meth:`PagePool.shrink`.

    Returns:
        The capacity now.
    """
    resident = pool.resident
    room = pool.pages if spare is None else resident + (spare - reserve) // page_bytes
    if most is not None:
        room = min(room, most // page_bytes)
    room = min(max(room, least, 0), pool.pages)
    if room < pool.capacity or room < resident:
        pool.shrink(room, give_back if room < resident else None)
    elif room >= min(pool.pages, pool.capacity + max(1, pool.pages // 16)):
        pool.grow(room)
    return pool.capacity


class MemoryWatch:
    """Fits a pool to the memory that there is, every second or so.

    Args:
        pool, page_bytes, reserve, most, least, give_back: see :func:`limit`.
        every: seconds between two looks.
        spare: asks the system.
        clock: seconds.
    """

    def __init__(
        self,
        pool: PagePool,
        page_bytes: int,
        give_back: Callable[[list[int]], None] | None = None,
        *,
        reserve: int = RESERVE,
        most: int | None = None,
        least: int = 0,
        every: float = 1.0,
        spare: Callable[[], int | None] = targets.spare_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._page_bytes = page_bytes
        self._give_back = give_back
        self._reserve, self._most, self._least = reserve, most, least
        self._every = every
        self._spare = spare
        self._clock = clock
        self._next = clock()

    def look(self) -> bool:
        """Look if it is time to; costs nothing otherwise. To be called between steps.

        Returns:
            Whether the pool's capacity changed.
        """
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._every
        before = self._pool.capacity
        after = limit(
            self._pool,
            self._page_bytes,
            spare=self._spare(),
            reserve=self._reserve,
            most=self._most,
            least=self._least,
            give_back=self._give_back,
        )
        return after != before
