"""A look at the core counts what it issues, and the table keeps apart what was timed alone and beside others."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest

from benchmarks import sharing
from benchmarks.sharing import Core, Layer, Moment, Prompt
from ryzc import targets
from ryzc.codegen import isa as instruction_sets


def test_a_look_at_this_core() -> None:
    target = targets.get("native")
    core = Core(target, instruction_sets.BY_NAME[target.isa])
    look = statistics.median(core.issued() for _ in range(15))
    assert 1 < look < 16, "instructions a cycle"
    assert core.peak() > 0


def test_moments_of_a_layer() -> None:
    target = targets.get("native")
    isa = instruction_sets.BY_NAME[target.isa]
    layer = Layer(target, isa, "q4_0")
    assert layer.run(3) == 3 * sharing.ROWS * sharing.COLUMNS
    out = layer._out.view(np.float32)
    first = out[: 3 * sharing.ROWS].copy()
    assert np.abs(first).max() > 0.1
    layer.run(16)
    assert np.array_equal(out[: len(first)], first), "the same whatever the batch"
    found = sharing.measure(Core(target, isa), {"layer": lambda: layer.run(16)}, 2)
    assert [len(moment.issued) for moment in found["layer"]] == [2, 2]
    assert all(moment.share > 0 for moment in found["layer"])


@pytest.mark.slow
def test_a_prompt_goes_through_a_whole_layer(tmp_path: Path) -> None:
    prompt = Prompt("llama-1b-q4_0", tmp_path)
    hidden, keys, feed_forward = 2048, 512, 8192
    weights = hidden * (2 * hidden + 2 * keys + 3 * feed_forward)
    assert prompt.run() == prompt.run() == sharing.MIDDLE * weights
    seen = sum(range(sharing.FIRST + 1, sharing.FIRST + sharing.MIDDLE + 1))
    assert prompt.attention == pytest.approx(2 * hidden * seen / (sharing.MIDDLE * weights))
    assert prompt.name == "a layer, tokens 192 to 320 of 512"


def test_what_was_timed_beside_others_stands_apart() -> None:
    alone = [Moment((6.0, 5.9), 0.7)] * 30
    found = {"a": [*alone, Moment((3.0, 3.1), 0.5), Moment((6.0, 3.0), 0.1)], "b": [Moment((4.5, 4.5), 0.6)]}
    lines = sharing.as_markdown(found, {"b": 0.1}).splitlines()
    assert lines[0] == (
        "92% of looks saw a core of our own, at 6.0 instructions a cycle; "
        "5% of looks saw a shared one, at 3.0 instructions a cycle"
    )
    assert lines[-2:] == ["| a | 70% | 30 | 50% | 1 |", "| b | – | 0 | – | 0 |"]


def test_the_best_look_may_have_been_shared() -> None:
    lines = sharing.as_markdown({"a": [Moment((3.0, 3.1), 0.5)] * 9}, {"a": 0.1}).splitlines()
    assert lines[0] == "100% of looks saw a shared one, at 3.0 instructions a cycle"
    assert lines[-1] == "| a | – | 0 | 50% (55% with attention) | 9 |"
