"""The server's page in the docs, and the dashboard, say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from ryzc.runtime.server.config import Setting, settings
from ryzc.runtime.server.dashboard import dashboard
from ryzc.runtime.server.fields import HARMLESS
from ryzc.runtime.server.metrics import ENGINE, HttpMetrics, exposition

PAGE = Path(__file__).parents[2] / "docs" / "server.md"


def _row(setting: Setting) -> str:
    flags = f"`{setting.flag}`" + (f" `{setting.short}`" if setting.short else "")
    empty = setting.default is None or setting.default == ()
    default = {True: "on", False: "off"}[setting.default] if isinstance(setting.default, bool) else setting.default
    shown = (
        "" if empty else f"{default >> 20}M" if setting.bytes else f"{default:g}" if setting.kind is float else default
    )
    return f"| {flags} | `{setting.variable}` | {shown} | {setting.help} |"


def test_every_setting_has_its_row() -> None:
    rows = "\n".join(map(_row, settings()))
    assert rows in PAGE.read_text(), f"the table should be:\n{rows}"


def test_every_metric_has_its_row() -> None:
    rows = "\n".join(f"| `ryzc_{d.name}` | {d.kind} | {d.help} |" for d in ENGINE)
    assert rows in PAGE.read_text(), f"the table should be:\n{rows}"


def test_what_changes_nothing_is_listed() -> None:
    listed = re.search(r"\*\*Fields that change nothing here\*\*(.*?)\. Null", PAGE.read_text(), re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == HARMLESS


def test_the_dashboard_asks_for_what_is_told() -> None:
    told = set(re.findall(r"^# TYPE (\w+)", exposition({}, HttpMetrics(), 0, 0), re.MULTILINE))
    made = dashboard()
    expressions = [target["expr"] for panel in made["panels"] for target in panel["targets"]]
    assert {re.sub("_bucket$", "", name) for e in expressions for name in re.findall(r"ryzc_\w+", e)} <= told
    assert all(expression.count("(") == expression.count(")") for expression in expressions)
    titles = [panel["title"] for panel in made["panels"]]
    assert len(set(titles)) == len(titles) > 15
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in made["panels"]]
    assert len(set(places)) == len(places)
