"""Models, tokens, templates: what is asked about a model without generating anything."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from ryzc.runtime.server.conversation import Conversation, render
from ryzc.runtime.server.errors import ApiError, wrong
from ryzc.runtime.server.fields import Fields
from ryzc.runtime.server.messages import Message, ToolField, functions, plain
from ryzc.runtime.server.models import Entry, Loaded, Models
from ryzc.runtime.server.service import Service

MAX_TEXT = 1 << 20
"""Characters that are tokenized at a time: the tokenizer works for one text at a time."""


class TokenizeFields(Fields):
    """A text (``prompt``, or llama.cpp's ``content``) or messages."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[Message] | None = None
    tools: list[ToolField] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None


class DetokenizeFields(Fields):
    """Token ids."""

    model: str | None = None
    tokens: list[int] = Field(max_length=1 << 20)


class TemplateFields(Fields):
    """Messages."""

    model: str | None = None
    messages: list[Message]
    tools: list[ToolField] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None


def routes(service: Service) -> APIRouter:
    """The surface's routes."""
    router = APIRouter()
    models = service.models

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        cards = [_card(entry, models) for entry in models.entries.values()]
        ends = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
        return {"object": "list", "data": cards, "has_more": False, **ends}

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return _card(models.entry(name), models)

    @router.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await service.body(request, TokenizeFields)
        return await service.with_model(body.model, lambda model: _tokenized(body, model))

    @router.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, Any]:
        body = await service.body(request, DetokenizeFields)
        return await service.with_model(body.model, lambda model: _detokenized(body.tokens, model))

    @router.get("/tokenizer_info")
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        return await service.with_model(model, _tokenizer_info)

    @router.post("/apply-template")
    async def apply_template(request: Request) -> dict[str, Any]:
        body = await service.body(request, TemplateFields)

        def work(model: Loaded) -> dict[str, Any]:
            return {"prompt": _rendered(body.messages, body.tools, body.chat_template_kwargs, model, body)}

        return await service.with_model(body.model, work)

    return router


def _card(entry: Entry, models: Models) -> dict[str, Any]:
    """A model as OpenAI and Anthropic list it, with vLLM's ``max_model_len``."""
    return {
        "id": entry.name,
        "object": "model",
        "type": "model",
        "display_name": entry.name,
        "lifecycle": "active",
        "created": entry.created,
        "created_at": datetime.fromtimestamp(entry.created, UTC).isoformat().replace("+00:00", "Z"),
        "owned_by": "ryzc",
        "max_model_len": entry.context,
        "max_input_tokens": entry.context,
        "loaded": entry.name in models.loaded,
    }


def _tokenized(body: TokenizeFields, model: Loaded) -> dict[str, Any]:
    tokenizer = model.engine.tokenizer
    text = body.prompt if body.prompt is not None else body.content
    if (text is None) == (body.messages is None):
        raise wrong("prompt", "give either a text ('prompt' or 'content') or 'messages'")
    if body.messages is not None:
        text = _rendered(body.messages, body.tools, body.chat_template_kwargs, model, None)
        ids = model.encode(text, rendered=True)
    else:
        assert text is not None
        if len(text) > MAX_TEXT:
            raise wrong("prompt", f"the text has {len(text)} characters; at most {MAX_TEXT} are taken at a time")
        special = next((flag for flag in (body.add_special_tokens, body.add_special) if flag is not None), True)
        ids = tokenizer.encode(text, add_special=special, parse_special=body.parse_special is not False)
    out: dict[str, Any] = {"count": len(ids), "max_model_len": model.engine.context, "tokens": ids}
    pieces = [tokenizer.piece(id_, special=True) for id_ in ids] if body.return_token_strs or body.with_pieces else []
    if body.return_token_strs:
        out["token_strs"] = [piece.decode(errors="replace") for piece in pieces]
    if body.with_pieces:
        out["tokens"] = [{"id": id_, "piece": _piece(piece)} for id_, piece in zip(ids, pieces, strict=True)]
    return out


def _piece(piece: bytes) -> str | list[int]:
    """A text, or bytes where it is none."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def _tokenizer_info(model: Loaded) -> dict[str, Any]:
    """What vLLM tells of a tokenizer; lm-eval counts tokens with it."""
    tokenizer = model.engine.tokenizer
    return {
        "bos_token": model.prompts.spell(tokenizer.bos_id) or None,
        "eos_token": model.prompts.spell(min(tokenizer.eos_ids, default=None)) or None,
        "pad_token": None,
        "chat_template": model.prompts.template_text,
        "model_max_length": model.engine.context,
        "vocab_size": model.vocab_size,
    }


def _detokenized(ids: list[int], model: Loaded) -> dict[str, Any]:
    if ids and (min(ids) < 0 or max(ids) >= model.vocab_size):
        raise wrong("tokens", f"token ids must be in 0 .. {model.vocab_size - 1}")
    text = model.engine.tokenizer.decode(ids, special=True)
    return {"prompt": text, "content": text}


def _rendered(
    messages: list[Message],
    tools: list[ToolField] | None,
    variables: Mapping[str, Any] | None,
    model: Loaded,
    body: TemplateFields | None,
) -> str:
    if not model.prompts.has_chat_template:
        raise ApiError(400, f"the model {model.name!r} has no chat template", code="no_chat_template")
    unfinished = bool(body and body.continue_final_message)
    return render(
        Conversation(plain(messages), functions(tools), variables=variables or {}, unfinished=unfinished), model
    )
