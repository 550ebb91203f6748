"""What was measured, as a table for people and as JSON with every sample."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import peers, results
from benchmarks.results import Result, Row, row

LEGEND = """\
Tokens a second: median of the rounds (slowest – fastest). `pp` takes in a prompt, `tg` generates one token at a time
(`@ d`: after as many others), `batch` generates in several sequences together (all their tokens count), `verify` takes
steps of one token and so many drafts, with the logits of all; in brackets what such a step costs in steps of one token.
The roofline is the larger of two times: reading the weights once a step and each sequence's keys and values once, at
the read bandwidth; and the multiply-accumulates of the linear layers, at the int8 peak. "With attention" counts those
of attention as well; "with scales" counts no attention, and the peak of weights with a scale a block of 32. A share
above 100 % means that a cache held a part of what was read. Ratios are medians of ratios taken within a round; "best"
is the fastest peer of the row."""


def as_markdown(facts: Mapping[str, Any], measured: Sequence[Result]) -> str:
    """The table with what a reader needs to judge it."""
    rows = [row(result) for result in measured]
    names = list(dict.fromkeys(name for r in rows for name in (*r.speeds, *r.failures)))
    titles = [peers.title(name) for name in names]
    lines = [conditions(facts, measured), ""]
    lines += [
        f"| test | roofline | {' | '.join(titles)} | ryzc ÷ best | of roofline | with attention | with scales |",
        f"|---|--:|{'--:|' * len(names)}--:|--:|--:|--:|",
    ]
    notes: dict[str, int] = {}
    for r in rows:
        cells = [_cell(r, name, notes) for name in names]
        ours = r.speeds[r.ours] if r.ours else None
        ratio = f"{r.speeds[r.best_peer].behind:.2f}×" if ours and r.best_peer else ""
        found = (ours.share, ours.share_with_attention, ours.share_of_blocks) if ours else ()
        shares = [f"{share:.0%}" for share in found] or [""] * 3
        limit = f"{_figure(r.limit)} ({r.bound})" if r.limit else ""
        lines.append("| " + " | ".join([r.test, limit, *cells, ratio, *shares]) + " |")
    if notes:
        lines += ["", *(f"{'*' * number} {text}" for text, number in notes.items())]
    lines += ["", quality_line(facts)]
    return "\n".join(lines)


def conditions(facts: Mapping[str, Any], measured: Sequence[Result]) -> str:
    """Machine, model, engines and limits in one paragraph."""
    ours = next(e for name, e in facts["engines"].items() if peers.is_ours(name))
    others = [e for name, e in facts["engines"].items() if not peers.is_ours(name)]
    rounds = [one for result in measured for one in result.rounds]
    thrown = sum(result.thrown_away for result in measured)
    machine = ""
    if rounds:
        bandwidth = statistics.median(one.bandwidth for one in rounds) / 1e9
        near = statistics.median(one.near_bandwidth for one in rounds) / 1e9
        peak, blocks = (statistics.median(getattr(o, n) for o in rounds) / 1e9 for n in ("int8_peak", "block_peak"))
        machine = (
            f", read bandwidth {bandwidth:.0f} GB/s ({near:.0f} GB/s over as many bytes as a step reads), int8 peak"
            f" {peak:.0f} GMAC/s ({blocks:.0f} with scales a block of 32)"
        )
    beside = " and ".join(f"{e['engine']} ({e['version']})" for e in others)
    return (
        f"{facts['model']} ({ours['formats']}) on {facts['cpu']}, {count(facts['threads'], 'thread')}, target"
        f" {ours['target']}{machine}; {count(len(rounds), 'round')} ({thrown} thrown away); ryzc {facts['commit']}"
        f"{' beside ' + beside if beside else ''}; {facts['date']}."
    )


def quality_line(facts: Mapping[str, Any]) -> str:
    """The perplexities in one sentence."""
    found = facts.get("perplexity")
    if not found:
        return "Perplexity: not measured (random weights have none worth measuring)."
    values = [
        f"{peers.title(n)} {v:.3f}" if isinstance(v, float) else f"{peers.title(n)}: {v}" for n, v in found.items()
    ]
    return f"Perplexity on the same windows: {', '.join(values)}."


def as_json(facts: Mapping[str, Any], measured: Sequence[Result]) -> dict[str, Any]:
    """Everything: facts, samples and lines."""
    return {**facts, "results": [asdict(result) for result in measured], "table": [asdict(row(r)) for r in measured]}


def from_json(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[Result]]:
    """The facts and results that :func:`as_json` wrote."""
    facts = {key: value for key, value in record.items() if key not in ("results", "table")}
    return facts, [results.from_json(fields) for fields in record["results"]]


def count(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _cell(r: Row, name: str, notes: dict[str, int]) -> str:
    if name in r.failures:
        return f"no{'*' * notes.setdefault(r.failures[name], len(notes) + 1)}"
    if name not in r.speeds:
        return ""
    speed = r.speeds[name]
    cost = f" ({speed.step_cost:.1f} steps)" if speed.step_cost else ""
    return f"{_figure(speed.median)} ({_figure(speed.slowest)}–{_figure(speed.fastest)}){cost}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
