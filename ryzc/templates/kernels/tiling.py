"""How matrix kernels cut their work: items for threads, then tiles of tokens for registers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ryzc.codegen.vector import Function, Value
from ryzc.templates.kernels.kernel import share

PANEL = 64
"""Tokens of a work item: a tile's weights stay in L1 while they meet a panel."""


@contextmanager
def work_items(fn: Function, tiles: int, tokens: Value) -> Iterator[tuple[Value, Value, Value]]:
    """Loop over this thread's (weight tile, panel of tokens); yields ``tile, first token, last token``.

    Items run through the panels of a tile before the next tile, so weights are read once from memory.
    """
    panels = (tokens + (PANEL - 1)) // PANEL
    start, stop = share(fn, panels * tiles)
    with fn.loop(start, stop) as items:
        tile = items.index // panels
        first = (items.index % panels) * PANEL
        yield tile, first, fn.below(first + PANEL, tokens)


@contextmanager
def token_tiles(
    fn: Function, first: Value, last: Value, widths: tuple[int, ...]
) -> Iterator[Iterator[tuple[Value, int]]]:
    """Cover tokens ``first .. last`` by tiles, widest first; the body is emitted once for each width."""

    def emit() -> Iterator[tuple[Value, int]]:
        start = first
        for width in widths:
            count = (last - start) // width
            with fn.loop(0, count) as tiles:
                yield start + tiles.index * width, width
            start = start + count * width

    yield emit()
