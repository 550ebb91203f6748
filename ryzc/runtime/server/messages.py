"""Messages as OpenAI's chat interface writes them, checked, and as chat templates read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ryzc.runtime.server.conversation import calls_from
from ryzc.runtime.server.errors import ApiError, wrong
from ryzc.runtime.server.fields import Fields

NAME = r"^[a-zA-Z0-9_.-]{1,128}$"


class Part(Fields):
    """A part of a message; only text is served."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    cache_control: Any = None

    def words(self, param: str) -> str:
        """Its text.

        Raises:
            ApiError: it is no text.
        """
        if self.type in ("text", "input_text", "output_text") and self.text is not None:
            return self.text
        if self.type == "refusal" and self.refusal is not None:
            return self.refusal
        raise ApiError(
            400,
            f"'{param}': parts of type {self.type!r} are not supported; this server takes text",
            code="unsupported_content",
            param=param,
        )


class CalledFunction(Fields):
    """The function of a call."""

    name: str
    arguments: str


class MessageCall(Fields):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(Fields):
    """A message of any role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    # What answers carry and clients send back.
    annotations: Any = None
    audio: None = None
    function_call: None = None


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a chat template.

    Raises:
        ApiError: one lacks what its role needs, or holds what this server does not take.
    """
    return [_plain(message, f"messages.{i}") for i, message in enumerate(messages)]


def _plain(message: Message, param: str) -> dict[str, Any]:
    content = message.content
    if content is None and not (message.role == "assistant" and (message.tool_calls or message.refusal)):
        raise wrong(f"{param}.content", f"'{param}' has no content")
    if isinstance(content, list):
        content = "".join(part.words(f"{param}.content.{i}") for i, part in enumerate(content))
    role = "system" if message.role == "developer" else message.role
    out: dict[str, Any] = {"role": role, "content": content or message.refusal or ""}
    if message.name is not None:
        out["name"] = message.name
    if message.reasoning_content is not None:
        out["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        if role != "assistant":
            raise wrong(f"{param}.tool_calls", "only the assistant makes calls")
        calls = [call.model_dump(exclude={"index"}) for call in message.tool_calls]
        out["tool_calls"] = calls_from(calls, f"{param}.tool_calls")
    if role == "tool":
        if message.tool_call_id is None:
            raise wrong(f"{param}.tool_call_id", "a message of the role tool needs a tool_call_id")
        out["tool_call_id"] = message.tool_call_id
    return out


class Function(Fields):
    """A function that may be called."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolField(Fields):
    """A tool; only functions are served."""

    type: Literal["function"]
    function: Function


class NamedFunction(Fields):
    """The function that must be called."""

    name: str


class NamedTool(Fields):
    """A choice of one tool."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Fields):
    """A schema that the answer must follow."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


def wanted_schema(given: ResponseFormat | None) -> Mapping[str, Any] | None:
    """The schema of an answer, or ``None`` where any text is welcome.

    Raises:
        ApiError: ``json_schema`` without a schema.
    """
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return given.schema_ or {"type": "object"}
    schema = given.json_schema.schema_ if given.json_schema else given.schema_
    if not isinstance(schema, dict):
        raise wrong("response_format.json_schema.schema", "'response_format' of type json_schema needs a schema")
    return schema


def functions(tools: Sequence[ToolField] | None) -> list[dict[str, Any]]:
    """Tools for a chat template, without what was not said."""
    return [_without_none(tool.function) for tool in tools or ()]


def _without_none(function: Function) -> dict[str, Any]:
    return {
        "parameters": {"type": "object", "properties": {}},
        **function.model_dump(exclude_none=True, exclude={"strict"}),
    }
