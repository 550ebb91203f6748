"""Layouts of ternary weights are chosen by what all threads at once measure, shape by shape."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import ternary_models
from compiled import runnable_targets

from ryzc import targets
from ryzc.bundle.tuning import LayoutChoice
from ryzc.bundle.tuning import Trial as Record
from ryzc.compiler import build, plan
from ryzc.errors import UnsupportedError, UsageError
from ryzc.lower import layouts, shared_object


def test_every_shape_is_measured_and_a_plan_takes_what_came_out() -> None:
    checkpoint = ternary_models.checkpoint(ternary_models.model(0))
    planned = partial(plan, checkpoint)
    for name in runnable_targets():
        found = layouts.choose(lambda layout: planned(ternary=layout), targets.get(name), 2, 1 << 20)
        shapes = {(512, 256), (256, 256), (1024, 256), (256, 512)}  # q, k, v; output; gate and up; down
        assert {(c.rows, c.columns) for c in found} == shapes
        assert {c.threads for c in found} == {1, 2}
        layouts_ = {"planes", "dense", "lookup"} if name == "znver4" else {"planes"}
        for choice in found:
            assert {record.method for record in choice.trials} == layouts_
            assert all(record.ns > 0 for record in choice.trials)
        chosen = layouts.by_shape(found)
        for weight in planned(ternary=chosen).plan.weights:
            if weight.format == "ternary":
                assert weight.layout.removesuffix("_gated") == chosen[weight.rows, weight.columns]


def test_the_most_threads_decide() -> None:
    records = (Record("planes", 10), Record("dense", 9))
    found = [LayoutChoice("k", 64, 32, threads, records, chosen) for threads, chosen in ((1, "dense"), (2, "planes"))]
    assert layouts.by_shape(found) == {(64, 32): "planes"}


def test_other_models_have_nothing_to_choose(smollm2_path: Path, tmp_path: Path) -> None:
    from ryzc import sources

    planned = partial(plan, sources.open(str(smollm2_path)))
    assert layouts.choose(lambda layout: planned(ternary=layout), targets.get(runnable_targets()[0]), 2, 1 << 20) == ()
    with pytest.raises(UsageError, match="no ternary weights"):
        build(str(smollm2_path), tmp_path / "no.ryzc", ternary="dense")


def test_a_layout_without_a_kernel_is_refused() -> None:
    lowered = plan(ternary_models.checkpoint(ternary_models.model(0)), ternary="dense")
    with pytest.raises(UnsupportedError, match="no kernel for avx2"):
        shared_object(lowered.plan, targets.get("znver3"))
