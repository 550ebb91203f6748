"""What the server needs of an engine: :class:`ryzc.runtime.engine.Engine`, or a stand-in in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from ryzc.runtime.metrics import Metrics
from ryzc.runtime.sampling import SamplingParams
from ryzc.runtime.tokenizer import Tokenizer


class TokenLogprob(Protocol):
    """A token, its log probability, and the best tokens in its place."""

    @property
    def id(self) -> int: ...
    @property
    def logprob(self) -> float: ...
    @property
    def top(self) -> Sequence[tuple[int, float]]: ...


class Delta(Protocol):
    """What a step added to a choice."""

    @property
    def index(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Sequence[TokenLogprob] | None: ...
    @property
    def finish_reason(self) -> str | None: ...


class Usage(Protocol):
    """Tokens of a request."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


class Stream(Protocol):
    """A running request."""

    @property
    def usage(self) -> Usage: ...
    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprob]: ...
    @property
    def request(self) -> Any: ...
    def cancel(self) -> None: ...
    def __aiter__(self) -> AsyncIterator[Any]: ...


class Engine(Protocol):
    """A loaded model that answers many requests at a time."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def context(self) -> int: ...
    @property
    def metrics(self) -> Metrics: ...

    def submit(self, prompt: Sequence[int], *, sampling: SamplingParams, **options: Any) -> Stream: ...
    def close(self, *, drain: bool = False) -> None: ...


Fields = Mapping[str, Any]
"""A JSON object."""
