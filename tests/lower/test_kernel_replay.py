"""Kernel replay: generated code changes only where somebody meant it to."""

from __future__ import annotations

from copy import deepcopy

import kernel_replay
import tiny_models
from kernel_replay import Hashes

from ryzc.compiler import plan

SHOWN = 20


def test_kernels_are_those_of_the_golden_file() -> None:
    found = kernel_replay.differences(kernel_replay.hashes(kernel_replay.plans()), kernel_replay.read())
    places = "\n  ".join(found[:SHOWN] + [f"and {len(found) - SHOWN} more"] * (len(found) > SHOWN))
    assert not found, f"generated code has changed; if it was meant to: {kernel_replay.REGENERATE}\n  {places}"


def test_a_difference_is_named() -> None:
    ours = kernel_replay.hashes({"tiny": plan(tiny_models.llama(layers=1, make=tiny_models.hollow)).plan})
    golden: Hashes = deepcopy(ours)
    assert kernel_replay.differences(ours, golden) == []
    changed, gone = list(ours["avx2"])[:2]
    golden["avx2"][changed] = "0" * 12
    golden["avx2"]["old(columns=3)"] = golden["avx512_vnni"].pop(gone)
    golden["step"]["tiny"] = "0" * 12
    assert sorted(kernel_replay.differences(ours, golden)) == [
        f"changed {changed} on avx2",
        "changed step of tiny",
        "gone old(columns=3) on avx2",
        f"new {gone} on avx512_vnni",
    ]
