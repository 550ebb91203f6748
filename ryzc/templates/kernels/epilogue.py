"""What a matrix kernel does with its sums: store, add to the residual, or gate.

``store``      out = y
``residual``   out = out + y
``silu``       out = silu(gate) * up
``gelu_tanh``  out = gelu_tanh(gate) * up

A gated tile holds 16 rows of the gate and the 16 matching rows of up.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzc.codegen.vector import F32, I32, Function, Value, vec
from ryzc.formats.lanes import TILE
from ryzc.templates.kernels import scalar_math

GATES = {"silu": scalar_math.silu, "gelu_tanh": scalar_math.gelu_tanh}


@dataclass(frozen=True)
class Epilogue:
    """An epilogue for a layer of ``rows`` packed rows that writes tokens ``stride`` elements apart."""

    kind: str
    rows: int
    stride: int

    @property
    def gated(self) -> bool:
        return self.kind in GATES

    def passes(self, lanes: int, *, wide: bool) -> list[list[int]]:
        """Which row vectors of a tile are computed together.

        ``wide`` takes as many as give one sequential read of the tile; otherwise registers are left
        for more tokens.
        """
        count = TILE // lanes
        if self.gated:
            pairs = [[i, i + count // 2] for i in range(count // 2)]
            return [[v for pair in pairs for v in pair]] if wide else pairs
        if wide:
            return [list(range(count))]
        per_pass = 2 if lanes == 16 else 1
        return [list(range(i, i + per_pass)) for i in range(0, count, per_pass)]

    def write(
        self, fn: Function, lanes: int, sums: list[list[Value]], vectors: list[int], tile: Value, out: Value, m: Value
    ) -> None:
        """Write the sums ``[token][row vector]`` of tokens from ``m`` on."""
        for t, of_token in enumerate(sums):
            row = fn.at(out, m * (4 * self.stride), t * 4 * self.stride)
            if self.gated:
                for gate_at in range(0, len(vectors), 2):
                    gate, up = of_token[gate_at], of_token[gate_at + 1]
                    self._put(fn, lanes, GATES[self.kind](fn, gate) * up, row, tile * (TILE // 2), vectors[gate_at])
            else:
                for value, v in zip(of_token, vectors, strict=True):
                    self._put(fn, lanes, value, row, tile * TILE, v)

    def _put(self, fn: Function, lanes: int, value: Value, row: Value, first: Value, v: int) -> None:
        rows = self.rows // 2 if self.gated else self.rows
        columns = first + v * lanes
        where = fn.at(row, columns << 2)
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
