"""What ``ryzc bench`` measures through the engine: traces of requests, and speculation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from ryzc.cli import _terminal
from ryzc.runtime import bench_speculation, mixes
from ryzc.runtime import replay as replays
from ryzc.runtime import speculation as drafters
from ryzc.runtime.bench_speculation import PLAIN, Row
from ryzc.runtime.engine import Engine


def replay(
    bundle: Path, path: Path, speed: float, parallel: int, context: int | None, threads: int | None, output: str
) -> None:
    """Replay a trace and print its figures."""
    trace = replays.read(path)
    with (
        Engine(bundle, context=context, sequences=parallel, threads=threads, queue=len(trace)) as engine,
        _terminal.progress() as update,
    ):
        summary = replays.replay(engine, trace, speed=speed, tell=lambda done, of: update("replaying", done, of))
    if output == "json":
        click.echo(json.dumps(asdict(summary), indent=2))
        return
    click.echo(f"{summary.requests} requests in {summary.seconds:.1f} s", nl=False)
    click.echo(f" ({summary.refused} refused, {summary.failed} failed)" if summary.refused or summary.failed else "")
    rows = [["", "p50", "p95", "p99"]]
    for name, values in (
        ("time to first token, ms", summary.time_to_first_token),
        ("between tokens, ms", summary.inter_token),
        ("whole request, ms", summary.total),
    ):
        rows.append([name, *(f"{1000 * value:.1f}" for value in values)])
    click.echo(_terminal.markdown(rows))
    click.echo(f"output {summary.output_per_second:.1f} tok/s, prompts {summary.prompt_per_second:.1f} tok/s")
    click.echo(
        f"{summary.cached_share:.1%} of the prompts' tokens were cached;"
        f" {summary.schedule_share:.1%} of the engine's time was outside native code"
    )


def speculate(bundle: Path, draft: Path | None, threads: int | None, repetitions: int, output: str) -> None:
    """Measure every drafter on every mix and print the figures."""
    methods = [name for name in drafters.names() if name != PLAIN]
    with _terminal.progress() as update:
        rows, costs = bench_speculation.compare(
            bundle,
            methods,
            draft=draft,
            threads=threads,
            repetitions=repetitions,
            tell=lambda done, of: update("answering", done, of),
        )
    if output == "json":
        click.echo(json.dumps({"rows": [asdict(row) for row in rows], "step_cost": costs}, indent=2))
        return
    click.echo(_terminal.markdown(speculation_table(rows)))
    for method, curve in costs.items():
        click.echo(f"a step of 1, 2, … tokens costs, as {method} saw it: " + " ".join(f"{c:.2f}" for c in curve))


def speculation_table(rows: Sequence[Row]) -> list[list[str]]:
    """A line a prompt, and the mean of each mix."""
    methods = [method for method in rows[0].answers if method != PLAIN]
    lines = [["prompt", "off tok/s", *(cell for m in methods for cell in (f"{m} ×", "accepted", "tokens/step"))]]
    for mix in mixes.MIXES:
        of_mix = [row for row in rows if row.mix == mix]
        for row in of_mix:
            cells = [f"{mix}: {row.prompt}", f"{row.speed(PLAIN):.0f}"]
            for method in methods:
                answer = row.answers[method][-1]
                share = f"{answer.accepted / answer.proposed:.0%}" if answer.proposed else "-"
                cells += [f"{row.speedup(method):.2f}", share, f"{answer.tokens / max(1, answer.steps):.2f}"]
            lines.append(cells)
        means = (f"{statistics.fmean(row.speedup(m) for row in of_mix):.2f}" for m in methods)
        least = (f"least {min(row.speedup(m) for row in of_mix):.2f}" for m in methods)
        speed = statistics.fmean(row.speed(PLAIN) for row in of_mix)
        pairs = zip(means, least, strict=True)
        lines.append([f"{mix}: mean", f"{speed:.0f}", *(cell for pair in pairs for cell in (*pair, ""))])
    return lines
