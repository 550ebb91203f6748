"""The body of ``/v1/responses``, and the conversation that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ryzc.runtime.server.conversation import Conversation, calls_from
from ryzc.runtime.server.errors import unsupported, wrong
from ryzc.runtime.server.fields import Fields, SamplingFields
from ryzc.runtime.server.messages import NAME, Part

LOGPROBS = "message.output_text.logprobs"


class InputPart(Part):
    """A part of a message; answers that are sent back carry more than text."""

    annotations: Any = None
    logprobs: Any = None
    detail: Any = None
    file_id: Any = None
    file_data: Any = None
    filename: Any = None


class Item(Fields):
    """A message, a call, the result of one, or a thought."""

    type: str = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    namespace: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None
    encrypted_content: str | None = None


class FunctionTool(Fields):
    """A function that may be called."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Fields):
    """A choice of one tool."""

    type: Literal["function"]
    name: str


class Format(Fields):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextField(Fields):
    """About the answer's text."""

    unsupported: ClassVar[Mapping[str, tuple[str, Sequence[Any]]]] = {}

    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Fields):
    """About the thoughts before it."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: None = None


class ResponseStreamOptions(Fields):
    """How to stream."""

    include_obfuscation: bool | None = None


class ResponseFields(SamplingFields):
    """The body."""

    unsupported: ClassVar[Mapping[str, tuple[str, Sequence[Any]]]] = {
        "background": ("this server answers while you wait", (False,)),
        "conversation": ("use 'previous_response_id', or send the conversation as 'input'", ()),
        "prompt": ("this server keeps no prompts", ()),
        "max_tool_calls": ("this server calls no tools itself", ()),
        "context_management": ("shorten the conversation yourself", ()),
        "moderation": ("this server does not moderate", ()),
        "stop": ("the Responses interface has no stop texts", ()),
    }

    input: str | list[Item] | None = None
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[str] | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=256)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextField | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["disabled", "auto"] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    # Kept to be told again.
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    n: Literal[1] | None = None

    @property
    def logprobs(self) -> int | None:
        """Best tokens to tell beside each one, or ``None``."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) or self.top_logprobs else None

    @property
    def items(self) -> list[Item]:
        """The input as items."""
        if isinstance(self.input, str):
            return [Item(role="user", content=self.input)]
        return list(self.input or ())

    def conversation(self, before: Sequence[Mapping[str, Any]]) -> Conversation:
        """What is asked.

        Args:
            before: messages of the responses that it follows.

        Raises:
            ApiError: it makes no sense.
        """
        if not self.items:
            raise wrong("input", "'input' is empty")
        for name in self.include or ():
            if name not in (LOGPROBS, "reasoning.encrypted_content"):
                raise unsupported("include", f"{name!r} is about something that this server does not do")
        start = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        choice = self.tool_choice or "auto"
        effort = self.reasoning.effort if self.reasoning else None
        return Conversation(
            [*start, *before, *messages_of(self.items)],
            [_function(tool) for tool in self.tools or ()],
            choice if isinstance(choice, str) else f"={choice.name}",
            self.parallel_tool_calls is not False,
            _schema(self.text.format if self.text else None),
            {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"},
        )


def _function(tool: FunctionTool) -> dict[str, Any]:
    out: dict[str, Any] = {"parameters": {"type": "object", "properties": {}}}
    return {**out, **tool.model_dump(exclude_none=True, exclude={"type", "strict"})}


def _schema(given: Format | None) -> Mapping[str, Any] | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return {"type": "object"}
    if given.schema_ is None:
        raise wrong("text.format.schema", "'text.format' of type json_schema needs a schema")
    return given.schema_


def messages_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages for a chat template: calls and thoughts belong to the assistant's message beside them.

    Raises:
        ApiError: an item lacks something, or is of a kind that is not served.
    """
    out: list[dict[str, Any]] = []
    thought: str | None = None
    for i, item in enumerate(items):
        param = f"input.{i}"
        if item.type == "reasoning":
            parts = item.content if isinstance(item.content, list) else []
            thought = "".join(part.text or "" for part in parts) or None
            continue
        message = _message(item, param)
        if message["role"] == "assistant":
            if thought is not None:
                message["reasoning_content"] = thought
            last = out[-1] if out else {}
            if "tool_calls" in message and last.get("role") == "assistant":
                last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
                continue
        thought = None
        out.append(message)
    return out


def _message(item: Item, param: str) -> dict[str, Any]:
    if item.type == "message":
        if item.role is None or item.content is None:
            raise wrong(param, f"'{param}' needs a role and a content")
        role = "system" if item.role == "developer" else item.role
        return {"role": role, "content": _words(item.content, f"{param}.content")}
    if item.type == "function_call":
        if item.call_id is None or item.name is None or item.arguments is None:
            raise wrong(param, f"'{param}' needs a call_id, a name and arguments")
        call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
        return {"role": "assistant", "content": "", "tool_calls": calls_from([call], f"{param}.arguments")}
    if item.type == "function_call_output":
        if item.call_id is None or item.output is None:
            raise wrong(param, f"'{param}' needs a call_id and an output")
        return {"role": "tool", "content": _words(item.output, f"{param}.output"), "tool_call_id": item.call_id}
    raise unsupported(f"{param}.type", f"items of type {item.type!r} are not served")


def _words(content: str | list[InputPart], param: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.words(f"{param}.{i}") for i, part in enumerate(content))
