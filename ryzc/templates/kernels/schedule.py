"""Which way of multiplying a batch of some size takes: methods by name, and schedules of them.

A method is written ``direct-8x1``, ``direct-1x2-p1024`` or ``panel-6x2``:

* ``direct`` decodes packed weights in registers, again for every tile of tokens; ``panel`` first takes a
  stretch of a weight tile apart into the L1 cache, and then reads it for up to 192 tokens; ``lookup`` finds sums
  in tables that are made of a token's activations (:mod:`.bit_lookup`);
* ``6x2``: six tokens times two vectors of rows are summed while weights pass by once;
* ``p1024``: weights are asked for 1024 bytes ahead of their use.

None of it changes a bit of the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import Function, Value
from ryzc.errors import UnsupportedError

_AHEAD, _FAR_AHEAD = "-p1024", "-p4096"
"""How far ahead weights are asked for. The farther is 2 to 4 % faster where weights are decoded in registers at the
rate of memory; products of AVX2, and panels, are no faster for it."""
_METHOD = re.compile(r"(direct|panel|lookup)-(\d+)x(\d+)(?:-p(\d+))?")


@dataclass(frozen=True)
class Method:
    """A way of multiplying, see the module.

    Attributes:
        kind: ``direct``, ``panel`` or ``lookup``.
        tokens, vectors: the register tile.
        prefetch: bytes ahead of use, into L1; 0 leaves it to the CPU.
    """

    kind: str
    tokens: int
    vectors: int
    prefetch: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Tile widths that cover any number of tokens, widest first; more where each tile decodes weights again."""
        finer = (12, 8, 6, 4, 3, 2, 1) if self.kind == "direct" else (8, 4, 2, 1)
        return (self.tokens, *(width for width in finer if width < self.tokens))


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        UnsupportedError: where there is none.
    """
    found = _METHOD.fullmatch(name)
    if found is None or not int(found[2]) or not int(found[3]):
        raise UnsupportedError(f"{name!r} is no way to multiply", hint="build the bundle again")
    return Method(found[1], int(found[2]), int(found[3]), int(found[4] or 0))


def default(isa: Isa) -> tuple[str, ...]:
    """The schedule of a linear layer that nobody tuned."""
    if isa.registers == 32:
        return (f"16:direct-16x2{_FAR_AHEAD}", f"512:panel-6x2{_AHEAD}")
    return (f"12:direct-4x2{_AHEAD}", f"512:panel-4x2{_AHEAD}")


def methods(isa: Isa) -> tuple[str, ...]:
    """The ways of multiplying that are worth a try on an instruction set.

    Asking for weights ahead gains up to 60 % on a CPU whose own prefetching gives up between computations, and may
    be in the way of one that knows better.
    """
    if isa.registers == 32:
        direct: tuple[str, ...] = ("direct-8x2", "direct-16x2", "direct-24x2")
        panels: tuple[str, ...] = ("panel-6x2", "panel-8x2")
        ahead = _FAR_AHEAD
    else:
        direct, panels, ahead = ("direct-4x1", "direct-4x2"), ("panel-4x2",), _AHEAD
    return (*direct, *panels, *(f"{name}{ahead}" for name in direct), *(f"{name}{_AHEAD}" for name in panels))


@contextmanager
def _between(fn: Function, count: Value, above: int, limit: int | None) -> Iterator[None]:
    inside = count.compare(">", above)
    if limit is not None:
        inside = inside & count.compare("<=", limit)
    with fn.when(inside):
        yield


def each(fn: Function, count: Value, schedule: Sequence[str]) -> Iterator[Method]:
    """The methods of a schedule in turn; what is emitted for one runs where ``count`` tokens call for it.

    Raises:
        UnsupportedError: where an entry is no ``N:METHOD``, or they do not ascend.
    """
    above = 0
    for i, entry in enumerate(schedule):
        size, _, name = entry.partition(":")
        if not size.isdecimal() or int(size) <= above:
            raise UnsupportedError(f"schedule {', '.join(schedule)}: {entry!r} does not ascend", hint="build it again")
        with _between(fn, count, above, None if i == len(schedule) - 1 else int(size)):
            yield method(name)
        above = int(size)
