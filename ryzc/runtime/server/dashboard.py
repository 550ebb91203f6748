"""A Grafana dashboard of what ``/metrics`` tells: ``python -m ryzc.runtime.server.dashboard > ryzc.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ryzc.runtime.server.metrics import ENGINE, Definition

SOURCE = {"type": "prometheus", "uid": "${source}"}
WHERE = 'model_name=~"$model"'
COLUMNS, WIDTH, HEIGHT = 3, 8, 7


def queries(definition: Definition) -> list[tuple[str, str]]:
    """What a metric's panel asks Prometheus, and the name of each curve."""
    name = f"ryzc_{definition.name}"
    if definition.kind == "histogram":
        rate = f"sum by (le, model_name) (rate({name}_bucket{{{WHERE}}}[$__rate_interval]))"
        return [(f"histogram_quantile({q}, {rate})", f"{{{{model_name}}}} p{int(100 * q)}") for q in (0.5, 0.95, 0.99)]
    by = "model_name" if definition.label is None else f"model_name, {definition.label}"
    legend = "{{model_name}}" if definition.label is None else f"{{{{model_name}}}} {{{{{definition.label}}}}}"
    if definition.kind == "counter":
        return [(f"sum by ({by}) (rate({name}{{{WHERE}}}[$__rate_interval]))", legend)]
    return [(f"sum by ({by}) ({name}{{{WHERE}}})", legend)]


def share(title: str, part: str, whole: str) -> dict[str, Any]:
    """A panel of one counter's rate in another's."""
    rates = [f"sum by (model_name) (rate(ryzc_{name}{{{WHERE}}}[$__rate_interval]))" for name in (part, whole)]
    return _panel(title, f"{part} of {whole}", "percentunit", [(f"{rates[0]} / {rates[1]}", "{{model_name}}")])


def _panel(title: str, description: str, unit: str, asked: Sequence[tuple[str, str]]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for i, (expression, legend) in enumerate(asked)
    ]
    defaults = {"unit": unit, "min": 0, "custom": {"fillOpacity": 8, "showPoints": "never"}}
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    panels = [_panel(d.panel, d.help, d.unit, queries(d)) for d in ENGINE if d.panel is not None]
    panels.append(share("Prompt tokens from the cache", "prefix_cache_hits_total", "prefix_cache_queries_total"))
    panels.append(
        share("Drafts accepted", "spec_decode_num_accepted_tokens_total", "spec_decode_num_draft_tokens_total")
    )
    for i, panel in enumerate(panels):
        place = {"x": i % COLUMNS * WIDTH, "y": i // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
        panel |= {"id": i + 1, "gridPos": place}
    return {
        "title": "ryzc",
        "uid": "ryzc",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "model",
                    "label": "Model",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": "label_values(ryzc_num_requests_running, model_name)",
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
