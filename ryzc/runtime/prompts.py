"""Prompts to token ids: plain text, messages through the model's template, or ids as they are."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc.errors import UsageError
from ryzc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ryzc.runtime.chat import ChatTemplate

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message] | npt.NDArray[np.integer[Any]]


class Prompts:
    """Reads prompts for one model; safe to use from several threads.

    Args:
        tokenizer: the model's.
        chat_template: Jinja text, or ``None`` where the model has none.
        vocab_size: ids that the model knows, which may be more than the tokenizer's.

    Attributes:
        template_text: the chat template as given.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.template_text = chat_template
        self._template: ChatTemplate | None = None
        self._compiling = threading.Lock()

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return self.template_text is not None

    def tokenize(self, prompt: Prompt, *, raw: bool = False, **variables: Any) -> list[int]:
        """The ids of a prompt.

        Args:
            prompt: a text, which a model with a chat template takes as a user's message; messages with
                ``role`` and ``content``; or token ids, taken as they are.
            raw: take a text as it is, without the chat template.
            variables: what the template sees beside the messages, e.g. ``tools``.

        Raises:
            UsageError: it is empty, no prompt, or holds ids that the model does not know.
            UserError: the chat template refuses it.
        """
        if isinstance(prompt, np.ndarray):
            prompt = prompt.tolist()
        if isinstance(prompt, str):
            if raw or not self.has_chat_template:
                ids = self.tokenizer.encode(prompt)
            else:
                ids = self.encode_rendered(self.render([{"role": "user", "content": prompt}], **variables))
        elif prompt and all(isinstance(item, Mapping) for item in prompt):
            ids = self.encode_rendered(self.render([item for item in prompt if isinstance(item, Mapping)], **variables))
        elif all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in prompt):
            ids = [int(item) for item in prompt if not isinstance(item, Mapping)]
        else:
            raise UsageError("a prompt is a text, a list of messages or a list of token ids")
        if not ids:
            raise UsageError("the prompt is empty", hint="give the model at least one token")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise UsageError(f"token ids must be in 0 .. {self.vocab_size - 1}")
        return ids

    def render(self, messages: Sequence[Message], **variables: Any) -> str:
        """The text that the chat template makes of messages.

        Raises:
            UsageError: the model has none, or a message lacks its role or content.
            UserError: the template refuses the messages.
        """
        for i, message in enumerate(messages):
            if not isinstance(message.get("role"), str) or "content" not in message:
                raise UsageError(f"message {i} lacks a role or a content")
        return self.template().render(messages, **variables)

    def template(self) -> ChatTemplate:
        """The chat template, compiled when it is first asked for.

        Raises:
            UsageError: the model has none.
            UserError: it is no valid template.
        """
        if self.template_text is None:
            raise UsageError("this model has no chat template", hint="give it a plain text to continue")
        with self._compiling:
            if self._template is None:
                from ryzc.runtime.chat import ChatTemplate  # jinja2 takes a while to import

                eos = self.tokenizer.eos_ids
                self._template = ChatTemplate(
                    self.template_text, self.spell(self.tokenizer.bos_id), self.spell(min(eos) if eos else None)
                )
            return self._template

    def encode_rendered(self, text: str) -> list[int]:
        """The ids of what the chat template made."""
        ids = self.tokenizer.encode(text, add_special=False)
        first = first_token(self.tokenizer)
        # Some templates write the first token out, others leave it to the tokenizer.
        return ids if first is None or ids[:1] == [first] else [first, *ids]

    def spell(self, id_: int | None) -> str:
        """A token's text, control tokens included; none has none."""
        return "" if id_ is None else self.tokenizer.piece(id_, special=True).decode(errors="replace")


def first_token(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text, or ``None``."""
    bos = tokenizer.bos_id
    return bos if bos is not None and tokenizer.encode("")[:1] == [bos] else None
