"""What a caller holds of a request: its deltas as they come, for ``for`` and for ``async for``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ryzc.runtime.request import Choice, Delta, TokenLogprob, Usage

if TYPE_CHECKING:
    from ryzc.runtime.request import Request


class Outbox:
    """Where the engine leaves what a request's reader takes.

    The engine holds this end only, so that a stream which nobody reads any more can be told apart.
    """

    def __init__(self) -> None:
        self.items: SimpleQueue[Delta | BaseException | None] = SimpleQueue()
        self.reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, item: Delta | BaseException | None, bell: Bell) -> None:
        """Leave a delta, the error that ended the request, or ``None`` at its end."""
        self.items.put(item)
        if self.reader is not None:
            bell.add(*self.reader)


class Stream(Iterator[Delta], AsyncIterator[Delta]):
    """The deltas of all choices of a request, in the order in which they came.

    One reader at a time. A stream that nobody holds any more cancels its request.

    Args:
        request: what was asked.
        drive: makes the engine go on where no thread of its own does; ``None`` where one does.
        wake: tells the engine that there is something to look at.

    Attributes:
        request: as given.
        finished: whether every choice has ended and was read.
    """

    def __init__(self, request: Request, drive: Callable[[], None] | None, wake: Callable[[], None]) -> None:
        self.request = request
        self.finished = False
        self._items = request.outbox.items
        self._drive = drive
        self._wake = wake

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return self.request.usage

    @property
    def prompt_logprobs(self) -> list[TokenLogprob]:
        """Of the prompt's tokens after the first, complete before the first delta; empty unless asked for."""
        return self.request.prompt_logprobs

    @property
    def stop_hit(self) -> str | int | None:
        """The stop text or id that ended the first choice, or ``None``."""
        return self.request.sequences[0].stop_hit if self.request.sequences else None

    def cancel(self) -> None:
        """End the request within a step; its choices finish as ``cancelled``. Any thread may."""
        if not self.request.cancelled:
            self.request.cancelled = True
            self._wake()

    def collect(self) -> list[Choice]:
        """Wait for the end; the choices, by index."""
        return _choices(self.request, list(self))

    async def collected(self) -> list[Choice]:
        """As :meth:`collect`, without blocking the event loop."""
        return _choices(self.request, [delta async for delta in self])

    def __next__(self) -> Delta:
        if self.finished:
            raise StopIteration
        if self._drive is not None:
            while self._items.empty():
                self._drive()
        found = self._take(self._items.get())
        if found is None:
            raise StopIteration
        return found

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        while not self.finished:
            if self._items.empty():
                await self._more()
                continue
            found = self._take(self._items.get_nowait())
            if found is not None:
                return found
        raise StopAsyncIteration

    async def _more(self) -> None:
        """Wait until something may have come."""
        if self._drive is not None:
            await asyncio.to_thread(self._drive)
            return
        outbox = self.request.outbox
        if outbox.reader is None:
            outbox.reader = (asyncio.get_running_loop(), asyncio.Event())
        event = outbox.reader[1]
        event.clear()
        if self._items.empty():  # it may have come before anybody knew whom to wake
            await event.wait()

    def _take(self, item: Delta | BaseException | None) -> Delta | None:
        if isinstance(item, Delta):
            return item
        self.finished = True
        if item is not None:
            raise item
        return None

    def __del__(self) -> None:
        if not self.finished:
            self.cancel()


class Bell:
    """Wakes the readers in event loops, one call into each loop a step, however many readers it has."""

    def __init__(self) -> None:
        self._events: dict[asyncio.AbstractEventLoop, deque[asyncio.Event]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Wake this reader at the next :meth:`ring`."""
        self._events.setdefault(loop, deque()).append(event)

    def ring(self) -> None:
        """Wake them."""
        for loop, events in self._events.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_set, events)
        if self._events:
            self._events = {}


def _set(events: deque[asyncio.Event]) -> None:
    for event in events:
        event.set()


def _choices(request: Request, deltas: list[Delta]) -> list[Choice]:
    result = []
    for sequence in request.sequences:
        mine = [delta for delta in deltas if delta.index == sequence.index]
        result.append(
            Choice(
                sequence.index,
                "".join(delta.text for delta in mine),
                tuple(id_ for delta in mine for id_ in delta.ids),
                sequence.finish_reason or "cancelled",
                tuple(entry for delta in mine for entry in delta.logprobs),
                sequence.stop_hit,
            )
        )
    return result
