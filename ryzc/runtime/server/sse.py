"""Server-sent events: a response that streams, notices a client that left, and drops one that does not read."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ryzc.runtime.server.errors import ApiError, refusal
from ryzc.runtime.server.log import log

DONE = b"data: [DONE]\n\n"


def dump(value: Any) -> str:
    """JSON as small as it gets."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def text(value: str) -> str:
    """A JSON string; lone surrogates, which are no UTF-8, are escaped."""
    quoted = json.dumps(value, ensure_ascii=False)
    return quoted if quoted.isascii() or _sound(quoted) else json.dumps(value)


def _sound(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def data(value: Any) -> bytes:
    """An event without a name."""
    return f"data: {dump(value)}\n\n".encode(errors="replace")


def named(name: str, value: Any) -> bytes:
    """An event with a name."""
    return f"event: {name}\ndata: {dump(value)}\n\n".encode(errors="replace")


class EventStream(Response):
    """Sends events as they come.

    Args:
        events: encoded; closed when the client leaves.
        close: called at the end, however it comes.
        failed: the events for a refusal in the middle, when the status is gone already.
        patience: seconds that a client may take to read what is sent; 0 is no limit.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        close: Callable[[], None],
        failed: Callable[[ApiError], bytes],
        patience: float = 0,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._events, self._close, self._failed = events, close, failed
        self._patience = patience or math.inf
        self._since = 0.0  # when the write that goes on began; 0 where none does

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(scope, send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            while not await self._ended(sending, gone):
                if self._left() <= 0:
                    log.warning("a client that reads nothing is dropped", request=scope["ryzc"].get("id"))
                    break
            if sending.done():
                sending.result()
            else:
                scope["ryzc"]["gone"] = True
        finally:
            self._close()  # first: the step that runs now is the last for this client
            sending.cancel()
            gone.cancel()

    async def _ended(self, *tasks: asyncio.Future[None]) -> bool:
        """Wait for one of the tasks, or until the client may have lost its patience; whether it was a task."""
        timeout = self._left() if self._patience < math.inf else None
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    def _left(self) -> float:
        """Seconds that the client still has to read what is being sent: looked at now and then, for a timer an event
        would cost more than the event."""
        waited = time.monotonic() - self._since if self._since else 0.0
        return self._patience - waited

    async def _send(self, scope: Scope, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for event in self._events:
                    await self._write(send, event)
            except Exception as error:
                found = refusal(error)
                if found.status == 500:
                    log.error("a request failed", request=scope["ryzc"].get("id"), error=repr(error))
                await self._write(send, self._failed(found))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            pass  # the connection is gone

    async def _write(self, send: Send, event: bytes) -> None:
        self._since = time.monotonic()
        await send({"type": "http.response.body", "body": event, "more_body": True})
        self._since = 0.0


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
