"""How matrix kernels cut their work: items for threads, then tiles of tokens for registers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ryzc.codegen.vector import Function, Value
from ryzc.templates.kernels.kernel import share

PANEL = 96
"""Tokens of a work item, or twice as many: a weight tile is taken apart once for all of them."""
MOST = 2 * PANEL
ITEMS = 8
"""Work items that each thread should have at least: with fewer, some threads would wait long for others."""
RESIDENT = 768 << 10
"""Bytes of activations that should stay in an L2 cache while all tiles of weights pass by."""


def span(token_bytes: int) -> int:
    """Tokens, in whole panels, that meet all tiles of weights before the next tokens do.

    The more there are, the fewer times weights are read from memory; but activations that do not stay in the
    L2 cache are themselves read anew for every tile.
    """
    return max(1, RESIDENT // (token_bytes * PANEL)) * PANEL


@contextmanager
def work_items(fn: Function, tiles: int, tokens: Value, token_bytes: int) -> Iterator[tuple[Value, Value, Value]]:
    """Loop over this thread's (weight tile, up to ``MOST`` tokens); yields ``tile, first token, last token``.

    Within a span of tokens items run through the panels of a tile before the next tile, so that weights are read
    once a span. ``token_bytes`` is the size of a token's activations.
    """
    size = span(token_bytes)
    spans = (tokens + (size - 1)) // size
    with fn.loop(0, spans) as outer:
        start = outer.index * size
        stop = fn.below(start + size, tokens)
        panel = _panel(fn, size, tiles, stop - start)
        panels = (stop - start + (panel - 1)) // panel
        with fn.loop(*share(fn, panels * tiles)) as items:
            first = start + (items.index % panels) * panel
            yield items.index // panels, first, fn.below(first + panel, stop)


def _panel(fn: Function, size: int, tiles: int, tokens: Value) -> Value:
    """Tokens of an item: many where a span holds them, and enough items are left for all threads."""
    if size < MOST:
        return fn.i64(PANEL)
    enough = (tokens * tiles).compare(">=", fn.args["threads"] * (ITEMS * MOST))
    return enough.select(fn.i64(MOST), PANEL)


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
