"""``/v1/messages``, in Anthropic's shape."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ryzc.runtime.server import sse
from ryzc.runtime.server.anthropic_fields import CountFields, MessagesFields
from ryzc.runtime.server.backend import Delta
from ryzc.runtime.server.conversation import Prepared, prepare
from ryzc.runtime.server.errors import ApiError, wrong
from ryzc.runtime.server.fields import SamplingFields, stops
from ryzc.runtime.server.models import Loaded
from ryzc.runtime.server.reply import Piece, Reply, Text, Thought
from ryzc.runtime.server.service import Job, Service, Submission, deltas

NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""Makes Anthropic's tool runner go on without a thread."""


def routes(service: Service) -> APIRouter:
    """The surface's routes."""
    router = APIRouter()

    @router.post("/v1/messages")
    async def messages(request: Request) -> Response:
        body = await service.body(request, MessagesFields)
        if body.thread is not None:
            raise ApiError(400, "conversations are not kept here: send all of it", param="thread", details=NO_THREADS)

        def make(model: Loaded) -> tuple[Prepared, Sequence[Submission]]:
            prepared = prepare(body.conversation(), model)
            return prepared, [_submission(service, body, prepared, model)]

        job = await service.open(request, body.model, make)

        def failed(error: ApiError) -> bytes:
            return sse.named("error", error.anthropic(request.scope["ryzc"]["id"]))

        return await service.respond(request, job, MessageAnswer(job), stream=body.stream, failed=failed)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Any:
        body = await service.body(request, CountFields)
        conversation = body.conversation()
        count = await service.with_model(body.model, lambda model: len(prepare(conversation, model).ids))
        return {"input_tokens": count}

    return router


def _submission(service: Service, body: MessagesFields, prepared: Prepared, model: Loaded) -> Submission:
    if any(not text for text in body.stop_sequences or ()):
        raise wrong("stop_sequences", "'stop_sequences' holds an empty text")
    fields = SamplingFields(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k, seed=body.seed)
    return service.submission(
        prepared.ids,
        fields,
        model,
        max_tokens=body.max_tokens,
        stop=stops(body.stop_sequences),
        grammar=prepared.grammar,
    )


class MessageAnswer:
    """An answer in the shape of messages: one writer, whether its events are sent or not.

    Args:
        job: it runs.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._id = f"msg_{secrets.token_hex(12)}"
        parser = job.model.family.parser() if job.made.parser is not None else None
        self._reply = Reply(job.made, parser, job.model.engine.tokenizer)
        self._blocks: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._stop: dict[str, Any] = _stopped(None)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        async for _ in self.events():
            pass
        return self._document(self._blocks)

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as a stream."""
        yield _event("message_start", message=self._document([])) + _event("ping")
        async for delta in deltas(self._job.streams[0]):
            events = b"".join(self._push(delta))
            if events:
                yield events
            if delta.finish_reason is not None:
                self._stop = self._ended(delta.finish_reason)
        yield b"".join(self._close()) + _event("message_delta", delta=self._stop, usage=self._usage())
        yield _event("message_stop")

    def _push(self, delta: Delta) -> list[bytes]:
        return [event for piece in self._reply.push(delta) for event in self._piece(piece)]

    def _piece(self, piece: Piece) -> list[bytes]:
        if isinstance(piece, Text):
            if not piece.text.strip() and self._reply.calls:
                return []
            return self._grow({"type": "text", "text": "", "citations": None}, "text", "text_delta", piece.text)
        if isinstance(piece, Thought):
            block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            return self._grow(block, "thinking", "thinking_delta", piece.text)
        call = {"id": f"toolu_{piece.id}", "name": piece.call.name, "input": {}, "caller": {"type": "direct"}}
        begin = [*self._close(), *self._begin({"type": "tool_use", **call})]
        self._blocks[-1]["input"] = json.loads(piece.call.arguments)
        delta = {"type": "input_json_delta", "partial_json": piece.call.arguments}
        return [*begin, _event("content_block_delta", index=len(self._blocks) - 1, delta=delta), *self._close()]

    def _grow(self, empty: dict[str, Any], field: str, kind: str, text: str) -> list[bytes]:
        begin: list[bytes] = []
        if self._open is None or self._open["type"] != empty["type"]:
            begin = [*self._close(), *self._begin(empty)]
        assert self._open is not None
        self._open[field] += text
        return [*begin, _event("content_block_delta", index=len(self._blocks) - 1, delta={"type": kind, field: text})]

    def _begin(self, block: dict[str, Any]) -> list[bytes]:
        event = _event("content_block_start", index=len(self._blocks), content_block=block)
        self._open = dict(block)
        self._blocks.append(self._open)
        return [event]

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open = None
        return [_event("content_block_stop", index=len(self._blocks) - 1)]

    def _ended(self, reason: str) -> dict[str, Any]:
        hit = self._job.streams[0].request.sequences[0].stop_hit
        if reason == "length":
            return _stopped("max_tokens")
        if isinstance(hit, str):
            return _stopped("stop_sequence", hit)
        return _stopped("tool_use" if self._reply.calls else "end_turn")

    def _usage(self) -> dict[str, Any]:
        prompt, cached, completion = self._job.usage()
        return {
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": completion,
            "output_tokens_details": {"thinking_tokens": self._reply.reasoning_tokens},
            "server_tool_use": None,
        }

    def _document(self, blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._job.model.name,
            "content": list(blocks),
            **self._stop,
            "usage": {**self._usage(), "cache_creation": None, "inference_geo": None, "service_tier": "standard"},
        }


def _stopped(reason: str | None, sequence: str | None = None) -> dict[str, Any]:
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None, "container": None}


def _event(name: str, **values: Any) -> bytes:
    return sse.named(name, {"type": name, **values})
