"""The body of ``/v1/messages``, Anthropic's shape, and the conversation that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ryzc.runtime.server.conversation import Conversation
from ryzc.runtime.server.errors import unsupported, wrong
from ryzc.runtime.server.fields import Fields
from ryzc.runtime.server.messages import NAME


class Block(Fields):
    """A block of a message; images and documents are not served."""

    type: str
    text: str | None = None
    citations: Any = None
    cache_control: Any = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    caller: Any = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    source: Any = None
    title: Any = None
    context: Any = None


class AnthropicMessage(Fields):
    """A message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class AnthropicTool(Fields):
    """A function that may be called."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    input_schema: dict[str, Any]
    cache_control: Any = None
    strict: bool | None = None
    input_examples: Any = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: Any = None


class ToolChoice(Fields):
    """Which tools the answer may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Fields):
    """Whether the model shall think."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class OutputFormat(Fields):
    """What the answer must be."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Fields):
    """About the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountFields(Fields):
    """What has tokens that can be counted."""

    unsupported: ClassVar[Mapping[str, tuple[str, Sequence[Any]]]] = {
        "mcp_servers": ("this server calls no tools itself", ([],)),
        "container": ("this server runs no code", ()),
        "context_management": ("shorten the conversation yourself", ({"edits": []},)),
        "inference_geo": ("it runs where it stands", ("not_available", "global")),
        "speed": ("there is one speed", ("standard",)),
    }

    messages: list[AnthropicMessage]
    model: str | None = None
    cache_control: Any = None
    system: str | list[Block] | None = None
    tools: list[AnthropicTool] | None = Field(default=None, max_length=256)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def conversation(self) -> Conversation:
        """What is asked.

        Raises:
            ApiError: it makes no sense.
        """
        if not self.messages:
            raise wrong("messages", "'messages' is empty")
        start = [] if self.system is None else [{"role": "system", "content": _words(self.system, "system")}]
        messages = [out for i, m in enumerate(self.messages) for out in _plain(m, f"messages.{i}")]
        choice = self.tool_choice
        named = {"any": "required", "tool": f"={choice.name if choice else ''}"}
        if choice is not None and choice.type in ("any", "tool") and not self.tools:
            raise wrong("tool_choice", "'tool_choice' needs 'tools'")
        return Conversation(
            [*start, *messages],
            [_function(tool) for tool in self.tools or ()],
            "auto" if choice is None else named.get(choice.type, choice.type),
            not (choice and choice.disable_parallel_tool_use),
            self.output_config.format.schema_ if self.output_config and self.output_config.format else None,
            self._variables(),
            messages[-1]["role"] == "assistant",
        )

    def _variables(self) -> dict[str, Any]:
        variables: dict[str, Any] = {}
        if self.thinking is not None:
            variables["enable_thinking"] = self.thinking.type != "disabled"
        if self.output_config and self.output_config.effort:
            variables["reasoning_effort"] = self.output_config.effort
        return variables


class MessagesFields(CountFields):
    """The body."""

    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    thread: Any = None
    seed: int | None = Field(default=None, ge=0, lt=1 << 64)


def _function(tool: AnthropicTool) -> dict[str, Any]:
    described = {} if tool.description is None else {"description": tool.description}
    return {"name": tool.name, **described, "parameters": tool.input_schema}


def _plain(message: AnthropicMessage, param: str) -> list[dict[str, Any]]:
    """A message for a chat template; results of tools become messages of their own, before the rest."""
    blocks = message.content
    if isinstance(blocks, str):
        return [{"role": message.role, "content": blocks}]
    results, texts, calls, thoughts = [], [], [], []
    for i, block in enumerate(blocks):
        where = f"{param}.content.{i}"
        if block.type == "tool_use":
            if block.id is None or block.name is None or block.input is None:
                raise wrong(where, f"'{where}' needs an id, a name and an input")
            calls.append(
                {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
            )
        elif block.type == "tool_result":
            if block.tool_use_id is None:
                raise wrong(where, f"'{where}' needs a tool_use_id")
            content = _words(block.content or "", f"{where}.content")
            content = f"Error: {content}" if block.is_error else content
            results.append({"role": "tool", "content": content, "tool_call_id": block.tool_use_id})
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":
            texts.append(_words([block], where))
    rest: dict[str, Any] = {"role": message.role, "content": "".join(texts)}
    if calls:
        rest["tool_calls"] = calls
    if thoughts:
        rest["reasoning_content"] = "".join(thoughts)
    return [*results, rest] if texts or calls or not results else results


def _words(content: str | Sequence[Block], param: str) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text" or block.text is None:
            raise unsupported(param, f"blocks of type {block.type!r} are not served; this server takes text")
    return "".join(block.text or "" for block in content)
