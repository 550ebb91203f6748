"""``ryzc eval``"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ryzc.cli import _terminal
from ryzc.cli._models import local
from ryzc.errors import UsageError
from ryzc.kv_formats import KV_FORMATS

if TYPE_CHECKING:
    from ryzc.runtime.kv_quality import Cost


@click.group()
def command() -> None:
    """Measure how good a compiled model is."""


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--text", "path", type=click.Path(path_type=Path), required=True, help="The text, a file in UTF-8.")
@click.option("-c", "--ctx-size", type=click.IntRange(4), default=512, show_default=True, help="Tokens of a window.")
@click.option("--chunks", type=click.IntRange(1), help="Only the first so many windows.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads; by default the physical cores.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def perplexity(bundle: Path, path: Path, ctx_size: int, chunks: int | None, threads: int | None, as_json: bool) -> None:
    """Perplexity of a text, by llama.cpp's method: windows of -c tokens, the second half scored."""
    from ryzc.runtime.model import load
    from ryzc.runtime.perplexity import perplexity as measure

    text = _read(path)
    with load(bundle, context=ctx_size, threads=threads) as model, _terminal.progress() as update:
        result = measure(
            model,
            text,
            context=ctx_size,
            chunks=chunks,
            progress=lambda done, total, _: update("windows", done, total),
        )
    if as_json:
        report = {
            "perplexity": result.value,
            "error": result.error,
            "context": result.context,
            "scored_tokens": result.scored,
            "windows": result.windows,
        }
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(
            f"perplexity {result.value:.4f} ± {result.error:.4f}"
            f"  ({len(result.windows)} windows of {result.context} tokens, {result.scored} tokens scored)"
        )


@command.command()
@click.argument("source", metavar="SRC")
@click.option("--text", "path", type=click.Path(path_type=Path), help="A text in UTF-8; by default Python's manual.")
@click.option("-c", "--ctx-size", type=click.IntRange(4), default=512, show_default=True, help="Tokens of a window.")
@click.option("--chunks", type=click.IntRange(1), default=20, show_default=True, help="Only the first so many windows.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads; by default the physical cores.")
@click.option(
    "--activations",
    type=click.Choice(["int8", "f32"]),
    default="int8",
    show_default=True,
    help="What linear layers compute with; f32 is slow and leaves the formats' own cost.",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def kv(
    source: str,
    path: Path | None,
    ctx_size: int,
    chunks: int,
    threads: int | None,
    activations: str,
    as_json: bool,
) -> None:
    """Perplexity with each format of keys and values (`ryzc build --kv`), beside float16.

    SRC is what `ryzc build` takes. It is compiled once for each format, into a directory that is removed again.
    """
    from ryzc.bundle import Bundle
    from ryzc.runtime import kv_quality

    text = None if path is None else _read(path)
    here, found = local(source), []
    with _terminal.progress() as update:
        for i, name in enumerate(REFERENCED):
            with _built(here, name, activations) as bundle:
                update("formats", i, len(REFERENCED))
                measured = kv_quality.measure(bundle, context=ctx_size, windows=chunks, of=text, threads=threads)
                kept = Bundle.open(bundle).plan.kv
            found.append((kept.page_bytes / kept.page_tokens, measured))
        update("formats", len(REFERENCED), len(REFERENCED))
    reference = found[0][1]
    costs = [kv_quality.cost(name, each, reference) for name, (_, each) in zip(REFERENCED, found, strict=True)]
    rows = [_row(cost, size) for cost, (size, _) in zip(costs, found, strict=True)]
    if as_json:
        report = {"context": reference.context, "windows": len(reference.windows), "formats": rows}
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(f"{len(reference.windows)} windows of {reference.context} tokens, activations in {activations}")
        click.echo(_table(rows))


REFERENCED = ("f16", *(format_.name for format_ in KV_FORMATS.values() if format_.coded))
"""What is compared, the reference first."""


@contextmanager
def _built(source: str, kv: str, activations: str) -> Iterator[Path]:
    """A bundle that is there for a while."""
    from ryzc.compiler import build

    with tempfile.TemporaryDirectory(prefix="ryzc-kv-") as place:
        yield build(source, Path(place) / "model.ryzc", kv=kv, activations=activations, force=True)


def _row(cost: Cost, token_bytes: float) -> dict[str, Any]:
    """For ``--json``; shares of float16's perplexity."""
    bound = cost.format.bound
    return {
        "format": cost.format.name,
        "bytes_per_token": token_bytes,
        "perplexity": cost.perplexity,
        "cost": cost.share,
        "error": cost.error,
        "bound": bound or None,
        "built": not bound or not cost.excessive,
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """For people."""
    lines = [["format", "a token", "perplexity", "cost", "bound", "`ryzc build`"]]
    for row in rows:
        lines.append(
            [
                row["format"],
                _terminal.size(row["bytes_per_token"]),
                f"{row['perplexity']:.4f}",
                f"{row['cost']:+.3%} ± {row['error']:.3%}" if row["format"] != REFERENCED[0] else "",
                f"{row['bound']:.1%}" if row["bound"] else "",
                "takes it" if row["built"] else "refuses it",
            ]
        )
    return _terminal.table(lines)


def _read(path: Path) -> str:
    """A text from a file.

    Raises:
        UsageError: it cannot be read as UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint="check --text") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start})", hint="convert it to UTF-8") from error
