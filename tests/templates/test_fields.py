"""Taking bits out of bytes: every instruction set's way says what shifts and masks say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from harness import for_every_isa, frozen, run
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import I32, vec
from ryzc.templates.kernels.kernel import Kernel, begin

PLACES = [(s, w, low) for w in range(1, 8) for s in range(9 - w) for low in range(9 - w)]


@dataclass(frozen=True)
class Fields(Kernel):
    """``out[i]`` holds field ``i`` of every byte of ``x``, for all of ``places``."""

    places: tuple[tuple[int, int, int], ...]

    operands: ClassVar[tuple[str, ...]] = ("x", "out")

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        for i in range(0, 16, isa.lanes):
            word = fn.load(vec(I32, isa.lanes), fn.args["x"], 4 * i)
            for row, place in enumerate(self.places):
                fn.store(isa.field(word, *place), fn.args["out"], 64 * row + 4 * i)
        fn.finish()


@for_every_isa
def test_every_field_of_every_byte(target: str) -> None:
    """All 256 bytes, four vectors of them, through all places that a field can have and go to."""
    for part in np.arange(256, dtype=np.uint8).reshape(4, 64):
        out = np.zeros((len(PLACES), 64), np.uint8)
        run(Fields(tuple(PLACES)), target, [frozen(part), out], token_count=1)
        expected = [(part >> s & (1 << w) - 1) << low for s, w, low in PLACES]
        assert np.array_equal(out, np.array(expected, np.uint8))
