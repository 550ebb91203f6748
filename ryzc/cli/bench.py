"""``ryzc bench``"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ryzc.cli import _terminal

if TYPE_CHECKING:
    from ryzc.bundle import Bundle
    from ryzc.runtime.bench import Measurement


def numbers(least: int) -> Callable[[str], tuple[int, ...]]:
    """A parameter's type: whole numbers from ``least`` on with commas between them, e.g. ``128,512``."""

    def convert(text: str) -> tuple[int, ...]:
        try:
            values = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 128,512") from None
        if min(values) < least:
            raise click.BadParameter(f"{min(values)} is less than {least}")
        return values

    return convert


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-p", "--n-prompt", type=numbers(0), metavar="N,…", default="512", show_default=True, help="Tokens of a prompt."
)
@click.option(
    "-n", "--n-gen", type=numbers(0), metavar="N,…", default="128", show_default=True, help="Tokens to generate."
)
@click.option(
    "-d", "--n-depth", type=numbers(0), metavar="N,…", default="0", show_default=True, help="Tokens before them."
)
@click.option("-t", "--threads", type=numbers(1), metavar="N,…", help="Threads; by default the physical cores.")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, show_default=True)
@click.option("-o", "--output", type=click.Choice(["md", "json", "csv"]), default="md", show_default=True)
@click.option(
    "--requests",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Replay a trace of requests instead: JSON lines with timestamp (ms), input_length, output_length, hash_ids.",
)
@click.option("--speed", type=click.FloatRange(0, min_open=True), default=1.0, help="Let the trace run so much faster.")
@click.option("-np", "--parallel", type=click.IntRange(1), default=16, help="Requests of the trace that run together.")
@click.option("-c", "--ctx-size", type=click.IntRange(1), help="Context for a trace; by default 4096.")
@click.option("--speculate", is_flag=True, help="Measure what guessing ahead brings instead, by drafter.")
@click.option("--draft", type=click.Path(exists=True, path_type=Path), help="A bundle that drafts, for --speculate.")
def command(
    bundle: Path,
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    n_depth: tuple[int, ...],
    threads: tuple[int, ...] | None,
    repetitions: int,
    output: str,
    requests: Path | None,
    speed: float,
    parallel: int,
    ctx_size: int | None,
    speculate: bool,
    draft: Path | None,
) -> None:
    """Measure speed, beside what this machine can do.

    The tests are llama-bench's; -p, -n, -d and -t take lists such as 128,512. Around every repetition
    the machine's read bandwidth and int8 peak are measured too. A prompt's share is of the int8 peak
    (linear layers only), a generation's share is of the read bandwidth (weights, keys and values).

    With --requests a trace of requests goes through the engine instead, with --speculate a set of prompts
    with and without guessing ahead.
    """
    if requests is not None or speculate:
        if requests is not None and speculate:
            raise click.UsageError("--requests and --speculate are two measurements")
        if output == "csv":
            raise click.UsageError("-o csv is for llama-bench's tests")
        from ryzc.cli import _engine_bench

        count = threads[0] if threads else None
        if requests is not None:
            _engine_bench.replay(bundle, requests, speed, parallel, ctx_size, count, output)
        else:
            _engine_bench.speculate(bundle, draft, count, repetitions, output)
        return
    from ryzc import targets
    from ryzc.bundle import Bundle
    from ryzc.runtime import bench

    opened = Bundle.open(bundle)
    workloads = bench.workloads(n_prompt, n_gen, n_depth, threads or (targets.detect().threads,))
    measured = []
    with _terminal.progress() as update:
        for i, measurement in enumerate(bench.run(opened, workloads, repetitions=repetitions)):
            update("measuring", i + 1, len(workloads))
            measured.append(measurement)
    click.echo(FORMATS[output](opened, measured))


def markdown(bundle: Bundle, measured: Sequence[Measurement]) -> str:
    """A table like llama-bench's."""
    name, nbytes, parameters = _model(bundle)
    rows = [["model", "size", "params", "threads", "test", "t/s", "share", "read GB/s", "int8 GMAC/s"]]
    for m in measured:
        share = f"{m.int8_share:.1%} int8" if m.workload.kind == "pp" else f"{m.read_share:.1%} read"
        rows.append(
            [
                name,
                _terminal.size(nbytes),
                _terminal.count(parameters),
                str(m.workload.threads),
                m.workload.name,
                f"{m.mean:.2f} ± {m.deviation:.2f}",
                share,
                f"{m.read / 1e9:.1f}",
                f"{m.int8 / 1e9:.0f}",
            ]
        )
    return _terminal.markdown(rows)


def _records(bundle: Bundle, measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    from ryzc import __version__

    name, nbytes, parameters = _model(bundle)
    return [
        {
            "ryzc": __version__,
            "model": name,
            "model_size": nbytes,
            "model_n_params": parameters,
            "n_threads": m.workload.threads,
            "test": m.workload.name,
            "n_prompt": m.workload.tokens if m.workload.kind == "pp" else 0,
            "n_gen": m.workload.tokens if m.workload.kind == "tg" else 0,
            "n_depth": m.workload.depth,
            "avg_ts": m.mean,
            "stddev_ts": m.deviation,
            "bytes_per_token": m.bytes_per_token,
            "macs_per_token": m.macs_per_token,
            "read_bytes_per_s": m.read,
            "int8_macs_per_s": m.int8,
            "read_share": m.read_share,
            "int8_share": m.int8_share,
        }
        for m in measured
    ]


def json_text(bundle: Bundle, measured: Sequence[Measurement]) -> str:
    """A list of objects, with every repetition."""
    records = _records(bundle, measured)
    for record, m in zip(records, measured, strict=True):
        record["samples_ts"] = [s.tokens_per_second for s in m.samples]
        record["samples_read"] = [s.read for s in m.samples]
        record["samples_int8"] = [s.int8 for s in m.samples]
    return json.dumps(records, indent=2)


def csv_text(bundle: Bundle, measured: Sequence[Measurement]) -> str:
    """A line a test, names first."""
    records = _records(bundle, measured)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Bundle, Sequence[Measurement]], str]] = {
    "md": markdown,
    "json": json_text,
    "csv": csv_text,
}


def _model(bundle: Bundle) -> tuple[str, int, int]:
    """Name, bytes of weights and number of weights."""
    weights = bundle.plan.weights
    return (
        f"{bundle.plan.architecture} {bundle.path.resolve().stem}",
        sum(weight.bytes for weight in weights),
        sum(weight.rows * weight.columns for weight in weights),
    )
