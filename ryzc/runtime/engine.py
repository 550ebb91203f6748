"""The engine: many requests, one compiled step.

The life of a request:

1. :meth:`Engine.submit` turns the prompt into tokens in the caller's thread, refuses what cannot fit, and puts the
   request into a bounded queue. The caller holds a :class:`~ryzc.runtime.stream.Stream`.
2. At the start of a step the engine takes in what was submitted: each choice becomes a sequence with its own sampler.
3. The scheduler lets sequences begin, the one due earliest first, as far as rows of the page table and pages of the KV
   pool go. A sequence takes over the pages of the longest prefix that the pool remembers.
4. The rest of its prompt is computed in pieces, beside the tokens of sequences that are further on.
5. The step that computes the last piece also draws its first token; from then on it takes a token a step, and with
   speculation some guesses behind it, of which those are kept that the model would have drawn itself.
6. Each drawn token goes through the detokenizer and the stop texts into the stream. Pages that became full can be
   found by others from now on.
7. Where pages run out, the sequence due last gives its own back and waits again, as in 3, with what it has so far as
   its prompt; it loses time only.
8. It ends by the model's own end, a stop text, a limit, a deadline or its reader's wish; its pages become cache, and
   the stream gives its last delta.

A token is drawn by (seed, position) alone and computed to the same bits whatever shares the step, so that a request's
answer does not depend on any other's.
"""

from __future__ import annotations

import heapq
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryzc import targets
from ryzc.bundle import Bundle
from ryzc.errors import ContextError, InternalError, OverloadError, RyzcError, UsageError
from ryzc.runtime import speculation
from ryzc.runtime.kv import PagePool, sizing
from ryzc.runtime.kv.eviction import DEFAULT
from ryzc.runtime.kv.eviction import get as eviction_policy
from ryzc.runtime.kv.saved import SavedPrefixes, identity
from ryzc.runtime.kv.sizing import MemoryWatch
from ryzc.runtime.loading import Loaded, context_of, load_parts
from ryzc.runtime.logprobs import token_logprob
from ryzc.runtime.metrics import Metrics
from ryzc.runtime.prompts import Prompt, Prompts
from ryzc.runtime.request import Delta, Options, Request, Sequence, TokenLogprob
from ryzc.runtime.sampling import Sampler
from ryzc.runtime.scheduler import Part, Scheduler, due_time
from ryzc.runtime.speculation import Drafter
from ryzc.runtime.speculation.cost import CostModel
from ryzc.runtime.speculation.draft_model import DraftModel
from ryzc.runtime.speculation.speculator import Speculator
from ryzc.runtime.step import CompiledModel, StepResult
from ryzc.runtime.stream import Bell, Outbox, Stream

if TYPE_CHECKING:
    from ryzc.runtime.sampling.grammar import GrammarTokens

SEQUENCES = 16
"""Sequences that may run together, by default."""
QUEUE = 256
"""Requests that may wait, by default."""
PAUSE = 0.002
"""Seconds before another look, where an evaluation holds the pages that requests wait for."""


