"""The loops that read and multiply at once do both, and their table divides what it should."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import overlap
from ryzc import targets
from ryzc.codegen import isa as instruction_sets
from ryzc.runtime import memory


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "COLD", 1 << 20)
    monkeypatch.setattr(overlap, "NEAR", 1 << 14)


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_a_bare_loop_multiplies_every_line(target: str) -> None:
    chosen = targets.get(target)
    if targets.runnable(chosen, targets.detect()):
        pytest.skip("not on this CPU")
    isa = instruction_sets.BY_NAME[chosen.isa]
    weights, sink = memory.anonymous(overlap.COLD + overlap.AHEAD[1]), memory.anonymous(1 << 16)
    weights[:] = 1
    x = np.random.default_rng(0).integers(-9, 9, (4, isa.lanes, 4)).astype(np.int8)
    for work in overlap.bare_loops(chosen, isa, weights, sink):
        sink[: x.nbytes] = x.view(np.uint8).reshape(-1)
        lines = work.cold()
        assert lines == overlap.COLD // overlap.LINE
        if work.products != "0":
            halves = overlap.LINE // (4 * isa.lanes)
            products = range(int(work.products) // halves)
            turns = [(i // len(x) + 1, x[i % len(x)].astype(np.int64).sum(axis=1)) for i in products]
            expected = lines * halves * sum(code * sums for code, sums in turns)
            assert np.array_equal(sink.view(np.int32)[: isa.lanes], expected.astype(np.int32))


def test_a_layer_goes_through_all_of_memory() -> None:
    chosen = targets.get("native")
    sink = memory.anonymous(1 << 16)
    works = overlap.layers(chosen, instruction_sets.BY_NAME[chosen.isa], "q4_0", sink)
    assert len(works) == len(overlap.BATCHES)
    found = []
    for work in works:
        lines = work.cold()
        assert 0.5 < lines * overlap.LINE / overlap.COLD <= 1
        found.append(sink.view(np.float32)[: overlap.ROWS].copy())
    assert np.abs(found[0]).max() > 0.1
    assert all(np.array_equal(found[0], other) for other in found), "the first token is the same in every batch"


def test_ratios_are_taken_within_rounds() -> None:
    works = [overlap.Work(name, "0", lambda: 1, lambda: 1) for name in ("reading", "loop")]
    table = overlap.as_markdown(works, [([2.0, 4.0, 8.0], [1.0, 1.0, 1.0]), ([3.0, 8.0, 12.0], [1.0, 5.0, 10.0])])
    assert table.splitlines()[-1] == "| loop | 0 | 8.00 | 5.00 | 1.50 | 1.50 |"
