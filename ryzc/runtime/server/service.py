"""What every surface shares: reading bodies, leasing a model, running a request, and letting go of both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.server import fields, sse
from ryzc.runtime.server.backend import Delta, Stream
from ryzc.runtime.server.config import Config
from ryzc.runtime.server.errors import ApiError, wrong
from ryzc.runtime.server.fields import Fields, SamplingFields
from ryzc.runtime.server.metrics import HttpMetrics
from ryzc.runtime.server.models import Loaded, Models, too_long
from ryzc.runtime.server.sampling import sampling

Body = TypeVar("Body", bound=Fields)
Result = TypeVar("Result")

GONE = 499
"""nginx's status for a client that left; nobody sees it but the log."""


@dataclass(frozen=True)
class Submission:
    """One prompt, as :meth:`Engine.submit` takes it."""

    ids: Sequence[int]
    params: SamplingParams
    options: dict[str, Any]


@dataclass
class Job:
    """A request that runs: it holds its model until :meth:`close`.

    Attributes:
        model: leased.
        streams: one a prompt.
        made: what the surface made of the request before it was submitted.
        created: seconds since 1970.
    """

    model: Loaded
    streams: list[Stream]
    made: Any
    release: Callable[[], None]
    created: int = field(default_factory=lambda: int(time.time()))
    _closed: bool = False

    def close(self) -> None:
        """Stop what still runs, and give the model back."""
        if not self._closed:
            self._closed = True
            for stream in self.streams:
                stream.cancel()
            self.release()

    def usage(self) -> tuple[int, int, int]:
        """Prompt tokens, those of them that were cached, and generated tokens, of all streams."""
        parts = [stream.usage for stream in self.streams]
        return (
            sum(part.prompt_tokens for part in parts),
            sum(part.cached_tokens for part in parts),
            sum(part.completion_tokens for part in parts),
        )


class Answer(Protocol):
    """What a surface makes of a job's streams."""

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""

    def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""


