"""A loaded bundle: text in, text out."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc.bundle import Bundle
from ryzc.errors import ContextError, UsageError
from ryzc.runtime import memory
from ryzc.runtime.pages import PagePool
from ryzc.runtime.sampling import Sampler, SamplingParams
from ryzc.runtime.step import CompiledModel, StepResult
from ryzc.runtime.tokenizer import SETTINGS_FILE, TOKENIZER_FILE, Tokenizer

if TYPE_CHECKING:
    from ryzc.runtime.chat import ChatTemplate

DEFAULT_CONTEXT = 4096
TEMPLATE_FILE = "chat_template.jinja"

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message] | npt.NDArray[np.integer[Any]]


def load(
    path: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    weights: str = "auto",
) -> Model:
    """Load a bundle.

    Args:
        path: its directory.
        context: tokens that prompt and answer may have together; by default 4096, or what the model
            was trained for where that is less.
        threads: by default the usable physical cores.
        weights: ``copy`` into huge pages, ``map`` the file, or ``auto``: copy where there is memory enough.

    Raises:
        BundleError: it is missing, damaged or from another version.
        TargetError: it holds no code that this CPU can run.
        UsageError: an argument is out of range.
    """
    bundle = Bundle.open(path)
    trained = bundle.plan.context_length
    if context is None:
        context = min(trained, DEFAULT_CONTEXT)
    if not 1 <= context <= trained:
        raise UsageError(
            f"a context of {context} tokens is not possible", hint=f"this model was trained for 1 to {trained} tokens"
        )
    template = bundle.text(TEMPLATE_FILE) if bundle.has(TEMPLATE_FILE) else None
    with ThreadPoolExecutor(1) as beside:  # a large vocabulary takes as long as the weights
        tokenizer = beside.submit(read_tokenizer, bundle)
        compiled = CompiledModel(bundle, context=context, threads=threads, weights=weights)
        try:
            model = Model(compiled, tokenizer.result(), template)
            memory.trim()
            return model
        except BaseException:
            compiled.close()
            raise


def read_tokenizer(bundle: Bundle) -> Tokenizer:
    """A bundle's tokenizer."""
    return Tokenizer(bundle.text(TOKENIZER_FILE), json.loads(bundle.text(SETTINGS_FILE)))


