"""From a conversation, as every chat surface reads it, to the tokens and the rules of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ryzc.runtime.server.errors import ApiError, unsupported, wrong
from ryzc.runtime.server.tools import Call, Parser, Tool, generic

if TYPE_CHECKING:
    from ryzc.runtime.server.models import Loaded

_MARK = "\ue000continue\ue001"
"""Private-use characters: where an unfinished message ends in what a template rendered."""


@dataclass(frozen=True)
class Conversation:
    """What a chat surface asks.

    Attributes:
        messages: ``role`` and ``content`` (a text) each; ``tool_calls`` of the assistant hold arguments as objects.
        tools: functions that may be called.
        choice: ``none``, ``auto``, ``required``, or the name of the one to call, as ``=NAME``.
        parallel: several calls in one answer are welcome.
        schema: what the answer must be as JSON; ``None`` is free text.
        variables: further ones of the chat template, such as ``enable_thinking``.
        unfinished: the last message is the assistant's own, to be continued.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool] = ()
    choice: str = "auto"
    parallel: bool = True
    schema: Mapping[str, Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    unfinished: bool = False

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.choice == "required" or self.choice.startswith("=")

    @property
    def callable(self) -> Sequence[Tool]:
        """The tools that the answer may call."""
        if self.choice == "none":
            return ()
        if self.choice.startswith("="):
            return [tool for tool in self.tools if tool["name"] == self.choice[1:]]
        return self.tools


@dataclass(frozen=True)
class Prepared:
    """A conversation, ready for the engine.

    Attributes:
        ids: the prompt.
        text: the same, rendered.
        grammar: what the answer must follow, or ``None``.
        parser: finds calls in the answer, or ``None``.
        thinking: whether the answer begins inside a thought; ``None`` where the model is not one that thinks.
    """

    ids: Sequence[int]
    text: str
    grammar: object | None = None
    parser: Parser | None = None
    thinking: bool | None = None


def prepare(conversation: Conversation, model: Loaded) -> Prepared:
    """Render, encode, and compile the rules of the answer; takes a while: call it beside the event loop.

    Raises:
        ApiError, UserError: the conversation makes no sense, or the template refuses it.
    """
    if not model.prompts.has_chat_template:
        raise ApiError(
            400, f"the model {model.name!r} has no chat template; use /v1/completions", code="no_chat_template"
        )
    _check(conversation)
    text = render(conversation, model)
    parser = model.family.parser() if conversation.callable else None
    ids = model.encode(text, rendered=True)
    return Prepared(ids, text, _grammar(conversation, model), parser, _thinking(conversation, model, text))


def render(conversation: Conversation, model: Loaded) -> str:
    """The prompt's text.

    Raises:
        UserError: the template refuses it.
    """
    messages, variables = [dict(message) for message in conversation.messages], dict(conversation.variables)
    if conversation.tools and conversation.choice != "none":
        if model.family.prompted:
            messages = _explained(messages, conversation.tools)
        else:
            variables["tools"] = [{"type": "function", "function": dict(tool)} for tool in conversation.tools]
    elif model.family.prompted:
        messages = _explained(messages, ())
    if conversation.forced or conversation.schema is not None:
        variables.setdefault("enable_thinking", False)  # the grammar begins with the answer's first token
    if not conversation.unfinished:
        return model.prompts.render(messages, **variables)
    content = messages[-1]["content"]
    messages[-1]["content"] = content + _MARK
    rendered, found, _ = model.prompts.render(messages, add_generation_prompt=False, **variables).rpartition(_MARK)
    if not found:
        raise wrong("messages", "this model's chat template cannot continue a message")
    return rendered


def _check(conversation: Conversation) -> None:
    if not conversation.messages:
        raise wrong("messages", "'messages' is empty")
    names = [tool["name"] for tool in conversation.tools]
    if len(set(names)) < len(names):
        raise wrong("tools", "two tools have the same name")
    if conversation.forced and not conversation.callable:
        raise wrong("tool_choice", "'tool_choice' asks for a tool that 'tools' does not hold")
    if conversation.forced and conversation.schema is not None:
        raise unsupported("response_format", "it cannot be joined with a tool_choice that forces a call")
    if conversation.unfinished and conversation.messages[-1]["role"] != "assistant":
        raise wrong("messages", "only a last message of the assistant can be continued")


def _grammar(conversation: Conversation, model: Loaded) -> object | None:
    if conversation.forced:
        one = conversation.choice.startswith("=")
        lark = model.family.grammar(conversation.callable, conversation.parallel and not one, model.constraints.mark)
        return model.constraints.lark(lark, "tools")
    if conversation.schema is not None:
        return model.constraints.json_schema(conversation.schema, "response_format")
    return None


def _thinking(conversation: Conversation, model: Loaded, text: str) -> bool | None:
    if not model.thinks or conversation.forced or conversation.schema is not None:
        return None
    return text.rstrip().endswith("<think>")


def _explained(messages: list[dict[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Messages for a template that knows no tools: they and their calls are told in words."""
    told: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            _append(told, "user", generic.write_result(message["content"]))
        elif message.get("tool_calls"):
            calls = [
                Call(call["function"]["name"], json.dumps(call["function"]["arguments"], ensure_ascii=False))
                for call in message["tool_calls"]
            ]
            parts = [part for part in (message["content"], generic.write_calls(calls)) if part]
            told.append({"role": "assistant", "content": "\n".join(parts)})
        else:
            told.append(message)
    if not tools:
        return told
    words = generic.explain(tools)
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{words}"}, *told[1:]]
    return [{"role": "system", "content": words}, *told]


def _append(messages: list[dict[str, Any]], role: str, content: str) -> None:
    """Add a message; results of calls made together become one, as templates want roles to alternate."""
    if messages and messages[-1]["role"] == role and messages[-1]["content"].endswith("</tool_response>"):
        messages[-1] = {"role": role, "content": f"{messages[-1]['content']}\n{content}"}
    else:
        messages.append({"role": role, "content": content})


def calls_from(message_calls: Sequence[Mapping[str, Any]], param: str) -> list[dict[str, Any]]:
    """Earlier calls with arguments as objects, which chat templates expect.

    Raises:
        ApiError: arguments are no JSON object.
    """
    out = []
    for call in message_calls:
        text = call["function"]["arguments"]
        try:
            arguments = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise wrong(param, f"the arguments of the call {call['id']!r} are no JSON object")
        function = {"name": call["function"]["name"], "arguments": arguments}
        out.append({"id": call["id"], "type": "function", "function": function})
    return out
