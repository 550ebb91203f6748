"""A request, the sequences that answer it, and what comes out of them."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzc.errors import UsageError
from ryzc.runtime.sampling import Sampler, SamplingParams
from ryzc.runtime.stops import StopFilter
from ryzc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ryzc.runtime.sampling.grammar import Grammar
    from ryzc.runtime.speculation.speculator import Running
    from ryzc.runtime.stream import Outbox

MAX_PRIORITY = 1000
MAX_CHOICES = 128


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable a token was before penalties, masks and temperature.

    Attributes:
        id: the token.
        logprob: natural logarithm of its probability.
        top: the most probable tokens at its place and their logarithms, best first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Delta:
    """What a step added to one choice.

    Attributes:
        index: of the choice.
        text: what became sure; a character or stop text that may still change is held back.
        ids: the tokens drawn, the one that ended the choice included.
        logprobs: one a token of ``ids``, where they were asked for.
        finish_reason: ``None`` before the end of the choice; then ``stop``, ``length``, ``cancelled`` or ``timeout``.
    """

    index: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True)
class Choice:
    """A finished answer: the deltas of an index, joined. ``stop_hit`` is the text or id that ended it."""

    index: int
    text: str
    ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] = ()
    stop_hit: str | int | None = None


@dataclass
class Usage:
    """Tokens of a request.

    Attributes:
        prompt_tokens: of the prompt.
        cached_tokens: how many of them were found in the prefix cache.
        completion_tokens: drawn, of all choices.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Options:
    """How to answer a prompt.

    Attributes:
        sampling: how tokens are drawn.
        max_tokens: at most so many new tokens a choice; ``None`` is up to the end of the context.
        stop: texts that end a choice and are no part of it.
        stop_ids: tokens that do the same, beside the model's own.
        ignore_eos: go on after the model's own end.
        n: choices; choice ``i`` draws with the seed plus ``i``.
        logprobs: most probable tokens to tell beside each one drawn, 0 for the drawn one's alone; ``None``: nothing.
        prompt_logprobs: the same for the prompt's tokens after the first.
        priority: higher is served earlier; a request that has waited counts as if it had more.
        timeout: seconds after which the request ends, wherever it stands; ``None`` is never.
        salt: only requests of the same salt share a prefix.
        grammar: what the text must match.

    Raises:
        UsageError: a value is out of range.
    """

    sampling: SamplingParams = SamplingParams()  # noqa: RUF009 - frozen
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    timeout: float | None = None
    salt: str = ""
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _require(self.max_tokens is None or self.max_tokens >= 0, "max_tokens", self.max_tokens, "0 or more")
        _require(1 <= self.n <= MAX_CHOICES, "n", self.n, f"1 to {MAX_CHOICES}")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _require(value is None or value >= 0, name, value, "0 or more")
        _require(
            -MAX_PRIORITY <= self.priority <= MAX_PRIORITY, "priority", self.priority, f"up to {MAX_PRIORITY} both ways"
        )
        _require(self.timeout is None or self.timeout > 0, "timeout", self.timeout, "above 0 seconds")
        if not all(self.stop):
            raise UsageError("a stop text is empty", hint="leave it out")


def _require(holds: bool, name: str, value: object, range_: str) -> None:
    if not holds:
        raise UsageError(f"{name} cannot be {value}", hint=f"choose a value of {range_}")


class Request:
    """A prompt and how to answer it.

    Args:
        prompt: token ids.
        options: how.
        arrival: the time of its submission, seconds on the engine's clock.
        outbox: where the answer goes.

    Attributes:
        cancelled: set by any thread; the next step ends the request.
        sequences: one a choice.
        usage: tokens so far.
        first_step: when it first ran, or ``None``.
        prompt_logprobs: of the prompt's tokens after the first, where they were asked for.
    """

    def __init__(self, prompt: Items[int], options: Options, arrival: float, outbox: Outbox) -> None:
        self.prompt = list(prompt)
        self.options = options
        self.arrival = arrival
        self.deadline = None if options.timeout is None else arrival + options.timeout
        self.outbox = outbox
        self.cancelled = False
        self.sequences: list[Sequence] = []
        self.usage = Usage(len(self.prompt))
        self.first_step: float | None = None
        self.prompt_logprobs: list[TokenLogprob] = []


class Sequence:
    """One choice of a request on its way through the engine.

    Attributes:
        ids: the prompt's tokens and those drawn.
        limit: tokens at which it ends, prompt included.
        computed: tokens whose keys and values lie in its pages.
        published: how many of them, in whole pages, other requests may find.
        row: its row of the page table, or -1 while it waits.
        held: tokens that its pages have room for.
        due: when it should be served, see :mod:`ryzc.runtime.scheduler`.
        raw_rows: whether each row of logits is made twice, because penalties or masks change the one it draws from.
        last_token: when the last token came.
        finish_reason: ``None`` before its end.
        stop_hit: the stop text or id that ended it.
    """

    __slots__ = (
        "computed",
        "detokenizer",
        "drafting",
        "due",
        "filter",
        "finish_reason",
        "held",
        "ids",
        "index",
        "last_token",
        "limit",
        "published",
        "raw_rows",
        "request",
        "row",
        "sampler",
        "stop_hit",
    )

    def __init__(
        self, request: Request, index: int, *, sampler: Sampler, tokenizer: Tokenizer, limit: int, due: float
    ) -> None:
        self.request = request
        self.index = index
        self.sampler = sampler
        self.detokenizer = tokenizer.stream()
        self.filter = StopFilter(request.options.stop)
        self.drafting: Running | None = None
        self.ids = list(request.prompt)
        self.limit = limit
        self.due = due
        self.raw_rows = request.options.logprobs is not None and sampler.adjusts
        self.computed = 0
        self.published = 0
        self.row = -1
        self.held = 0
        self.last_token = 0.0
        self.finish_reason: str | None = None
        self.stop_hit: str | int | None = None

    @property
    def candidates(self) -> int:
        """Best tokens that a step has to find in its rows."""
        return max(self.sampler.candidates, self.request.options.logprobs or 0)

    def stop_drafting(self) -> None:
        """Forget what a drafter knows of it."""
        if self.drafting is not None:
            self.drafting.state.close()
            self.drafting = None

    @property
    def decoding(self) -> bool:
        """Whether all tokens but the last one are computed."""
        return self.computed == len(self.ids) - 1

    @property
    def new_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self.ids) - len(self.request.prompt)

    def push(self, id_: int, eos: frozenset[int]) -> str:
        """Append a drawn token; returns the text that became sure, and sets :attr:`finish_reason` at the end."""
        options = self.request.options
        self.ids.append(id_)
        self.sampler.accept(id_)
        if (id_ in eos and not options.ignore_eos) or id_ in options.stop_ids:
            self.stop_hit = id_ if id_ in options.stop_ids else None
            return self._finish("stop")
        text = self.filter.push(self.detokenizer.push(id_))
        if self.filter.stopped:
            self.finish_reason, self.stop_hit = "stop", self.filter.hit
        elif len(self.ids) >= self.limit:
            text += self._finish("length")
        return text

    def _finish(self, reason: str) -> str:
        self.finish_reason = reason
        text = self.filter.push(self.detokenizer.flush())
        if self.filter.stopped:
            self.stop_hit = self.filter.hit
            return text
        return text + self.filter.flush()
