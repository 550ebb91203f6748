"""``/v1/chat/completions``."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from ryzc.runtime.server import sse
from ryzc.runtime.server.backend import Delta, TokenLogprob
from ryzc.runtime.server.conversation import Conversation, Prepared, prepare
from ryzc.runtime.server.errors import wrong
from ryzc.runtime.server.fields import SamplingFields, StreamOptions, stops
from ryzc.runtime.server.messages import (
    Message,
    NamedTool,
    ResponseFormat,
    ToolField,
    functions,
    plain,
    wanted_schema,
)
from ryzc.runtime.server.models import Loaded
from ryzc.runtime.server.reply import Piece, Reply, Text, Thought
from ryzc.runtime.server.service import Job, Service, Submission, deltas
from ryzc.runtime.tokenizer import Tokenizer

MAX_TOP = 20


class ChatFields(SamplingFields):
    """The body."""

    unsupported: ClassVar[Mapping[str, tuple[str, Sequence[Any]]]] = {
        "functions": ("it is superseded; use 'tools'", ()),
        "function_call": ("it is superseded; use 'tool_choice'", ()),
        "audio": ("this server answers in text", ()),
        "modalities": ("this server answers in text", (["text"],)),
        "web_search_options": ("this server does not search", ()),
        "verbosity": ("say it in the messages", ("medium",)),
        "moderation": ("this server does not moderate", ()),
        "add_generation_prompt": ("use 'continue_final_message'", (True,)),
    }

    messages: list[Message]
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    response_format: ResponseFormat | None = None
    tools: list[ToolField] | None = Field(default=None, max_length=256)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    echo: Literal[False] | None = None

    def conversation(self) -> Conversation:
        """What is asked.

        Raises:
            ApiError: it makes no sense.
        """
        choice = self.tool_choice or "auto"
        return Conversation(
            plain(self.messages),
            functions(self.tools),
            choice if isinstance(choice, str) else f"={choice.function.name}",
            self.parallel_tool_calls is not False,
            wanted_schema(self.response_format),
            self.variables(),
            bool(self.continue_final_message),
        )

    def variables(self) -> dict[str, Any]:
        """Variables of the chat template."""
        given = dict(self.chat_template_kwargs or {})
        taken = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"} & set(given)
        if taken:
            raise wrong("chat_template_kwargs", f"'chat_template_kwargs' cannot set {', '.join(sorted(taken))}")
        if self.reasoning_effort is not None:
            given.setdefault("reasoning_effort", self.reasoning_effort)
            given.setdefault("enable_thinking", self.reasoning_effort != "none")
        return given


def routes(service: Service) -> APIRouter:
    """The surface's routes."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await service.body(request, ChatFields)
        _check(body)

        def make(model: Loaded) -> tuple[Prepared, Sequence[Submission]]:
            prepared = prepare(body.conversation(), model)
            return prepared, [_submission(service, body, prepared, model)]

        job = await service.open(request, body.model, make)
        return await service.respond(request, job, ChatAnswer(job, body), stream=body.stream)

    return router


def _check(body: ChatFields) -> None:
    if body.top_logprobs and not body.logprobs:
        raise wrong("top_logprobs", "'top_logprobs' needs 'logprobs' to be true")
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options", "'stream_options' is for streams only")
    if body.tool_choice is not None and body.tool_choice != "none" and not body.tools:
        raise wrong("tool_choice", "'tool_choice' needs 'tools'")


def _submission(service: Service, body: ChatFields, prepared: Prepared, model: Loaded) -> Submission:
    limits = [value for value in (body.max_tokens, body.max_completion_tokens) if value is not None]
    return service.submission(
        prepared.ids,
        body,
        model,
        max_tokens=min(limits, default=None),
        stop=stops(body.stop),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=prepared.grammar,
    )


