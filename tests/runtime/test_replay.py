"""Traces: reading them, replaying them through an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_model import FIRST_LETTER, ToyStep, toy_engine

from benchmarks import traces
from ryzc.errors import UserError
from ryzc.runtime import replay


@pytest.mark.parametrize("kind", traces.KINDS)
def test_a_made_trace_can_be_read(kind: str, tmp_path: Path) -> None:
    entries = list(traces.KINDS[kind](40, 2.0, 0.25, 1))
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found = replay.read(path)
    assert len(found) == 40
    assert [a.seconds for a in found] == sorted(a.seconds for a in found)
    assert all(len(a.blocks) <= a.input_length // replay.BLOCK for a in found)
    assert len({a.blocks[0] for a in found if a.blocks}) < 40


def test_equal_blocks_are_equal_tokens() -> None:
    first, second = (replay.Arrival(0.0, 1200, 1, (7, 8)), replay.Arrival(0.0, 1100, 1, (7, 9)))
    one, other = replay.prompt(first, 0, 1000), replay.prompt(second, 1, 1000)
    assert (len(one), len(other)) == (1200, 1100)
    assert one[:512] == other[:512]
    assert one[512:] != other[512:][: len(one) - 512]


@pytest.mark.parametrize("line", ["x", "[]", "{}", '{"timestamp": -1, "input_length": 1, "output_length": 1}'])
def test_refuses_what_is_no_trace(line: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match="line 1"):
        replay.read(path)


def test_replays() -> None:
    step = ToyStep(context=64, sequences=5, pages=80, max_tokens=16, max_rows=8, script=[FIRST_LETTER])
    engine, _ = toy_engine(step, sequences=4, background=True)
    trace = [replay.Arrival(i / 1000, 5 + i, 4) for i in range(12)]
    with engine:
        summary = replay.replay(engine, trace)
    assert (summary.requests, summary.refused, summary.failed) == (12, 0, 0)
    assert summary.time_to_first_token[0] <= summary.time_to_first_token[2] <= summary.total[2]
    assert summary.output_per_second * summary.seconds == pytest.approx(48)
