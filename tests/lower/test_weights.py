"""What the planner packs can be turned back into the bytes of the file: nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzc import formats, sources
from ryzc.compiler import plan
from ryzc.formats import lanes
from ryzc.lower.weights import HALF_TILE


@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_packed_weights_are_the_files_bytes(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    checkpoint = sources.open(path)
    seen: set[str] = set()
    for weight, produce in plan(checkpoint).weights:
        packed = produce()
        assert packed.nbytes == weight.bytes
        if weight.layout == "plain":
            if weight.name in checkpoint.tensors:
                assert np.array_equal(packed, checkpoint.tensors[weight.name].data.reshape(-1))
                seen.add(weight.name)
            continue
        fmt = formats.get(weight.format)
        rows = lanes.unpack(fmt, packed.reshape(-1, lanes.tile_bytes(fmt, weight.columns)), weight.rows)
        if weight.layout == "gated":
            halves = rows.reshape(-1, 2, HALF_TILE, rows.shape[1])
            parts = [halves[:, i].reshape(-1, rows.shape[1]) for i in range(2)]
        else:
            counts = [len(checkpoint.tensors[name].data) for name in weight.sources]
            parts = np.split(rows, np.cumsum(counts)[:-1])
        for name, part in zip(weight.sources, parts, strict=True):
            assert np.array_equal(part, checkpoint.tensors[name].data), name
            seen.add(name)
    assert seen == set(checkpoint.tensors)