class ChatAnswer:
    """An answer in the shape of chat completions.

    Args:
        job: it runs.
        body: what was asked.
    """

    def __init__(self, job: Job, body: ChatFields) -> None:
        self._job = job
        self._body = body
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._tokenizer = job.model.engine.tokenizer
        prepared: Prepared = job.made
        self._replies = [self._reply(prepared) for _ in range(body.n or 1)]
        name = sse.text(job.model.name)
        self._head = (
            f'data: {{"id":"{self._id}","object":"chat.completion.chunk","created":{job.created},"model":{name},'
        )

    def _reply(self, prepared: Prepared) -> Reply:
        parser = self._job.model.family.parser() if prepared.parser is not None else None
        return Reply(prepared, parser, self._tokenizer)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [_Choice(i) for i in range(len(self._replies))]
        async for delta in deltas(self._job.streams[0]):
            choice, reply = choices[delta.index], self._replies[delta.index]
            for piece in reply.push(delta):
                choice.add(piece)
            if self._body.logprobs:
                choice.logprobs += [token_entry(entry, self._tokenizer) for entry in delta.logprobs or ()]
            if delta.finish_reason is not None:
                choice.reason = finish_reason(delta.finish_reason, reply)
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._job.created,
            "model": self._job.model.name,
            "choices": [choice.document(bool(self._body.logprobs)) for choice in choices],
            "usage": self._usage(),
        }

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as a stream."""
        include_usage = bool(self._body.stream_options and self._body.stream_options.include_usage)
        tail = ',"usage":null}\n\n' if include_usage else "}\n\n"
        for i in range(len(self._replies)):
            yield self._chunk(i, '{"role":"assistant","content":""}', tail)
        async for delta in deltas(self._job.streams[0]):
            yield b"".join(self._chunks(delta, tail))
        if include_usage:
            yield f'{self._head}"choices":[],"usage":{sse.dump(self._usage())}}}\n\n'.encode()
        yield sse.DONE

    def _chunks(self, delta: Delta, tail: str) -> list[bytes]:
        reply = self._replies[delta.index]
        pieces = reply.push(delta)
        logprobs = "null"
        if self._body.logprobs and delta.logprobs:
            logprobs = sse.dump({"content": [token_entry(entry, self._tokenizer) for entry in delta.logprobs]})
            pieces = pieces or [Text("")]
        chunks = []
        for piece in pieces:
            chunks.append(self._chunk(delta.index, self._written(piece, reply), tail, logprobs))
            logprobs = "null"
        if delta.finish_reason is not None:
            reason = f'"{finish_reason(delta.finish_reason, reply)}"'
            chunks.append(self._chunk(delta.index, "{}", tail, reason=reason))
        return chunks

    def _written(self, piece: Piece, reply: Reply) -> str:
        if isinstance(piece, Text):
            return f'{{"content":{sse.text(piece.text)}}}'
        if isinstance(piece, Thought):
            return f'{{"reasoning_content":{sse.text(piece.text)}}}'
        function = {"name": piece.call.name, "arguments": piece.call.arguments}
        call = {"index": piece.number, "id": piece.id, "type": "function", "function": function}
        return sse.dump({"tool_calls": [call]})

    def _chunk(self, index: int, delta: str, tail: str, logprobs: str = "null", reason: str = "null") -> bytes:
        choice = f'"choices":[{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}]'
        return f"{self._head}{choice}{tail}".encode(errors="replace")

    def _usage(self) -> dict[str, Any]:
        return usage_document(self._job, sum(reply.reasoning_tokens for reply in self._replies))


class _Choice:
    """A choice as it grows."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.reason = "stop"
        self.logprobs: list[dict[str, Any]] = []
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def add(self, piece: Piece) -> None:
        if isinstance(piece, Text):
            self._texts.append(piece.text)
        elif isinstance(piece, Thought):
            self._thoughts.append(piece.text)
        else:
            function = {"name": piece.call.name, "arguments": piece.call.arguments}
            self._calls.append({"id": piece.id, "type": "function", "function": function})

    def document(self, with_logprobs: bool) -> dict[str, Any]:
        text = "".join(self._texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = self._calls
            message["content"] = text.strip() or None
        logprobs = {"content": self.logprobs, "refusal": None} if with_logprobs else None
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": self.reason}


def finish_reason(reason: str, reply: Reply) -> str:
    """The engine's reason as OpenAI names it."""
    return "tool_calls" if reason == "stop" and reply.calls else reason


def usage_document(job: Job, reasoning_tokens: int = 0) -> dict[str, Any]:
    """Tokens of a request."""
    prompt, cached, completion = job.usage()
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def token_entry(entry: TokenLogprob, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token and its log probability as OpenAI writes them."""
    top = [{**_spelled(id_, tokenizer), "logprob": logprob} for id_, logprob in entry.top]
    return {**_spelled(entry.id, tokenizer), "logprob": entry.logprob, "top_logprobs": top}


def _spelled(id_: int, tokenizer: Tokenizer) -> dict[str, Any]:
    piece = tokenizer.piece(id_, special=True)
    return {"token": piece.decode(errors="replace"), "bytes": list(piece)}