class Engine:
    """Answers many requests at once.

    Args:
        bundle: opened, its directory, or parts that were loaded already (with a row of the page table more than
            ``sequences``).
        context: tokens that prompt and answer of a request may have together, see :func:`.loading.load_parts`.
        sequences: how many sequences run together at most; a request has one a choice.
        threads: worker threads; by default the usable physical cores.
        weights: ``copy``, ``map`` or ``auto``.
        kv_memory: bytes for keys and values; by default as much as all sequences need at full context, within half of
            the free memory.
        queue: requests that may wait.
        eviction: which cached prefix goes first, see :mod:`ryzc.runtime.kv.eviction`.
        speculate: which drafter guesses ahead, see :mod:`ryzc.runtime.speculation`; ``off`` for none. It changes the
            speed, never an answer.
        draft: the bundle of a smaller model with the same vocabulary, which guesses instead.
        background: run in a thread of its own; otherwise the steps are taken by whoever reads a stream.
        clock: seconds that never go back.

    Attributes:
        tokenizer, context: of the model.
        speculator: guesses ahead; may be exchanged while nothing runs.
        prompts: reads prompts.
        metrics: what was counted.

    Raises:
        BundleError, TargetError, UsageError.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path | Loaded,
        *,
        context: int | None = None,
        sequences: int = SEQUENCES,
        threads: int | None = None,
        weights: str = "auto",
        kv_memory: int | None = None,
        queue: int = QUEUE,
        eviction: str = DEFAULT,
        speculate: str = "auto",
        draft: Bundle | str | Path | None = None,
        background: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if sequences < 1 or queue < 0:
            raise UsageError(f"{sequences} sequences and a queue of {queue} make no sense")
        if isinstance(bundle, Loaded):
            loaded = bundle
        else:
            loaded = _load(bundle, context, sequences, threads, weights, kv_memory)
        self.compiled = compiled = loaded.compiled
        self.tokenizer = loaded.tokenizer
        self.prompts = Prompts(loaded.tokenizer, loaded.chat_template, compiled.vocab_size)
        self.metrics = Metrics()
        self.pool = PagePool(
            compiled.pages,
            compiled.page_tokens,
            compiled.page_table,
            copy_page=compiled.copy_page,
            policy=eviction_policy(eviction)(compiled.pages),
        )
        self.context = min(compiled.context, compiled.pages * compiled.page_tokens)
        self.scheduler = Scheduler(
            self.pool,
            self.metrics,
            max_tokens=compiled.max_tokens,
            max_rows=compiled.max_rows,
            rows=range(min(sequences, compiled.max_rows, len(compiled.page_table) - 1) - 1, -1, -1),
        )
        self._watch = MemoryWatch(
            self.pool,
            compiled.plan.kv.page_bytes,
            compiled.give_back,
            most=kv_memory,
            least=-(-self.context // compiled.page_tokens),
        )
        self.speculator = self.open_speculator(speculate, draft)
        self._scratch = len(compiled.page_table) - 1
        self._queue = queue
        self._clock = clock
        self._inbox: deque[Request] = deque()
        self._deadlines: list[float] = []
        self._cancelled = False
        self._bell = Bell()
        self._lock = threading.RLock()
        self._evaluating = threading.Lock()
        self._attention = threading.Event()
        self._open = True
        self._closed = False
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._work, name="ryzc-engine", daemon=True)
            self._thread.start()

    # --- callers --------------------------------------------------------------------------------

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return self.prompts.has_chat_template

    @cached_property
    def grammar_tokens(self) -> GrammarTokens:
        """What a :class:`ryzc.runtime.sampling.grammar.Grammar` for this model is made with.

        Raises:
            UsageError: llguidance is not installed, or the model has no token that ends an answer.
        """
        from ryzc.runtime.sampling.grammar import GrammarTokens  # an optional dependency

        return GrammarTokens(self.tokenizer, self.compiled.vocab_size)

    def tokenize(self, prompt: Prompt, *, raw: bool = False, **variables: Any) -> list[int]:
        """The ids of a prompt, see :meth:`ryzc.runtime.prompts.Prompts.tokenize`."""
        return self.prompts.tokenize(prompt, raw=raw, **variables)

    def submit(self, prompt: Prompt, *, raw: bool = False, **options: Any) -> Stream:
        """Ask for an answer.

        Args:
            prompt: see :meth:`tokenize`.
            raw: take a text as it is, without the chat template.
            options: fields of :class:`ryzc.runtime.request.Options`.

        Returns:
            The answer as it comes. A stream that nobody holds any more cancels its request.

        Raises:
            ContextError: the prompt does not fit.
            OverloadError: the queue is full, or the engine is closing.
            UsageError: an argument makes no sense.
        """
        return self.enqueue(self.tokenize(prompt, raw=raw), Options(**options))

    def enqueue(self, ids: Items[int], options: Options) -> Stream:
        """As :meth:`submit`, of a prompt in tokens and with checked options."""
        self.check_length(len(ids))
        if not self._open:
            raise OverloadError("the engine is closing and takes no more requests", retry_after=5)
        if len(self._inbox) + self.scheduler.waiting >= self._queue + self.scheduler.free_rows:
            self.metrics.requests_refused += 1
            raise OverloadError(f"{self._queue} requests are waiting already", retry_after=self._wait_expected())
        request = Request(ids, options, self._clock(), Outbox())
        stream = Stream(request, None if self._thread else self._drive, self._cancel)
        self._inbox.append(request)
        self._attention.set()
        if self._closed:  # meanwhile, and nobody looks into the inbox any more
            self._dismiss()
        return stream

    def check_length(self, tokens: int) -> None:
        """Raise a :class:`ContextError` where a prompt of so many tokens does not fit."""
        if tokens <= self.context:
            return
        trained = self.compiled.plan.context_length
        more = f"load the model with a context of at least {tokens} (-c {tokens})"
        never = f"this model was trained for {trained} tokens: shorten the prompt"
        raise ContextError(
            f"the prompt has {tokens} tokens, but the context has {self.context}",
            hint=more if tokens <= trained else never,
        )

    def evaluate(self, ids: Items[int], first: int = 0) -> Iterator[tuple[int, StepResult]]:
        """Run a sequence and give its logits from position ``first`` on, a few rows at a time.

        Yields:
            The position of the first row, and the result, valid until the engine steps again.

        Raises:
            ContextError: the sequence does not fit into the context or, beside what runs, into the pool.
        """
        self.check_length(len(ids))
        size = min(self.compiled.max_tokens, self.compiled.max_rows)
        whole = first - first % self.pool.page_tokens
        with self._evaluating:
            yield from self._evaluate(ids, first, whole, size)

    def _evaluate(self, ids: Items[int], first: int, whole: int, size: int) -> Iterator[tuple[int, StepResult]]:
        try:
            with self._lock:
                done = self.pool.adopt(self._scratch, ids[:whole])
                self.pool.resize(self._scratch, len(ids))
            while done < len(ids):
                rows = done >= first
                end = min(done + (size if rows else self.compiled.max_tokens), len(ids) if rows else first)
                positions = range(done, end)
                with self._lock:
                    result = self.compiled.step(
                        ids[done:end], positions, [self._scratch] * len(positions), range(end - done if rows else 0)
                    )
                if rows:
                    yield done, result
                done = end
        finally:
            with self._lock:
                self.pool.release(self._scratch)

    def save_prefix(self, path: str | Path, ids: Items[int], salt: str = "") -> int:
        """Write the keys and values of a prompt's whole pages to a file, as far as they are cached.

        Returns:
            How many tokens were saved.

        Raises:
            UserError: nothing of it is cached, or the file cannot be written.
        """
        with self._lock:
            return self._saved().save(path, ids, salt)

    def restore_prefix(self, path: str | Path, salt: str = "") -> int:
        """Make a saved prefix known again, as much of it as there is room for.

        Returns:
            How many tokens it has.

        Raises:
            UserError: the file is missing, damaged or another model's; nothing has changed then.
        """
        with self._evaluating, self._lock:
            return len(self._saved().restore(path, self._scratch, salt))

    def _saved(self) -> SavedPrefixes:
        compiled = self.compiled
        return SavedPrefixes(self.pool, compiled.kv, compiled.plan.kv.page_bytes, identity(compiled.bundle))

    def open_speculator(self, name: str, draft: Bundle | str | Path | None = None) -> Speculator | None:
        """What guesses ahead for this model, to be set as :attr:`speculator`; ``None`` for ``off``.

        Args:
            name: of a drafter.
            draft: the bundle of a smaller model, which guesses instead.

        Raises:
            UsageError: there is no such drafter, or the vocabularies differ.
        """
        plan = self.compiled.plan
        if draft is not None:
            drafter: Drafter = DraftModel.load(
                draft,
                self.compiled.bundle,
                context=self.context,
                sequences=len(self.compiled.page_table) - 1,
                threads=self.compiled.threads,
            )
        elif name == "off":
            return None
        else:
            drafter = speculation.get(name)
        macs = plan.macs_per_token + plan.head_macs
        return Speculator(drafter, CostModel(head_share=plan.head_macs / macs if macs else 0.0))

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait for those that were taken; whether they all ended in time."""
        self._open = False
        end = None if timeout is None else self._clock() + timeout
        while self._inbox or self.scheduler.busy:
            if end is not None and self._clock() >= end:
                return False
            if self._thread is None:
                self.step()
            else:
                time.sleep(0.005)
        return True

    def close(self, *, drain: bool = False) -> None:
        """End: requests that still run are cancelled, unless they are waited for first."""
        self._open = False
        if drain:
            self.drain()
        thread, self._thread = self._thread, None
        self._attention.set()
        if thread is not None:
            thread.join()
        self._closed = True
        self._dismiss()
        self.compiled.close()

    def _dismiss(self) -> None:
        """End all that was submitted."""
        with self._lock:
            self._take_in(self._clock())
            for sequence in self.scheduler.sequences():
                self._end(sequence, "cancelled")
            self._bell.ring()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the loop -------------------------------------------------------------------------------

    def _work(self) -> None:
        """The engine's thread: steps while there is work, sleeps while there is none."""
        while True:
            self._attention.clear()
            if self._thread is None:  # asked after clearing: a call to end that comes later is not lost
                return
            try:
                worked, patience = self.step(), self._patience()
            except Exception:
                worked, patience = False, PAUSE  # its requests know; what comes next may fare better
            if not worked:
                self._attention.wait(patience)

    def _patience(self) -> float | None:
        """Seconds until there may be something to do; ``None`` where only a caller can bring it."""
        return PAUSE if self.scheduler.busy else None

    def _drive(self) -> None:
        """A step, by a reader who needs one."""
        if not self.step() and self.scheduler.busy:
            time.sleep(PAUSE)

    def step(self) -> bool:
        """Take one step; whether anything was computed.

        Raises:
            Exception: the step failed; the requests in it have ended with an error.
        """
        with self._lock:
            begin = time.perf_counter()
            now = self._clock()
            parts: list[Part] = []
            native = 0.0
            try:
                self._watch.look()
                self._take_in(now)
                self._end_early(now)
                self.scheduler.admit()
                parts = self.scheduler.plan(self._draft if self.speculator else None)
                if parts:
                    native = self._compute(parts, now)
            except Exception as error:
                # Where planning itself failed, nobody could go on: all that runs ends.
                self._fail([part.sequence for part in parts] or self.scheduler.sequences(), error)
                raise
            finally:
                self._bell.ring()
                self._gauge()
            if parts:
                self.metrics.schedule_seconds.observe(time.perf_counter() - begin - native)
            return bool(parts)

    def _take_in(self, now: float) -> None:
        """Turn submitted requests into waiting sequences."""
        while self._inbox:
            request = self._inbox.popleft()
            self.metrics.requests_submitted += 1
            try:
                request.sequences = self._sequences(request)
            except Exception as error:
                self._fail_request(request, error)
                continue
            if request.deadline is not None:
                heapq.heappush(self._deadlines, request.deadline)
            for sequence in request.sequences:
                self.scheduler.add(sequence)
                if sequence.limit == len(request.prompt) and request.options.prompt_logprobs is None:
                    self._end(sequence, "length")

    def _sequences(self, request: Request) -> list[Sequence]:
        """A sequence for each choice of a request."""
        options = request.options
        seed = secrets.randbits(64) if options.sampling.seed is None else options.sampling.seed
        most = self.context + 1 - len(request.prompt)
        limit = len(request.prompt) + (most if options.max_tokens is None else min(options.max_tokens, most))
        due = due_time(request.arrival, request.deadline, options.priority)
        result = []
        for i in range(options.n):
            sampler = Sampler(
                replace(options.sampling, seed=(seed + i) % (1 << 64)),
                vocab_size=self.compiled.vocab_size,
                max_candidates=self.compiled.max_candidates,
                prompt=request.prompt,
                grammar=options.grammar,
            )
            result.append(Sequence(request, i, sampler=sampler, tokenizer=self.tokenizer, limit=limit, due=due))
        return result

    def _end_early(self, now: float) -> None:
        """End what was cancelled or is too late."""
        if not self._cancelled and not (self._deadlines and self._deadlines[0] <= now):
            return
        self._cancelled = False
        while self._deadlines and self._deadlines[0] <= now:
            heapq.heappop(self._deadlines)
        for sequence in self.scheduler.sequences():
            if sequence.request.cancelled:
                self._end(sequence, "cancelled")
            elif sequence.request.deadline is not None and now >= sequence.request.deadline:
                self._end(sequence, "timeout")

    def _cancel(self) -> None:
        """A stream was cancelled, in any thread."""
        self._cancelled = True
        self._attention.set()

    def _compute(self, parts: list[Part], now: float) -> float:
        """Run a step and give out what it drew; seconds of the native call."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        rows: list[int] = []
        candidates = max(1, self.speculator.candidates) if self.speculator else 1
        for part in parts:
            sequence = part.sequence
            if sequence.request.first_step is None:
                self._begin(sequence.request, part, now)
            part.first_row = len(rows)
            if part.draws and not self._prepare(part):
                continue
            candidates = max(candidates, sequence.candidates)
            end = len(tokens) + part.tokens
            tokens += sequence.ids[part.start : part.start + part.tokens - len(part.drafts)]
            tokens += part.drafts
            positions += range(part.start, part.start + part.tokens)
            sequences += [sequence.row] * part.tokens
            rows += range(end - part.rows, end)
            if sequence.raw_rows:
                rows += range(end - part.rows, end)
        if not tokens:
            return 0.0
        result = self.compiled.step(tokens, positions, sequences, rows, candidates)
        seconds = result.seconds
        self.metrics.steps += 1
        self.metrics.step_seconds.observe(seconds)
        self.metrics.step_tokens.observe(len(tokens))
        if self.speculator:
            self.speculator.measured(len(tokens), len(rows), seconds)
        self._commit(parts, result)
        return seconds

    def _begin(self, request: Request, part: Part, now: float) -> None:
        """Count a request that runs for the first time."""
        request.first_step = now
        request.usage.cached_tokens = part.start
        self.metrics.queue_seconds.observe(now - request.arrival)
        self.metrics.prompt_tokens += len(request.prompt)
        self.metrics.cached_tokens += part.start

    def _prepare(self, part: Part) -> bool:
        """Tell native code how to draw in a part's rows; drafts that can never be drawn are left out.

        Returns:
            Whether that can be done; otherwise the request has failed.
        """
        first = part.first_row + part.rows - part.draws  # nothing is drawn in rows of the prompt's logprobs
        sequence = part.sequence
        try:
            prepared = sequence.sampler.prepare(self.compiled.row_parameters, first, len(sequence.ids), part.drafts)
        except RyzcError as error:
            self._fail([part.sequence], error)
            return False
        dropped = part.draws - prepared
        if dropped:
            part.drafts = part.drafts[: len(part.drafts) - dropped]
            part.tokens -= dropped
            part.rows -= dropped
            part.draws -= dropped
        return True

    def _draft(self, decoding: list[Sequence], most: int) -> list[list[int]]:
        """Guesses at what follows each sequence, see :class:`ryzc.runtime.scheduler.Drafts`."""
        speculator = self.speculator
        assert speculator is not None
        room = []
        for sequence in decoding:
            if sequence.drafting is None:
                private = bool(sequence.request.options.salt)
                draw = None if sequence.sampler.params.temperature == 0 else Coupled(sequence.sampler)
                sequence.drafting = speculator.open(sequence.ids, private=private, draw=draw)
            end = min(sequence.limit - 1, self.context)
            room.append(0 if sequence.raw_rows else end - len(sequence.ids))
        return speculator.draft([s.drafting for s in decoding if s.drafting], room, most=most)

    def _commit(self, parts: list[Part], result: StepResult) -> None:
        """Give out what a step drew."""
        now = self._clock()
        drawn: list[int] = result.drawn.tolist()
        for part in parts:
            sequence = part.sequence
            if sequence.row < 0:  # its request has failed
                continue
            if sequence.request.options.prompt_logprobs is not None and part.rows > part.draws:
                self._tell_prompt(part, result)
            if part.draws:
                self._accept(part, drawn, result, now)
            else:
                sequence.computed = part.start + part.tokens
            if sequence.row < 0:  # its request has failed
                continue
            self.scheduler.publish(sequence)
            if sequence.finish_reason is not None:
                self._retire(sequence, now)

    def _accept(self, part: Part, drawn: list[int], result: StepResult, now: float) -> None:
        """Append a drawn token, and those after it whose drafts were right."""
        sequence = part.sequence
        options = sequence.request.options
        first = part.first_row + part.rows - part.draws
        if len(sequence.ids) == sequence.limit:  # only the prompt's logprobs were wanted
            sequence.computed = part.start + part.tokens
            sequence.finish_reason = "length"
            sequence.request.outbox.put(Delta(sequence.index, "", (), (), "length"), self._bell)
            return
        ids: list[int] = []
        text = ""
        for row, guess in zip(range(first, first + part.draws), (*part.drafts, -1), strict=True):
            id_ = drawn[row]
            try:
                text += sequence.push(id_, self.tokenizer.eos_ids)
            except RyzcError as error:
                self._fail([sequence], error)
                return
            ids.append(id_)
            if sequence.finish_reason is not None or guess != id_:
                break
        sequence.computed = part.start + part.tokens - len(part.drafts) + len(ids) - 1
        logprobs: tuple[TokenLogprob, ...] = ()
        if options.logprobs is not None:
            raw = first + (part.rows if sequence.raw_rows else 0)
            logprobs = tuple(token_logprob(result, raw + i, id_, options.logprobs) for i, id_ in enumerate(ids))
        if sequence.drafting is not None and self.speculator:
            sequence.drafting.drafted = len(part.drafts)
            self.speculator.extend(sequence.drafting, ids, result.ids[first : first + part.draws])
        self._count(sequence, len(ids), len(part.drafts), now)
        sequence.request.outbox.put(
            Delta(sequence.index, text, tuple(ids), logprobs, sequence.finish_reason), self._bell
        )

    def _tell_prompt(self, part: Part, result: StepResult) -> None:
        """Logprobs of the prompt's tokens that follow the rows of a part."""
        request, top = part.sequence.request, part.sequence.request.options.prompt_logprobs
        assert top is not None
        for row in range(part.tokens):
            following = part.start + row + 1
            if following < len(request.prompt) and following == len(request.prompt_logprobs) + 1:
                entry = token_logprob(result, part.first_row + row, request.prompt[following], top)
                request.prompt_logprobs.append(entry)

    def _count(self, sequence: Sequence, tokens: int, drafts: int, now: float) -> None:
        metrics, request = self.metrics, sequence.request
        if sequence.last_token:
            metrics.inter_token_seconds.observe((now - sequence.last_token) / tokens, tokens)
        else:
            metrics.time_to_first_token_seconds.observe(now - request.arrival)
        sequence.last_token = now
        request.usage.completion_tokens += tokens
        metrics.generation_tokens += tokens
        metrics.drafts_proposed += drafts
        metrics.drafts_accepted += tokens - 1

    # --- ends -----------------------------------------------------------------------------------

    def _end(self, sequence: Sequence, reason: str) -> None:
        """End a sequence before the model does."""
        sequence.finish_reason = reason
        text = sequence.filter.push(sequence.detokenizer.flush())
        text += sequence.filter.flush()
        sequence.request.outbox.put(Delta(sequence.index, text, (), (), reason), self._bell)
        self._retire(sequence, self._clock())

    def _retire(self, sequence: Sequence, now: float) -> None:
        """Take an ended sequence out, and its request once it was the last."""
        self.scheduler.remove(sequence)
        request = sequence.request
        if all(other.finish_reason is not None for other in request.sequences):
            self.metrics.requests_finished[sequence.finish_reason or "error"] += 1
            self.metrics.request_seconds.observe(now - request.arrival)
            request.outbox.put(None, self._bell)

    def _fail(self, sequences: list[Sequence], error: Exception) -> None:
        """End the requests of sequences that cannot go on."""
        failed = {id(sequence.request): sequence.request for sequence in sequences}
        for request in failed.values():
            self._fail_request(request, error)

    def _fail_request(self, request: Request, error: Exception) -> None:
        """Take a request's sequences out, and tell its reader why."""
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                sequence.finish_reason = "error"
                self.scheduler.remove(sequence)
        self.metrics.requests_finished["error"] += 1
        if isinstance(error, RyzcError):
            message = error
        else:
            message = InternalError(f"the step failed: {error!r}")
            message.__cause__ = error
        request.outbox.put(message, self._bell)

    # --- figures --------------------------------------------------------------------------------

    def _gauge(self) -> None:
        metrics, pool = self.metrics, self.pool
        metrics.requests_running = len(self.scheduler.running)
        metrics.requests_waiting = self.scheduler.waiting
        metrics.kv_pages_used = pool.used
        metrics.kv_pages_total = pool.pages

    def _wait_expected(self) -> int:
        """Seconds after which a refused request may be taken: what those before it will need, roughly."""
        seconds = self.metrics.request_seconds
        mean = seconds.total / seconds.count if seconds.count else 1.0
        together = max(1, len(self.scheduler.running))
        return max(1, math.ceil(mean * self._queue / together))


class Coupled:
    """Lets a draft model draw with the noise of a request."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def prepare(self, model: CompiledModel, row: int, position: int, drafts: Items[int]) -> None:
        """See :class:`ryzc.runtime.speculation.Draw`."""
        self._sampler.foresee(model.row_parameters, row, position, drafts)

    def drawn(self, result: StepResult, row: int) -> int:
        """See :class:`ryzc.runtime.speculation.Draw`."""
        return int(result.drawn[row])


def _load(
    bundle: Bundle | str | Path,
    context: int | None,
    sequences: int,
    threads: int | None,
    weights: str,
    kv_memory: int | None,
) -> Loaded:
    """Load a bundle with a pool for so many sequences."""
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    kv, context = opened.plan.kv, context_of(opened, context)
    free = targets.free_memory()
    pages = sizing.pages(
        kv.page_bytes,
        kv.page_tokens,
        context=context,
        sequences=sequences,
        memory=kv_memory,
        free=None if free is None else max(0, free - sum(weight.bytes for weight in opened.plan.weights)),
    )
    return load_parts(opened, context=context, sequences=sequences + 1, threads=threads, pages=pages, weights=weights)