class Service:
    """The server's parts, for its routes.

    Attributes:
        config: its settings.
        models: the registry.
        http: what it counts of HTTP.
        draining: no new requests; those accepted are finished.
    """

    def __init__(self, config: Config, models: Models) -> None:
        self.config = config
        self.models = models
        self.http = HttpMetrics()
        self.draining = False
        # Tokenizing and templates: a large prompt must not hold up other clients' streams.
        self.beside = ThreadPoolExecutor(2, thread_name_prefix="ryzc-prepare")

    async def in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        """Run something that takes a while beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.beside, work, *args)

    async def body(self, request: Request, kind: type[Body]) -> Body:
        """A request's body, checked.

        Raises:
            ApiError: it is too large, too slow, no JSON, or wrong.
        """
        kind_of = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind_of != "application/json":  # what a form of a strange web page could send is not
            raise ApiError(
                415, "the body must be JSON: send content-type: application/json", code="invalid_content_type"
            )
        data = bytearray()
        try:
            async with asyncio.timeout(self.config.body_timeout or None):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > self.config.max_body:
                        raise too_large(self.config.max_body)
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", code="request_timeout") from None
        return fields.read(kind, fields.parse(bytes(data)))

    async def open(
        self, request: Request, name: str | None, make: Callable[[Loaded], tuple[Any, Sequence[Submission]]]
    ) -> Job:
        """Lease a model, prepare beside the event loop, and submit.

        Args:
            request: of HTTP; what the log shall know is noted there.
            name: of the model.
            make: from a model to whatever the surface needs later, and what to submit.

        Raises:
            ApiError, RyzcError: any of it is refused; nothing stays behind then.
        """
        model = await self.models.lease(name)
        job = Job(model, [], None, lambda: self.models.release(model))
        try:
            job.made, submissions = await self.in_thread(make, model)
            for submission in submissions:
                job.streams.append(
                    model.engine.submit(submission.ids, sampling=submission.params, **submission.options)
                )
        except BaseException:
            job.close()
            raise
        request.scope["ryzc"]["job"] = job
        return job

    async def with_model(self, name: str | None, work: Callable[[Loaded], Result]) -> Result:
        """Something done with a model, beside the event loop.

        Raises:
            ApiError, RyzcError: the model cannot be had, or the work is refused.
        """
        model = await self.models.lease(name)
        try:
            return await self.in_thread(work, model)
        finally:
            self.models.release(model)

    def submission(
        self, ids: Sequence[int], fields: SamplingFields, model: Loaded, *, max_tokens: int | None, **options: Any
    ) -> Submission:
        """A prompt with the options that all surfaces share.

        Raises:
            ApiError, UsageError: the prompt does not fit, or a value makes no sense.
        """
        self.check_prompt(len(ids), model)
        most = self.config.max_tokens
        if most is not None:
            max_tokens = most if max_tokens is None else min(max_tokens, most)
        n = fields.n or 1
        if n > self.config.max_n:
            raise wrong("n", f"'n' is at most {self.config.max_n} here")
        shared = {
            "max_tokens": max_tokens,
            "stop_ids": frozenset(fields.stop_token_ids or ()),
            "ignore_eos": bool(fields.ignore_eos),
            "n": n,
            "priority": fields.priority or 0,
            "timeout": self.config.request_timeout or None,
            "salt": fields.cache_salt or "",
        }
        return Submission(ids, sampling(fields, model), {**shared, **options})

    def check_prompt(self, count: int, model: Loaded) -> None:
        """Whether a prompt of so many tokens leaves room for an answer.

        Raises:
            ApiError: it does not.
        """
        most = min(model.engine.context - 1, self.config.max_prompt or model.engine.context)
        if count > most:
            raise too_long(model.engine.context, str(count), most)

    async def respond(
        self,
        request: Request,
        job: Job,
        answer: Answer,
        *,
        stream: bool | None,
        failed: Callable[[ApiError], bytes] = lambda error: sse.data(error.openai()),
    ) -> Response:
        """The answer, as a stream or in one piece; the job is closed at its end, or when the client leaves.

        Args:
            request: of HTTP.
            job: it runs.
            answer: made of the job.
            stream: whether events were asked for.
            failed: the events for a refusal in the middle of a stream.
        """
        if not stream:
            return await self._finish(request, job, answer.whole())
        return sse.EventStream(answer.events(), close=job.close, failed=failed, patience=self.config.send_timeout)

    async def _finish(self, request: Request, job: Job, work: Awaitable[Any]) -> Response:
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(until_gone(request))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return Response(status_code=GONE)
            return JSONResponse(task.result())
        finally:
            task.cancel()
            gone.cancel()
            job.close()


async def until_gone(request: Request) -> None:
    """Returns when the client has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def too_large(most: int) -> ApiError:
    """A body over the limit."""
    return ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")


async def deltas(stream: Stream) -> AsyncIterator[Delta]:
    """A stream's deltas; ends that are no answer become errors.

    Raises:
        ApiError: the request failed, ran out of time, or the server stops.
    """
    count = 0
    async for delta in stream:
        reason = delta.finish_reason
        if reason == "error":
            raise ApiError(500, "the model failed while it answered; the log tells more", code="internal_error")
        if reason == "timeout":
            raise ApiError(503, "the request took longer than this server allows", code="timeout", retry_after=10)
        if reason == "cancelled":
            raise ApiError(503, "the server is stopping", code="stopping", retry_after=5)
        count += 1
        yield delta


async def merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Delta]]:
    """The deltas of several streams as they come, with each stream's number.

    Raises:
        ApiError: as :func:`deltas`.
    """
    if len(streams) == 1:
        async for delta in deltas(streams[0]):
            yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()

    async def pump(number: int, stream: Stream) -> None:
        try:
            async for delta in deltas(stream):
                queue.put_nowait((number, delta))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        open_ = len(tasks)
        while open_:
            item = await queue.get()
            if item is None:
                open_ -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
