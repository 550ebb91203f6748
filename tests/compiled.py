"""Bundles of checkpoints that exist only in memory, for tests of the whole way from graph to native code."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ryzc import bundle, targets
from ryzc.compiler import plan
from ryzc.lower import Lowered, shared_object
from ryzc.sources.checkpoint import Checkpoint


def runnable_targets() -> list[str]:
    """One target of each instruction set that this CPU can run."""
    cpu = targets.detect()
    return [name for name in ("znver4", "x86-64-v3") if not targets.runnable(targets.get(name), cpu)]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """What ``make`` writes to a path and puts in place at its end; the first process of the test run does it."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            make(place)
    return place


def write_bundle(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    target: str = "x86-64-v3",
    activations: str = "int8",
    kv: str | None = None,
    ternary: str = "planes",
) -> Path:
    """Compile a checkpoint for one target; it gets no tokenizer."""
    lowered = plan(checkpoint, activations=activations, kv=kv, ternary=ternary)
    return write_lowered(lowered, directory, target=target)


def write_lowered(lowered: Lowered, directory: Path, *, target: str) -> Path:
    """Compile a plan for one target; it gets no tokenizer."""
    chosen = targets.get(target)
    bundle.write(
        directory,
        plan=lowered.plan,
        weights=lowered.weights,
        kernels={chosen.name: shared_object(lowered.plan, chosen)},
        required={chosen.name: sorted(chosen.features)},
        tokenizer_json="{}",
        tokenizer_config={},
    )
    return directory
