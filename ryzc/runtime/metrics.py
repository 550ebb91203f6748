"""What an engine counts: plain numbers that any exporter can read."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the buckets for times."""
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Upper bounds of the buckets for tokens of a step."""


class Histogram:
    """Values counted by buckets.

    Attributes:
        bounds: inclusive upper bounds, ascending; the last bucket, without one, comes after them.
        counts: values in each bucket.
        total: their sum.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


def _seconds() -> Histogram:
    return Histogram(SECONDS)


@dataclass
class Metrics:
    """Counters since the engine began, gauges of now, and histograms.

    Written by the engine's thread alone; other threads may read at any time.

    Attributes:
        requests_submitted: taken into the queue.
        requests_refused: not taken, for want of room in the queue.
        requests_finished: by the reason of their end.
        prompt_tokens: of all requests that began to run.
        cached_tokens: how many of them were found in the prefix cache.
        generation_tokens: drawn.
        preemptions: sequences that gave their pages to others and began again later.
        drafts_proposed, drafts_accepted: tokens of speculation.
        steps: native steps.
        requests_running, requests_waiting: sequences (a request has one a choice).
        kv_pages_used, kv_pages_total: of the KV pool; used are those that a running sequence holds.
        queue_seconds: from submission to the first step.
        time_to_first_token_seconds: from submission to the first token.
        inter_token_seconds: between tokens of a sequence; tokens that come together share their time.
        request_seconds: from submission to the end.
        step_seconds: of a native step.
        step_tokens: of a native step.
        schedule_seconds: of a step in Python: everything but the native call.
    """

    requests_submitted: int = 0
    requests_refused: int = 0
    requests_finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    steps: int = 0
    requests_running: int = 0
    requests_waiting: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    queue_seconds: Histogram = field(default_factory=_seconds)
    time_to_first_token_seconds: Histogram = field(default_factory=_seconds)
    inter_token_seconds: Histogram = field(default_factory=_seconds)
    request_seconds: Histogram = field(default_factory=_seconds)
    step_seconds: Histogram = field(default_factory=_seconds)
    step_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    schedule_seconds: Histogram = field(default_factory=_seconds)
