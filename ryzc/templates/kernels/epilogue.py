"""What a matrix kernel does with its sums: store, add to the residual, or gate.

``store``      out = y
``residual``   out = out + y
``silu``       out = silu(gate) * up
``gelu_tanh``  out = gelu_tanh(gate) * up
``relu2``      out = max(gate, 0)**2 * up

A gated tile holds 16 rows of the gate and the 16 matching rows of up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ryzc.codegen.vector import F32, I32, LINE, Function, Value, vec
from ryzc.errors import UnsupportedError
from ryzc.formats.lanes import TILE
from ryzc.templates.kernels import scalar_math

GATES = {"silu": scalar_math.silu, "gelu_tanh": scalar_math.gelu_tanh, "relu2": scalar_math.relu2}


@dataclass(frozen=True)
class Epilogue:
    """An epilogue for a layer of ``packed_rows`` that writes tokens ``stride`` elements apart."""

    kind: str
    packed_rows: int
    stride: int

    @property
    def gated(self) -> bool:
        return self.kind in GATES

    @contextmanager
    def rows(self, fn: Function, lanes: int, *, wide: bool) -> Iterator[list[Value]]:
        """Loop over the rows of a tile that are computed together; yields the first row of each vector.

        ``wide`` takes the whole tile at once, one sequential read; otherwise registers are left for more
        tokens. Of a gated tile the rows of the gate and their partners of up go together.
        """
        half = TILE // 2
        span, firsts = self.together(lanes, TILE // lanes if wide or lanes == half else 1 + self.gated)
        with fn.loop(0, half if self.gated else TILE, span) as loop:
            yield [loop.index + first for first in firsts]

    def together(self, lanes: int, vectors: int) -> tuple[int, list[int]]:
        """How a tile is cut into parts of so many row vectors: the rows between parts, and where vectors begin in one.

        Rows of the gate and their partners of up lie in the same part, one vector after the other.

        Raises:
            UnsupportedError: where a part would have no partners.
        """
        if not self.gated:
            return vectors * lanes, [v * lanes for v in range(vectors)]
        if vectors % 2:
            raise UnsupportedError(f"{vectors} vectors a panel are no pairs of gate and up", hint="build it again")
        firsts = range(0, vectors // 2 * lanes, lanes)
        return len(firsts) * lanes, [row for first in firsts for row in (first, first + TILE // 2)]

    def prefetch(self, fn: Function, tile: Value, out: Value, m: Value, count: int) -> None:
        """Ask for what :meth:`write` will write for ``count`` tokens from ``m`` on.

        Results of a prompt do not fit into a cache, and every token's line has to come from memory.
        """
        size = 4 * (TILE // 2 if self.gated else TILE)
        for t in range(count):
            line = fn.at(out, (m + t) * (4 * self.stride), tile * size)
            for part in range(0, size, LINE):
                fn.prefetch(line, part, write=True)

    def write(
        self, fn: Function, lanes: int, sums: list[list[Value]], rows: list[Value], tile: Value, out: Value, m: Value
    ) -> None:
        """Write the sums ``[token][row vector]`` of tokens from ``m`` on; ``rows`` are the vectors' first rows."""
        for t, of_token in enumerate(sums):
            line = fn.at(out, m * (4 * self.stride), t * 4 * self.stride)
            if self.gated:
                for gate_at in range(0, len(rows), 2):
                    gate, up = of_token[gate_at], of_token[gate_at + 1]
                    self._put(fn, lanes, GATES[self.kind](fn, gate) * up, line, tile * (TILE // 2) + rows[gate_at])
            else:
                for value, row in zip(of_token, rows, strict=True):
                    self._put(fn, lanes, value, line, tile * TILE + row)

    def _put(self, fn: Function, lanes: int, value: Value, line: Value, columns: Value) -> None:
        rows = self.packed_rows // 2 if self.gated else self.packed_rows
        where = fn.at(line, columns << 2)
        if rows % (TILE // 2 if self.gated else TILE) == 0:
            if self.kind == "residual":
                value = value + fn.load(value.type, where, align=4)
            fn.store(value, where, align=4)
            return
        # The last tile has rows that do not exist: touch only the lanes below `rows`.
        lane = (columns.to_int(I32)).splat(lanes) + fn.const(vec(I32, lanes), list(range(lanes)))
        mask = lane.compare("<", rows)
        if self.kind == "residual":
            value = value + fn.load_masked(vec(F32, lanes), mask, where)
        fn.store_masked(value, mask, where)
