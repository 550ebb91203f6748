"""A loaded bundle for one caller: text in, text out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ryzc.bundle import Bundle
from ryzc.errors import UsageError
from ryzc.runtime.engine import Engine
from ryzc.runtime.loading import Loaded, load_parts
from ryzc.runtime.prompts import Message, Prompt
from ryzc.runtime.request import Options
from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.step import CompiledModel, StepResult
from ryzc.runtime.stream import Stream
from ryzc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ryzc.runtime.sampling.grammar import Grammar

TOGETHER = 8
"""Unfinished generations that a model keeps in flight."""


def load(
    path: Bundle | str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    weights: str = "auto",
    speculate: str = "auto",
) -> Model:
    """Load a bundle; the arguments are those of :func:`ryzc.runtime.loading.load_parts` and of :class:`Model`.

    Raises:
        BundleError: it is missing, damaged or from another version.
        TargetError: it holds no code that this CPU can run.
        UsageError: an argument is out of range.
    """
    parts = load_parts(path, context=context, sequences=TOGETHER + 1, threads=threads, weights=weights)
    try:
        return Model(parts.compiled, parts.tokenizer, parts.chat_template, speculate=speculate)
    except BaseException:
        parts.compiled.close()
        raise


class Model:
    """An engine that takes its steps in the thread of whoever reads an answer.

    Keys and values of earlier prompts stay as long as there is room: a prompt that begins like one of them, as the
    next turn of a chat does, is computed from the page on where it differs. Several threads and several unfinished
    generations may share a model; they go on together, whoever reads.

    Args:
        compiled: the step, with two rows of the page table at least.
        tokenizer: the model's.
        chat_template: Jinja text, or ``None`` where the model has none.
        speculate: how to guess ahead, see :class:`ryzc.runtime.engine.Engine`.

    Attributes:
        compiled, tokenizer: as given.
        engine: what computes.
        context: tokens that prompt and answer may have together.
    """

    def __init__(
        self,
        compiled: CompiledModel,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        *,
        speculate: str = "auto",
    ) -> None:
        self.compiled = compiled
        self.tokenizer = tokenizer
        self.engine = Engine(
            Loaded(compiled, tokenizer, chat_template), sequences=TOGETHER, background=False, speculate=speculate
        )
        self.context = self.engine.context

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return self.engine.has_chat_template

    def tokenize(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The ids of a prompt, as :meth:`generate` takes it; see :meth:`ryzc.runtime.prompts.Prompts.tokenize`."""
        return self.engine.tokenize(prompt, raw=raw)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        raw: bool = False,
        grammar: Grammar | None = None,
        **sampling: Any,
    ) -> Generation:
        """Continue a prompt.

        Args:
            prompt: a text, which a model with a chat template takes as a user's message; messages with
                ``role`` and ``content``; or token ids, taken as they are.
            max_tokens: at most so many new tokens; ``None`` is up to the end of the context.
            stop: texts that end the generation; they are not part of it.
            raw: take a text as it is, without the chat template.
            grammar: what the text must match, made with :attr:`ryzc.runtime.engine.Engine.grammar_tokens`.
            sampling: fields of :class:`ryzc.runtime.sampling.SamplingParams`: temperature, top_k, seed, ...

        Returns:
            An iterator over pieces of text, which also tells why it ended and how fast it was.

        Raises:
            ContextError: the prompt does not fit into the context.
            UsageError: an argument makes no sense.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        options = Options(sampling=SamplingParams(**sampling), max_tokens=max_tokens, stop=stops, grammar=grammar)
        ids = self.tokenize(prompt, raw=raw)
        self.engine.check_length(len(ids))
        return Generation(self, ids, options)

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """Answer the last of the messages; options as in :meth:`generate`.

        Raises:
            UsageError: the model has no chat template.
        """
        if not self.has_chat_template:
            raise UsageError("this model has no chat template", hint="use generate() with a plain text")
        return self.generate(messages, **options)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token of a sequence, ``float32 [T, V]``.

        Raises:
            ContextError, UsageError: as :meth:`generate`.
        """
        ids = self.tokenize(list(tokens))
        out = np.empty((len(ids), self.compiled.vocab_size), np.float32)
        for start, result in self.evaluate(ids):
            for row in range(len(result.row_max)):
                out[start + row] = result.full(row)
        return out

    def evaluate(self, ids: Sequence[int], first: int = 0) -> Iterator[tuple[int, StepResult]]:
        """See :meth:`ryzc.runtime.engine.Engine.evaluate`."""
        return self.engine.evaluate(ids, first)

    def close(self) -> None:
        """Stop the threads; the model cannot be used afterwards."""
        self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Generation(Iterator[str]):
    """The text that continues a prompt, piece by piece as it comes.

    Attributes:
        prompt_tokens: tokens of the prompt.
        new_ids: the generated tokens, the one that ended the generation included.
        finish_reason: ``None`` while it runs; then ``stop`` (the model ended, or a stop text came),
            ``length`` (``max_tokens``) or ``context`` (the context is full).
        time_to_first_token: seconds from the first ``next()`` to the first token; ``None`` before it.
        decode_seconds: seconds spent on the tokens after the first.
    """

    def __init__(self, model: Model, ids: list[int], options: Options) -> None:
        self._model = model
        self._prompt = ids
        self._options = options
        self._stream: Stream | None = None
        self.prompt_tokens = len(ids)
        self.new_ids: list[int] = []
        self.finish_reason: str | None = None
        self.time_to_first_token: float | None = None
        self.decode_seconds = 0.0

    @property
    def ids(self) -> list[int]:
        """The prompt's tokens and the generated ones."""
        return [*self._prompt, *self.new_ids]

    @property
    def reused_tokens(self) -> int:
        """How many tokens of the prompt were known from earlier ones."""
        return self._stream.usage.cached_tokens if self._stream else 0

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; ``None`` before the second."""
        after_first = len(self.new_ids) - 1
        return after_first / self.decode_seconds if after_first > 0 and self.decode_seconds > 0 else None

    def text(self) -> str:
        """The whole rest of the text."""
        return "".join(self)

    def __next__(self) -> str:
        while self.finish_reason is None:
            start = time.perf_counter()
            if self._stream is None:
                self._stream = self._model.engine.enqueue(self._prompt, self._options)
            delta = next(self._stream)
            seconds = time.perf_counter() - start
            if self.time_to_first_token is not None:
                self.decode_seconds += seconds
            elif delta.ids:
                self.time_to_first_token = seconds
            self.new_ids += delta.ids
            self.finish_reason = delta.finish_reason
            if delta.finish_reason == "length" and len(self.new_ids) != self._options.max_tokens:
                self.finish_reason = "context"
            if delta.text:
                return delta.text
        raise StopIteration
