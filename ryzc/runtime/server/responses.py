"""``/v1/responses``."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ryzc.runtime.server import sse
from ryzc.runtime.server.backend import Delta
from ryzc.runtime.server.conversation import Conversation, Prepared, calls_from, prepare
from ryzc.runtime.server.errors import ApiError, unsupported, wrong
from ryzc.runtime.server.fields import stops
from ryzc.runtime.server.models import Loaded
from ryzc.runtime.server.openai_chat import token_entry
from ryzc.runtime.server.reply import Piece, Reply, Text, Thought, ToolCall
from ryzc.runtime.server.response_fields import ResponseFields
from ryzc.runtime.server.response_store import Kept, ResponseStore
from ryzc.runtime.server.sampling import sampling
from ryzc.runtime.server.service import Job, Service, Submission, deltas


def routes(service: Service) -> APIRouter:
    """The surface's routes."""
    router = APIRouter()
    store = ResponseStore()

    @router.post("/v1/responses")
    async def respond(request: Request) -> Response:
        body = await service.body(request, ResponseFields)
        if body.stream_options is not None and not body.stream:
            raise wrong("stream_options", "'stream_options' is for streams only")
        if body.tool_choice not in (None, "none", "auto") and not body.tools:
            raise wrong("tool_choice", "'tool_choice' needs 'tools'")
        before = store.get(body.previous_response_id, "previous_response_id") if body.previous_response_id else None
        conversation = body.conversation(before.messages if before else ())

        def make(model: Loaded) -> tuple[Prepared, Sequence[Submission]]:
            prepared = prepare(conversation, model)
            return prepared, [_submission(service, body, prepared, model)]

        job = await service.open(request, body.model, make)
        answer = ResponseAnswer(job, body, conversation, None if body.store is False else store)
        return await service.respond(request, job, answer, stream=body.stream, failed=answer.failed)

    @router.post("/v1/responses/input_tokens")
    async def input_tokens(request: Request) -> Any:
        body = await service.body(request, ResponseFields)
        before = store.get(body.previous_response_id, "previous_response_id") if body.previous_response_id else None
        conversation = body.conversation(before.messages if before else ())
        count = await service.with_model(body.model, lambda model: len(prepare(conversation, model).ids))
        return {"object": "response.input_tokens", "input_tokens": count}

    @router.get("/v1/responses/{id_}")
    async def one(id_: str, stream: bool = False) -> Any:
        if stream:
            raise unsupported("stream", "a response that was given is not streamed again")
        return store.get(id_).document

    @router.delete("/v1/responses/{id_}")
    async def forget(id_: str) -> Any:
        store.forget(id_)
        return {"id": id_, "object": "response", "deleted": True}

    @router.post("/v1/responses/{id_}/cancel")
    async def cancel(id_: str) -> Any:
        store.get(id_)
        raise ApiError(400, "only responses in the background can be cancelled", code="invalid_value")

    @router.get("/v1/responses/{id_}/input_items")
    async def items(id_: str, limit: int = 20, order: str = "desc", after: str | None = None) -> Any:
        return _listed(store.get(id_).items, limit, order, after)

    return router


def _submission(service: Service, body: ResponseFields, prepared: Prepared, model: Loaded) -> Submission:
    return service.submission(
        prepared.ids,
        body,
        model,
        max_tokens=body.max_output_tokens,
        stop=stops(None),
        logprobs=body.logprobs,
        grammar=prepared.grammar,
    )


