"""Work items cover every tile of weights and every token once, whoever takes which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import harness
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import I32
from ryzc.templates.kernels.kernel import Kernel, begin, context_field
from ryzc.templates.kernels.tiling import MOST, PANEL, span, work_items

SIZES = {"one panel": 12_000, "two": 3_000, "many": 900}
"""Bytes of a token's activations, by how many panels stay in a cache."""


@dataclass(frozen=True)
class Visits(Kernel):
    """Counts visits, ``int32 [tiles, tokens]``, and those by items that are too long, one more ``int32``."""

    tiles: int
    token_bytes: int

    operands: ClassVar[tuple[str, ...]] = ("visits", "long")

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        tokens = context_field(fn, "token_count")
        long = fn.args["long"]
        with work_items(fn, self.tiles, tokens, self.token_bytes) as (tile, first, last):
            with fn.when((last - first).compare(">", MOST)):
                fn.store(fn.load(I32, long, align=4) + 1, long, align=4)
            with fn.loop(first, last) as token:
                at = fn.at(fn.args["visits"], (tile * tokens + token.index) << 2)
                fn.store(fn.load(I32, at, align=4) + 1, at, align=4)
        fn.finish()


def test_sizes_are_what_they_are_called() -> None:
    panels = [span(size) // PANEL for size in SIZES.values()]
    assert panels[:2] == [1, 2]
    assert panels[2] > 2


@harness.for_every_isa
@given(st.sampled_from(list(SIZES.values())), st.sampled_from([1, 6, 40]), st.integers(1, 1200), st.integers(1, 5))
@harness.examples
def test_every_token_meets_every_tile_once(target: str, size: int, tiles: int, tokens: int, threads: int) -> None:
    visits, long = np.zeros((tiles, tokens), np.int32), np.zeros(1, np.int32)
    harness.run(Visits(tiles, size), target, [visits, long], threads=threads, token_count=tokens)
    assert (visits == 1).all()
    assert long[0] == 0
