"""A stand-in for an engine: it says what a test tells it to, through real requests, streams and stop texts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from ryzc.errors import ContextError, OverloadError, RyzcError
from ryzc.runtime.metrics import Metrics
from ryzc.runtime.request import Delta, Options, Request, TokenLogprob
from ryzc.runtime.request import Sequence as RunningSequence
from ryzc.runtime.stops import StopFilter
from ryzc.runtime.stream import Bell, Outbox, Stream
from ryzc.runtime.tokenizer import Tokenizer


class FakeEngine:
    """Says a text, a token at a time.

    Args:
        tokenizer: of the model that it stands in for.
        say: the text, or what makes it of a request and the index of a choice.
        pause: seconds between tokens.
        queue: requests that may run at the same time.

    Attributes:
        requests: all that came.
        fail_after: tokens after which a request fails.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        say: str | Callable[[Request, int], str] = "Hello world!",
        *,
        context: int = 4096,
        pause: float = 0.0,
        queue: int = 64,
    ) -> None:
        self.tokenizer, self.context, self.metrics = tokenizer, context, Metrics()
        self.say, self.pause, self.queue = say, pause, queue
        self.requests: list[Request] = []
        self.fail_after: int | None = None
        self.closed = False
        self.running = 0
        self._bell = Bell()

    def submit(self, prompt: Sequence[int], **options: Any) -> Stream:
        if len(prompt) > self.context:
            raise ContextError("the prompt does not fit")
        if self.running >= self.queue:
            raise OverloadError("too many requests", retry_after=2)
        request = Request(prompt, Options(**options), time.monotonic(), Outbox())
        request.usage.cached_tokens = min(3, len(prompt) - 1)
        self.requests.append(request)
        self.running += 1
        self.metrics.requests_submitted += 1
        threading.Thread(target=self._answer, args=(request,), daemon=True).start()
        return Stream(request, None, lambda: None)

    def close(self, *, drain: bool = False) -> None:
        self.closed = True

    def _answer(self, request: Request) -> None:
        options = request.options
        if options.prompt_logprobs is not None:
            request.prompt_logprobs = [self._logprob(id_, options.prompt_logprobs) for id_ in request.prompt[1:]]
        try:
            for index in range(options.n):
                self._choice(request, index)
            request.outbox.put(None, self._bell)
        except RyzcError as error:
            request.outbox.put(error, self._bell)
        finally:
            self.running -= 1
            self._bell.ring()

    def _choice(self, request: Request, index: int) -> None:
        options = request.options
        text = self.say if isinstance(self.say, str) else self.say(request, index)
        ids = [*self.tokenizer.encode(text, add_special=False), min(self.tokenizer.eos_ids)]
        sequence = SimpleNamespace(index=index, stop_hit=None, finish_reason=None)
        request.sequences.append(cast(RunningSequence, sequence))
        filter_, detokenizer = StopFilter(options.stop), self.tokenizer.stream()
        for count, id_ in enumerate(ids, 1):
            if self.fail_after is not None and count > self.fail_after:
                raise RyzcError("the step failed")
            if self.pause:
                time.sleep(self.pause)
            reason, said = None, ""
            if request.cancelled:
                reason, id_ = "cancelled", -1
            elif id_ in self.tokenizer.eos_ids:
                reason, said = "stop", filter_.push(detokenizer.flush()) + filter_.flush()
            else:
                said = filter_.push(detokenizer.push(id_))
                if filter_.stopped:
                    reason, sequence.stop_hit = "stop", filter_.hit
                elif count == options.max_tokens:
                    reason, said = "length", said + filter_.flush()
            sequence.finish_reason = reason
            drawn = () if id_ < 0 else (id_,)
            logprobs = () if options.logprobs is None else tuple(self._logprob(i, options.logprobs) for i in drawn)
            request.usage.completion_tokens += len(drawn)
            request.outbox.put(Delta(index, said, drawn, logprobs, reason), self._bell)
            self._bell.ring()
            if reason is not None:
                return

    def _logprob(self, id_: int, top: int) -> TokenLogprob:
        best = [(id_, -0.5), *((other, -2.0 - other) for other in range(10, 10 + top - 1))]
        return TokenLogprob(id_, -0.5, tuple(best[:top]))