def _listed(items: Sequence[Mapping[str, Any]], limit: int, order: str, after: str | None) -> dict[str, Any]:
    """A page of a response's input."""
    if not 1 <= limit <= 100 or order not in ("asc", "desc"):
        raise wrong("limit", "'limit' is 1 to 100 and 'order' asc or desc")
    data = list(items) if order == "asc" else list(reversed(items))
    names = [item["id"] for item in data]
    start = names.index(after) + 1 if after in names else 0
    page = data[start : start + limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": start + limit < len(data)}


class ResponseAnswer:
    """An answer in the shape of responses: one writer, whether its events are sent or not.

    Args:
        job: it runs.
        body: what was asked.
        conversation: the same, understood.
        store: keeps it at the end, or ``None``.
    """

    def __init__(self, job: Job, body: ResponseFields, conversation: Conversation, store: ResponseStore | None) -> None:
        self._job, self._body, self._conversation, self._store = job, body, conversation, store
        self._id = f"resp_{secrets.token_hex(16)}"
        self._tokenizer = job.model.engine.tokenizer
        self._sampling = sampling(body, job.model)
        parser = job.model.family.parser() if job.made.parser is not None else None
        self._reply = Reply(job.made, parser, self._tokenizer)
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._sequence = 0

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        async for _ in self.events():
            pass
        return self._final

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as a stream."""
        begun = self._document("in_progress")
        yield self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)
        reason = "stop"
        async for delta in deltas(self._job.streams[0]):
            yield b"".join(self._push(delta))
            reason = delta.finish_reason or reason
        closing = self._close(complete=reason != "length")
        status = "incomplete" if reason == "length" else "completed"
        self._final = self._document(status)
        self._keep()
        yield b"".join(closing) + self._event(f"response.{status}", response=self._final)

    def failed(self, error: ApiError) -> bytes:
        """The last event of an answer that failed."""
        document = {**self._document("failed"), "error": {"code": "server_error", "message": error.message}}
        return self._event("response.failed", response=document)

    def _keep(self) -> None:
        if self._store is None:
            return
        start = 1 if self._body.instructions is not None else 0
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for item in self._items:
            if item["type"] == "message":
                message["content"] += "".join(part["text"] for part in item["content"])
        calls = [
            {"id": item["call_id"], "function": {"name": item["name"], "arguments": item["arguments"]}}
            for item in self._items
            if item["type"] == "function_call"
        ]
        if calls:
            message["tool_calls"] = calls_from(calls, "output")
        items = [_shown(item.model_dump(exclude_none=True), i, self._id) for i, item in enumerate(self._body.items)]
        self._store.keep(Kept(self._final, items, [*self._conversation.messages[start:], message]))

    # --- writing ---------------------------------------------------------------------------------

    def _event(self, type_: str, **values: Any) -> bytes:
        event = sse.named(type_, {"type": type_, "sequence_number": self._sequence, **values})
        self._sequence += 1
        return event

    def _push(self, delta: Delta) -> list[bytes]:
        logprobs = [self._logprob(entry) for entry in delta.logprobs or ()] if self._body.logprobs is not None else []
        events: list[bytes] = []
        for piece in self._reply.push(delta):
            events += self._piece(piece, logprobs)
            logprobs = []
        return events

    def _logprob(self, entry: Any) -> dict[str, Any]:
        return token_entry(entry, self._tokenizer)

    def _piece(self, piece: Piece, logprobs: list[dict[str, Any]]) -> list[bytes]:
        if isinstance(piece, ToolCall):
            return [*self._close(), *self._call(piece)]
        kind = "message" if isinstance(piece, Text) else "reasoning"
        events = []
        if self._open is None or self._open["type"] != kind:
            if isinstance(piece, Text) and not piece.text.strip() and self._reply.calls:
                return []
            events += [*self._close(), *self._begin(kind)]
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += piece.text
        where = self._where()
        if isinstance(piece, Thought):
            return [*events, self._event("response.reasoning_text.delta", **where, delta=piece.text)]
        part["logprobs"] += logprobs
        return [*events, self._event("response.output_text.delta", **where, delta=piece.text, logprobs=logprobs)]

    def _where(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _begin(self, kind: str) -> list[bytes]:
        prefix = "msg" if kind == "message" else "rs"
        item: dict[str, Any] = {"id": f"{prefix}_{secrets.token_hex(16)}", "type": kind, "status": "in_progress"}
        if kind == "message":
            item["role"] = "assistant"
        else:
            item["summary"] = []
        self._items.append({**item, "content": []})
        added = self._event("response.output_item.added", output_index=len(self._items) - 1, item=self._items[-1])
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._items[-1]["content"] = [part if kind == "message" else {"type": "reasoning_text", "text": ""}]
        self._open = self._items[-1]
        return [added, self._event("response.content_part.added", **self._where(), part=self._open["content"][0])]

    def _close(self, complete: bool = True) -> list[bytes]:
        """End the item that is open."""
        if self._open is None:
            return []
        item, where, part = self._open, self._where(), self._open["content"][0]
        item["status"] = "completed" if complete else "incomplete"
        if item["type"] == "message":
            said = self._event("response.output_text.done", **where, text=part["text"], logprobs=part["logprobs"])
        else:
            said = self._event("response.reasoning_text.done", **where, text=part["text"])
        events = [said, self._event("response.content_part.done", **where, part=part)]
        self._open = None
        return [*events, self._event("response.output_item.done", output_index=where["output_index"], item=item)]

    def _call(self, piece: ToolCall) -> list[bytes]:
        item = {
            "id": f"fc_{secrets.token_hex(16)}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": piece.id,
            "name": piece.call.name,
            "arguments": "",
        }
        at, arguments = len(self._items), piece.call.arguments
        where = {"item_id": item["id"], "output_index": at}
        events = [
            self._event("response.output_item.added", output_index=at, item=item),
            self._event("response.function_call_arguments.delta", **where, delta=arguments),
            self._event("response.function_call_arguments.done", **where, name=item["name"], arguments=arguments),
        ]
        self._items.append({**item, "status": "completed", "arguments": arguments})
        return [*events, self._event("response.output_item.done", output_index=at, item=self._items[-1])]

    def _document(self, status: str) -> dict[str, Any]:
        """The response object."""
        body = self._body
        given = body.model_dump(exclude_none=True, by_alias=True)
        ended = status in ("completed", "incomplete")
        chosen = self._sampling
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._job.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "model": self._job.model.name,
            "output": [dict(item) for item in self._items] if ended else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "store": body.store is not False,
            "temperature": chosen.temperature,
            "text": given.get("text") or {"format": {"type": "text"}},
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": chosen.top_p,
            "presence_penalty": chosen.presence_penalty,
            "frequency_penalty": chosen.frequency_penalty,
            "truncation": body.truncation or "disabled",
            "usage": self._usage() if ended else None,
            **({} if body.user is None else {"user": body.user}),
            "service_tier": "default",
            "safety_identifier": body.safety_identifier,
            "prompt_cache_key": body.prompt_cache_key,
            "metadata": body.metadata or {},
        }

    def _usage(self) -> dict[str, Any]:
        prompt, cached, completion = self._job.usage()
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": self._reply.reasoning_tokens},
            "total_tokens": prompt + completion,
        }


def _shown(item: dict[str, Any], number: int, response: str) -> dict[str, Any]:
    """An input item as it is listed."""
    if item["type"] == "message" and isinstance(item.get("content"), str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        item["content"] = [{"type": kind, "text": item["content"]}]
    return {"id": f"item_{number}_{response[5:17]}", "status": "completed", **item}
