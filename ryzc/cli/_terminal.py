"""Talking to people: text to the terminal, progress bars, sizes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import click


class ProgressCallback(Protocol):
    """Told how far a stage has come."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of a stage are finished."""


# Escape sequences in a model's answer could rewrite the screen or the clipboard.
_CONTROL = {code: None for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """The text without control characters."""
    return text.translate(_CONTROL)


def write(text: str) -> None:
    """Data to stdout, at once; on a terminal without control characters."""
    click.echo(printable(text) if sys.stdout.isatty() else text, nl=False)


def say(text: str) -> None:
    """Talk to stderr."""
    click.echo(printable(text), err=True)


@contextmanager
def progress(labels: Mapping[str, str] | None = None, *, unit: str = "") -> Iterator[ProgressCallback]:
    """A bar a stage on stderr where that is a terminal, nothing elsewhere.

    Args:
        labels: what to call each stage; stages are shown as they come.
        unit: ``bytes`` shows sizes and speed.

    Yields:
        A callback taking the stage, what is done and what there is in all.
    """
    if not sys.stderr.isatty():
        yield _nothing
        return
    from rich import progress as rich
    from rich.console import Console

    columns: list[rich.ProgressColumn] = [rich.TextColumn("{task.description}"), rich.BarColumn()]
    columns += [rich.DownloadColumn(), rich.TransferSpeedColumn()] if unit == "bytes" else [rich.MofNCompleteColumn()]
    tasks: dict[str, rich.TaskID] = {}
    with rich.Progress(*columns, rich.TimeElapsedColumn(), console=Console(stderr=True)) as bars:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task((labels or {}).get(stage, stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


def _nothing(stage: str, done: int, total: int) -> None:
    del stage, done, total


def size(nbytes: float) -> str:
    """Bytes for people, e.g. ``93.4 MB``."""
    return f"{nbytes:.0f} B" if nbytes < 1000 else _scaled(nbytes, (" B", " kB", " MB", " GB", " TB"))


def count(number: float) -> str:
    """A number for people, e.g. ``134.5 M``."""
    return f"{number:.0f}" if number < 1000 else _scaled(number, ("", " k", " M", " G", " T"))


def _scaled(number: float, units: Sequence[str]) -> str:
    step = min(int(math.log10(number) / 3), len(units) - 1)
    return f"{number / 1000**step:.1f}{units[step]}"


def table(rows: list[list[str]], *, indent: str = "") -> str:
    """Rows of words in aligned columns, numbers not distinguished."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
    return "\n".join(indent + line.rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join([cells[0].ljust(widths[0]), *rest])} |"

    return "\n".join(map(line, [rows[0], rule, *rows[1:]]))
