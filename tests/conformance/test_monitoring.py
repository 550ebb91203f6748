"""A real Prometheus scrapes the server: the dashboard's questions have answers, and they are what a client measured."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest

from conformance import monitoring, serving
from conformance.monitoring import Prometheus
from conformance.registry import UnreachableError
from ryzc.runtime.server.dashboard import dashboard
from ryzc.runtime.server.metrics import ENGINE

pytestmark = pytest.mark.slow

REQUESTS, TOGETHER, TOKENS = 24, 8, 40


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving.tiny("one", "two", parallel=TOGETHER, speculate="off") as url:
        yield url


@pytest.fixture(scope="module")
def prometheus(url: str) -> Iterator[Prometheus]:
    try:
        monitoring.programs()
    except UnreachableError as error:
        pytest.skip(str(error))
    with monitoring.prometheus(url) as running:
        running.scrape()
        yield running


def chat(client: httpx.Client, number: int) -> tuple[float, list[float], float]:
    """Seconds to the first token, between tokens, and of the whole request."""
    body = {
        "model": "one",
        "messages": [{"role": "user", "content": f"number {number}"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
        "logprobs": True,  # a chunk a token, even where it has no text
    }
    begin, moments = time.perf_counter(), []
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if '"content":[{' in line:
                moments.append(time.perf_counter())
    end = time.perf_counter()
    return moments[0] - begin, [b - a for a, b in pairwise(moments)], end - begin


def test_prometheus_knows_what_a_client_measured(url: str, prometheus: Prometheus) -> None:
    def read() -> dict[str, float]:
        names = ("time_to_first_token", "inter_token_latency", "e2e_request_latency")
        series = [f"ryzc_{name}_seconds_{part}" for name in names for part in ("count", "sum")]
        series += ["ryzc_generation_tokens_total", "ryzc_requests_submitted_total"]
        return {name: prometheus.value(f'{name}{{model_name="one"}}') for name in series}

    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(TOGETHER) as clients:
        chat(client, -1)  # the model is loaded by now
        prometheus.scrape()
        before = read()
        seen = list(clients.map(lambda number: chat(client, number), range(REQUESTS)))
    prometheus.scrape()
    after = read()
    spent = {name: after[name] - before[name] for name in after}
    assert spent["ryzc_requests_submitted_total"] == REQUESTS
    assert spent["ryzc_generation_tokens_total"] == REQUESTS * TOKENS
    assert spent["ryzc_time_to_first_token_seconds_count"] == REQUESTS
    assert spent["ryzc_e2e_request_latency_seconds_count"] == REQUESTS
    assert spent["ryzc_inter_token_latency_seconds_count"] == REQUESTS * (TOKENS - 1)
    # A client's clock begins before the engine's and stops after it, by what HTTP takes and no more.
    for name, mine in (
        ("time_to_first_token", sum(first for first, _, _ in seen)),
        ("e2e_request_latency", sum(whole for _, _, whole in seen)),
    ):
        assert 0 <= mine - spent[f"ryzc_{name}_seconds_sum"] < REQUESTS * 0.2, name
    between = sum(gap for _, gaps, _ in seen for gap in gaps)
    assert spent["ryzc_inter_token_latency_seconds_sum"] == pytest.approx(between, abs=REQUESTS * 0.2)


def test_promtool_has_nothing_to_say(url: str, prometheus: Prometheus) -> None:
    assert not monitoring.lint(httpx.get(f"{url}/metrics").text)


def test_every_metric_is_there_as_it_is_documented(prometheus: Prometheus) -> None:
    known = prometheus.ask("metadata")
    for definition in ENGINE:
        (found,) = known[f"ryzc_{definition.name}"]
        assert (found["type"], found["help"]) == (definition.kind, definition.help)


def test_every_question_of_the_dashboard_has_an_answer(url: str, prometheus: Prometheus) -> None:
    for model in ("one", "two"):
        body = {"model": model, "prompt": "hello", "max_tokens": 20}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
    prometheus.scrape()
    prometheus.scrape()  # a rate needs two
    made = dashboard()
    (variable,) = (variable for variable in made["templating"]["list"] if variable["name"] == "model")
    metric, label = variable["query"].removeprefix("label_values(").removesuffix(")").split(", ")
    assert prometheus.ask(f"label/{label}/values", **{"match[]": metric}) == ["one", "two"]
    asked = [target["expr"] for panel in made["panels"] for target in panel["targets"]]
    assert len(asked) > len(made["panels"])
    for expression in asked:
        for chosen in (".*", "one", "one|two"):
            filled = expression.replace("$__rate_interval", "1m").replace("$model", chosen)
            assert "$" not in filled
            models = {labels.get("model_name") for labels, _ in prometheus.query(filled)}
            assert models == ({"one"} if chosen == "one" else {"one", "two"}), filled


def test_grafana_understands_the_whole_dashboard() -> None:
    made = dashboard()
    try:
        understood = monitoring.read_by_grafana(made)
    except UnreachableError as error:
        pytest.skip(str(error))
    assert not lost(json.loads(json.dumps(made)), understood)
    assert lost({"panels": [{"tipe": 1}]}, {"panels": [{"type": 1}]}) == ["/panels/0/tipe"]


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Where something of a document is missing or different in another."""
    if isinstance(given, dict):
        missing = [f"{path}/{key}" for key in given if not isinstance(kept, dict) or key not in kept]
        return missing + [
            p for key in given if f"{path}/{key}" not in missing for p in lost(given[key], kept[key], f"{path}/{key}")
        ]
    if isinstance(given, list):
        if not isinstance(kept, list) or len(kept) != len(given):
            return [path]
        return [
            p for i, (one, other) in enumerate(zip(given, kept, strict=True)) for p in lost(one, other, f"{path}/{i}")
        ]
    return [] if given == kept else [path]
