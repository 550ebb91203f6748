"""``/metrics``: what the engines and the server count, in Prometheus' text format, with vLLM's names and meanings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ryzc.runtime.metrics import SECONDS, Histogram, Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Value: TypeAlias = float | Histogram | Mapping[str, float]


@dataclass(frozen=True)
class Definition:
    """One metric: the exposition and the dashboard are both made from it.

    Attributes:
        name: without ``ryzc_``; after it, vLLM's name where vLLM has it.
        kind: counter, gauge or histogram.
        help: what it means.
        read: its value.
        label: of a value with several.
        panel: title of its panel in the dashboard; ``None`` is none of its own.
        unit: Grafana's.
    """

    name: str
    kind: str
    help: str
    read: Callable[[Any], Value]
    label: str | None = None
    panel: str | None = None
    unit: str = "short"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


ENGINE: Sequence[Definition] = (
    Definition(
        "num_requests_running", "gauge", "Sequences that run.", lambda m: m.requests_running, panel="Requests running"
    ),
    Definition(
        "num_requests_waiting", "gauge", "Sequences that wait.", lambda m: m.requests_waiting, panel="Requests waiting"
    ),
    Definition(
        "kv_cache_usage_perc",
        "gauge",
        "Share of the KV pool that running sequences hold, 0 to 1.",
        lambda m: _share(m.kv_pages_used, m.kv_pages_total),
        panel="KV cache in use",
        unit="percentunit",
    ),
    Definition("requests_submitted_total", "counter", "Requests taken.", lambda m: m.requests_submitted),
    Definition(
        "requests_refused_total",
        "counter",
        "Requests refused, for the queue was full.",
        lambda m: m.requests_refused,
        panel="Refused",
        unit="reqps",
    ),
    Definition(
        "request_success_total",
        "counter",
        "Requests ended, by reason.",
        lambda m: dict(m.requests_finished),
        label="finished_reason",
        panel="Requests ended",
        unit="reqps",
    ),
    Definition(
        "prompt_tokens_total",
        "counter",
        "Tokens of prompts.",
        lambda m: m.prompt_tokens,
        panel="Prompt tokens",
        unit="tokens/s",
    ),
    Definition(
        "generation_tokens_total",
        "counter",
        "Tokens generated.",
        lambda m: m.generation_tokens,
        panel="Generated tokens",
        unit="tokens/s",
    ),
    Definition(
        "prefix_cache_queries_total", "counter", "Tokens looked up in the prefix cache.", lambda m: m.prompt_tokens
    ),
    Definition(
        "prefix_cache_hits_total",
        "counter",
        "Tokens found in the prefix cache.",
        lambda m: m.cached_tokens,
        panel="Prefix cache hits",
        unit="tokens/s",
    ),
    Definition(
        "num_preemptions_total",
        "counter",
        "Sequences that gave their pages to others.",
        lambda m: m.preemptions,
        panel="Preemptions",
    ),
    Definition(
        "spec_decode_num_draft_tokens_total", "counter", "Tokens drafted.", lambda m: m.drafts_proposed, panel="Drafted"
    ),
    Definition(
        "spec_decode_num_accepted_tokens_total",
        "counter",
        "Drafted tokens accepted.",
        lambda m: m.drafts_accepted,
        panel="Accepted",
    ),
    Definition("steps_total", "counter", "Native steps.", lambda m: m.steps, panel="Steps", unit="ops"),
    Definition(
        "time_to_first_token_seconds",
        "histogram",
        "From submission to the first token.",
        lambda m: m.time_to_first_token_seconds,
        panel="Time to first token",
        unit="s",
    ),
    Definition(
        "inter_token_latency_seconds",
        "histogram",
        "Between tokens of a sequence.",
        lambda m: m.inter_token_seconds,
        panel="Between tokens",
        unit="s",
    ),
    Definition(
        "e2e_request_latency_seconds",
        "histogram",
        "From submission to the end.",
        lambda m: m.request_seconds,
        panel="Whole request",
        unit="s",
    ),
    Definition(
        "request_queue_time_seconds",
        "histogram",
        "From submission to the first step.",
        lambda m: m.queue_seconds,
        panel="Queue",
        unit="s",
    ),
    Definition("step_seconds", "histogram", "A native step.", lambda m: m.step_seconds, panel="Native step", unit="s"),
    Definition("step_tokens", "histogram", "Tokens of a step.", lambda m: m.step_tokens, panel="Tokens a step"),
    Definition(
        "schedule_seconds",
        "histogram",
        "Of a step, all but the native call.",
        lambda m: m.schedule_seconds,
        panel="Step overhead",
        unit="s",
    ),
)
"""Of :class:`ryzc.runtime.metrics.Metrics`, one series a loaded model (label ``model_name``)."""


class HttpMetrics:
    """What the server itself counts.

    Attributes:
        open: requests whose answer is not complete.
        requests: by path and status.
        seconds: of answers, streams included.
    """

    def __init__(self) -> None:
        self.open = 0
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds = Histogram(SECONDS)
        self.paths: frozenset[str] = frozenset()

    def count(self, path: str, status: int, seconds: float) -> None:
        """A request has ended; paths that are not served are counted together."""
        self.requests[path if path in self.paths else "other", status] += 1
        self.seconds.observe(seconds)


def exposition(engines: Mapping[str, Metrics], http: HttpMetrics, loads: int, unloads: int) -> str:
    """The text that Prometheus reads.

    Args:
        engines: the metrics of each loaded model, by name.
        http: the server's own.
        loads, unloads: of models.
    """
    lines: list[str] = []
    for definition in ENGINE:
        samples = [({"model_name": name}, definition.read(metrics)) for name, metrics in engines.items()]
        lines += _family(definition.name, definition.kind, definition.help, samples, definition.label)
    lines += _family("http_requests_open", "gauge", "HTTP requests without a complete answer.", [({}, http.open)])
    counts = [({"path": path, "status": str(status)}, n) for (path, status), n in sorted(http.requests.items())]
    lines += _family("http_requests_total", "counter", "HTTP requests, by path and status.", counts)
    lines += _family(
        "http_request_duration_seconds", "histogram", "HTTP requests, streams included.", [({}, http.seconds)]
    )
    lines += _family("model_loads_total", "counter", "Models loaded.", [({}, loads)])
    lines += _family("model_unloads_total", "counter", "Models unloaded.", [({}, unloads)])
    return "\n".join(lines) + "\n"


def _family(
    name: str, kind: str, help_: str, samples: Sequence[tuple[Mapping[str, str], Value]], label: str | None = None
) -> Iterator[str]:
    yield f"# HELP ryzc_{name} {help_}"
    yield f"# TYPE ryzc_{name} {kind}"
    for labels, value in samples:
        if isinstance(value, Histogram):
            yield from _histogram(name, labels, value)
        elif isinstance(value, Mapping):
            assert label is not None
            for key, part in sorted(value.items()):
                yield f"ryzc_{name}{_labels({**labels, label: key})} {_number(part)}"
        else:
            yield f"ryzc_{name}{_labels(labels)} {_number(value)}"


def _histogram(name: str, labels: Mapping[str, str], histogram: Histogram) -> Iterator[str]:
    counts, total, running = list(histogram.counts), histogram.total, 0
    for bound, count in zip([*map(_number, histogram.bounds), "+Inf"], counts, strict=True):
        running += count
        yield f"ryzc_{name}_bucket{_labels({**labels, 'le': bound})} {running}"
    yield f"ryzc_{name}_sum{_labels(labels)} {_number(total)}"
    yield f"ryzc_{name}_count{_labels(labels)} {running}"


def _number(value: float) -> str:
    return repr(float(value)) if isinstance(value, float) else str(int(value))


def _labels(labels: Mapping[str, str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{key}="{escaped(value)}"' for key, value in labels.items()) + "}" if labels else ""
