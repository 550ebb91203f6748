"""``/v1/completions``."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from ryzc.runtime.server import sse
from ryzc.runtime.server.backend import Delta, TokenLogprob
from ryzc.runtime.server.errors import wrong
from ryzc.runtime.server.fields import SamplingFields, StreamOptions, stops
from ryzc.runtime.server.messages import ResponseFormat, wanted_schema
from ryzc.runtime.server.models import Loaded
from ryzc.runtime.server.openai_chat import usage_document
from ryzc.runtime.server.service import Job, Service, Submission, merged
from ryzc.runtime.tokenizer import Tokenizer

DEFAULT_TOKENS = 16
"""OpenAI's."""


class CompletionFields(SamplingFields):
    """The body."""

    unsupported: ClassVar[Mapping[str, tuple[str, Sequence[Any]]]] = {
        "suffix": ("this server does not fill in the middle", ("",)),
        "best_of": ("use 'n'", (1,)),
    }

    prompt: str | list[str] | list[int] | list[list[int]]
    model: str | None = None
    max_tokens: int | None = Field(default=DEFAULT_TOKENS, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None


def routes(service: Service) -> APIRouter:
    """The surface's routes."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = await service.body(request, CompletionFields)
        if body.stream_options is not None and not body.stream:
            raise wrong("stream_options", "'stream_options' is for streams only")

        def make(model: Loaded) -> tuple[list[list[int]], list[Submission]]:
            prompts = [_encode(prompt, model) for prompt in _prompts(body, service.config.max_n)]
            return prompts, [_submission(service, body, ids, model) for ids in prompts]

        job = await service.open(request, body.model, make)
        return await service.respond(request, job, CompletionAnswer(job, body), stream=body.stream)

    return router


def _prompts(body: CompletionFields, most: int) -> list[str | list[int]]:
    """The prompts, one or many.

    Raises:
        ApiError: there is none, or too many.
    """
    given = body.prompt
    prompts: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not prompts or not all(prompts):
        raise wrong("prompt", "'prompt' is empty")
    if len(prompts) * (body.n or 1) > most:
        raise wrong("prompt", f"prompts times 'n' are at most {most} here")
    return prompts


def _encode(prompt: str | list[int], model: Loaded) -> list[int]:
    if isinstance(prompt, str):
        return model.encode(prompt)
    if min(prompt) < 0 or max(prompt) >= model.vocab_size:
        raise wrong("prompt", f"token ids must be in 0 .. {model.vocab_size - 1}")
    return prompt


def _submission(service: Service, body: CompletionFields, ids: list[int], model: Loaded) -> Submission:
    schema = wanted_schema(body.response_format)
    grammar = None if schema is None else model.constraints.json_schema(schema, "response_format")
    return service.submission(
        ids,
        body,
        model,
        max_tokens=DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens,
        stop=stops(body.stop),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        grammar=grammar,
    )


class CompletionAnswer:
    """An answer in the shape of completions; choice ``j`` of prompt ``i`` is number ``i * n + j``."""

    def __init__(self, job: Job, body: CompletionFields) -> None:
        self._job = job
        self._body = body
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._tokenizer = job.model.engine.tokenizer
        self._prompts: list[list[int]] = job.made
        self._n = body.n or 1
        self._offsets = [0] * (len(self._prompts) * self._n)
        self._begun = [False] * len(self._offsets)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        count = len(self._offsets)
        texts: list[list[str]] = [[] for _ in range(count)]
        reasons = ["stop"] * count
        parts: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        async for number, delta in merged(self._job.streams):
            at = number * self._n + delta.index
            text, logprobs = self._advance(at, number, delta)
            texts[at].append(text)
            if logprobs:
                parts[at].append(logprobs)
            reasons[at] = delta.finish_reason or reasons[at]
        choices = [
            self._choice(at, "".join(texts[at]), _joined(parts[at]) if self._asked else None, reasons[at])
            for at in range(count)
        ]
        return {**self._head(), "choices": choices, "usage": usage_document(self._job)}

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as a stream."""
        include_usage = bool(self._body.stream_options and self._body.stream_options.include_usage)
        extra = {"usage": None} if include_usage else {}
        head = self._head()
        async for number, delta in merged(self._job.streams):
            at = number * self._n + delta.index
            text, logprobs = self._advance(at, number, delta)
            choice = self._choice(at, text, logprobs, delta.finish_reason)
            yield sse.data({**head, "choices": [choice], **extra})
        if include_usage:
            yield sse.data({**head, "choices": [], "usage": usage_document(self._job)})
        yield sse.DONE

    @property
    def _asked(self) -> bool:
        return self._body.logprobs is not None

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._job.created,
            "model": self._job.model.name,
        }

    def _choice(self, at: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": at, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _advance(self, at: int, number: int, delta: Delta) -> tuple[str, dict[str, Any] | None]:
        """The text and log probabilities of a delta; those of the prompt come first, where it is echoed."""
        text, parts = delta.text, []
        if self._body.echo and not self._begun[at]:
            prompt = self._prompts[number]
            text = self._tokenizer.decode(prompt) + text
            if self._asked:
                parts.append(self._written(at, [prompt[0]], [None]))
                entries = self._job.streams[number].prompt_logprobs
                parts.append(self._written(at, [entry.id for entry in entries], entries))
        self._begun[at] = True
        if self._asked and delta.logprobs:
            parts.append(self._written(at, [entry.id for entry in delta.logprobs], delta.logprobs))
        return text, _joined(parts) if parts else None

    def _written(self, at: int, ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        tokens = [_spelled(id_, self._tokenizer) for id_ in ids]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[at])
            self._offsets[at] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The best tokens and the chosen one; of two that are spelled alike the better one."""
        pairs = [*entry.top, (entry.id, entry.logprob)]
        top: dict[str, float] = {}
        for id_, logprob in pairs:
            top.setdefault(_spelled(id_, self._tokenizer), logprob)
        return top


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for part in parts for value in part[name]] for name in names}


def _spelled(id_: int, tokenizer: Tokenizer) -> str:
    """A token's text; bytes that are no UTF-8 as OpenAI spells them."""
    piece = tokenizer.piece(id_, special=True)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