class Model:
    """A model that answers one request at a time.

    The keys and values of the last request stay: a prompt that begins like it, as the next turn of a
    chat does, is computed from where it differs. Several threads and several unfinished generations
    may share a model; they take turns.

    Args:
        compiled: the step.
        tokenizer: the model's.
        chat_template: Jinja text, or ``None`` where the model has none.

    Attributes:
        compiled, tokenizer: as given.
        context: tokens that prompt and answer may have together.
    """

    def __init__(self, compiled: CompiledModel, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        self.compiled = compiled
        self.tokenizer = tokenizer
        self.context = compiled.context
        self._template_text = chat_template
        self._template: ChatTemplate | None = None
        self._pool = PagePool(compiled.pages, compiled.page_tokens, compiled.page_table)
        self._cached = np.zeros(self.context, np.int32)
        self._cached_count = 0
        self._lock = threading.RLock()

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return self._template_text is not None

    def tokenize(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The ids of a prompt, as :meth:`generate` takes it.

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
                ids = self._render([{"role": "user", "content": prompt}])
        elif prompt and all(isinstance(item, Mapping) for item in prompt):
            ids = self._render([item for item in prompt if isinstance(item, Mapping)])
        elif all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in prompt):
            ids = [int(item) for item in prompt if not isinstance(item, Mapping)]
        else:
            raise UsageError("a prompt is a text, a list of messages or a list of token ids")
        if not ids:
            raise UsageError("the prompt is empty", hint="give the model at least one token")
        if min(ids) < 0 or max(ids) >= self.compiled.vocab_size:
            raise UsageError(f"token ids must be in 0 .. {self.compiled.vocab_size - 1}")
        return ids

    def _render(self, messages: Sequence[Message]) -> list[int]:
        if self._template_text is None:
            raise UsageError("this model has no chat template", hint="give it a plain text to continue")
        if self._template is None:
            from ryzc.runtime.chat import ChatTemplate  # jinja2 takes a while to import

            eos = self.tokenizer.eos_ids
            self._template = ChatTemplate(
                self._template_text, self._text_of(self.tokenizer.bos_id), self._text_of(min(eos) if eos else None)
            )
        for i, message in enumerate(messages):
            if not isinstance(message.get("role"), str) or "content" not in message:
                raise UsageError(f"message {i} lacks a role or a content")
        ids = self.tokenizer.encode(self._template.render(messages), add_special=False)
        first = first_token(self.tokenizer)
        # Some templates write the first token out, others leave it to the tokenizer.
        return ids if first is None or ids[:1] == [first] else [first, *ids]

    def _text_of(self, id_: int | None) -> str:
        return "" if id_ is None else self.tokenizer.piece(id_, special=True).decode(errors="replace")

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float = SamplingParams.temperature,
        top_k: int = SamplingParams.top_k,
        top_p: float = SamplingParams.top_p,
        min_p: float = SamplingParams.min_p,
        seed: int | None = None,
        repeat_penalty: float = SamplingParams.repeat_penalty,
        repeat_last_n: int = SamplingParams.repeat_last_n,
        stop: str | Sequence[str] = (),
        raw: bool = False,
    ) -> Generation:
        """Continue a prompt.

        Args:
            prompt: a text, which a model with a chat template takes as a user's message; messages with
                ``role`` and ``content``; or token ids, taken as they are.
            max_tokens: at most so many new tokens; ``None`` is up to the end of the context.
            temperature, top_k, top_p, min_p, seed, repeat_penalty, repeat_last_n: see
                :class:`ryzc.runtime.sampling.SamplingParams`.
            stop: texts that end the generation; they are not part of it.
            raw: take a text as it is, without the chat template.

        Returns:
            An iterator over pieces of text, which also tells why it ended and how fast it was.

        Raises:
            ContextError: the prompt does not fit into the context.
            UsageError: an argument makes no sense.
        """
        params = SamplingParams(temperature, top_k, top_p, min_p, seed, repeat_penalty, repeat_last_n)
        if max_tokens is not None and max_tokens < 0:
            raise UsageError(f"max_tokens cannot be {max_tokens}", hint="choose 0 or more")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(stops):
            raise UsageError("a stop text is empty")
        return Generation(self, self.tokenize(prompt, raw=raw), max_tokens, params, stops)

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
        with self._lock:
            for start, result in self.evaluate(ids):
                for row in range(len(result.row_max)):
                    out[start + row] = result.full(row)
        return out

    def evaluate(self, ids: Sequence[int], first: int = 0) -> Iterator[tuple[int, StepResult]]:
        """Run a sequence and give its logits from position ``first`` on, a few rows at a time.

        Yields:
            The position of the first row, and the result, valid until the model is used again.

        Raises:
            ContextError: the sequence does not fit into the context.
        """
        self._check_length(ids)
        array = np.asarray(ids, np.int32)
        size = min(self.compiled.max_tokens, self.compiled.max_rows)
        for start in range(first, len(array), size):
            part = array[: start + size]
            yield start, self._advance(part, len(part) - start)

    def _check_length(self, ids: Sequence[int]) -> None:
        if len(ids) > self.context:
            trained = self.compiled.plan.context_length
            more = f"load the model with a context of at least {len(ids)} (-c {len(ids)})"
            never = f"this model was trained for {trained} tokens: shorten the prompt"
            raise ContextError(
                f"the prompt has {len(ids)} tokens, but the context has {self.context}",
                hint=more if len(ids) <= trained else never,
            )

    def _advance(self, ids: npt.NDArray[np.int32], rows: int, sampler: Sampler | None = None) -> StepResult:
        """Logits after the last ``rows`` of ``ids``, computing what the cache does not hold yet.

        With a sampler, a token for the place after ``ids`` is drawn as it says.
        """
        with self._lock:
            done = self._reusable(ids, rows)
            while len(ids) - done > self.compiled.max_tokens:
                end = min(done + self.compiled.max_tokens, len(ids) - rows)
                self._step(ids[done:end], done, 0, 1)
                done = end
            if sampler is not None:
                sampler.prepare(self.compiled.row_parameters, 0, len(ids))
            return self._step(ids[done:], done, rows, 1 if sampler is None else sampler.candidates)

    def _reusable(self, ids: npt.NDArray[np.int32], rows: int = 1) -> int:
        """Tokens at the start of ``ids`` whose keys and values are there, the last ``rows`` left out."""
        count = min(self._cached_count, len(ids) - rows)
        differs = self._cached[:count] != ids[:count]
        return int(differs.argmax()) if differs.any() else count

    def _step(self, chunk: npt.NDArray[np.int32], start: int, rows: int, candidates: int) -> StepResult:
        """Append a chunk to the first ``start`` tokens of the cache; logits after its last ``rows``."""
        end = start + len(chunk)
        # An interrupt at any point leaves a cache that holds what it says.
        self._cached_count = start
        self._pool.resize(0, end)
        positions = np.arange(start, end, dtype=np.int32)
        wanted = np.arange(len(chunk) - rows, len(chunk), dtype=np.int32)
        result = self.compiled.step(chunk, positions, np.zeros_like(positions), wanted, candidates)
        self._cached[start:end] = chunk
        self._cached_count = end
        return result

    def close(self) -> None:
        """Stop the threads; the model cannot be used afterwards."""
        self.compiled.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Generation(Iterator[str]):
    """The text that continues a prompt, piece by piece as it comes.

    Attributes:
        ids: the prompt's tokens and the generated ones.
        prompt_tokens: tokens of the prompt.
        reused_tokens: how many of them were still in the cache.
        finish_reason: ``None`` while it runs; then ``stop`` (the model ended, or a stop text came),
            ``length`` (``max_tokens``) or ``context`` (the context is full).
        time_to_first_token: seconds from the first ``next()`` to the first token; ``None`` before it.
        decode_seconds: seconds spent on the tokens after the first.
    """

    def __init__(
        self, model: Model, ids: list[int], max_tokens: int | None, params: SamplingParams, stops: tuple[str, ...]
    ) -> None:
        model._check_length(ids)
        self._model = model
        self._buffer = np.zeros(model.context + 1, np.int32)
        self._buffer[: len(ids)] = ids
        self._count = self.prompt_tokens = len(ids)
        self._limit = max_tokens
        self._sampler = Sampler(
            params,
            vocab_size=model.compiled.vocab_size,
            max_candidates=model.compiled.max_candidates,
            prompt=ids,
        )
        self._detokenizer = model.tokenizer.stream()
        self._held = StopFilter(stops)
        self.reused_tokens = 0
        self.finish_reason: str | None = None
        self.time_to_first_token: float | None = None
        self.decode_seconds = 0.0

    @property
    def ids(self) -> list[int]:
        return [int(id_) for id_ in self._buffer[: self._count]]

    @property
    def new_ids(self) -> list[int]:
        """The generated tokens, the one that ended the generation included."""
        return self.ids[self.prompt_tokens :]

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; ``None`` before the second."""
        after_first = self._count - self.prompt_tokens - 1
        return after_first / self.decode_seconds if after_first > 0 and self.decode_seconds > 0 else None

    def text(self) -> str:
        """The whole rest of the text."""
        return "".join(self)

    def __next__(self) -> str:
        while self.finish_reason is None:
            if self._limit is not None and self._count - self.prompt_tokens >= self._limit:
                piece = self._finish("length")
            elif self._count > self._model.context:
                piece = self._finish("context")
            else:
                piece = self._push(self._next_id())
            if piece:
                return piece
        raise StopIteration

    def _next_id(self) -> int:
        model = self._model
        start = time.perf_counter()
        with model._lock:
            ids = self._buffer[: self._count]
            if self.time_to_first_token is None:
                self.reused_tokens = model._reusable(ids)
            id_ = int(model._advance(ids, 1, self._sampler).drawn[0])
        self._sampler.accept(id_)
        self._buffer[self._count] = id_
        self._count += 1
        seconds = time.perf_counter() - start
        if self.time_to_first_token is None:
            self.time_to_first_token = seconds
        else:
            self.decode_seconds += seconds
        return id_

    def _push(self, id_: int) -> str:
        if id_ in self._model.tokenizer.eos_ids:
            return self._finish("stop")
        piece = self._held.push(self._detokenizer.push(id_))
        if self._held.stopped:
            self.finish_reason = "stop"
        return piece

    def _finish(self, reason: str) -> str:
        self.finish_reason = reason
        piece = self._held.push(self._detokenizer.flush())
        return piece if self._held.stopped else piece + self._held.flush()


class StopFilter:
    """Lets text through until a stop text comes, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What can be said for sure not to belong to a stop text."""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            kept, self._held = self._held[: min(found)], ""
            return kept
        held = max((self._overlap(stop) for stop in self._stops), default=0)
        safe = len(self._held) - held
        text, self._held = self._held[:safe], self._held[safe:]
        return text

    def flush(self) -> str:
        """What was held back, once nothing more comes."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """Characters at the end of the held text that begin a stop text."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def first_token(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text, or ``None``."""
    bos = tokenizer.bos_id
    return bos if bos is not None and tokenizer.encode("")[:1] == [bos] else None
