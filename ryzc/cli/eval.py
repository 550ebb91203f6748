"""``ryzc eval``"""

from __future__ import annotations

import json
from pathlib import Path

import click

from ryzc.cli import _terminal
from ryzc.errors import UsageError


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

    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint="check --text") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start})", hint="convert it to UTF-8") from error
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
