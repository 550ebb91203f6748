"""Embedding rows of every weight format: bit-equal to the format's meaning."""

from __future__ import annotations

import numpy as np
import pytest
from harness import examples, for_every_isa, frozen, run, same_bits
from hypothesis import given
from hypothesis import strategies as st

from ryzc import formats
from ryzc.formats import AffineFormat, Codes, WeightFormat, lanes
from ryzc.formats.weight_format import U8
from ryzc.templates.kernels.embedding import Embedding, reference

seeds = st.integers(0, 2**32 - 1)


def random_rows(fmt: WeightFormat, n: int, k: int, rng: np.random.Generator) -> U8:
    """Stored rows with any codes and factors, and finite scales."""
    if not isinstance(fmt, AffineFormat):
        return fmt.quantize(rng.normal(size=(n, k)).astype(np.float32))
    parsed = fmt.parse(rng.integers(0, 256, (n, fmt.row_bytes(k)), np.uint8))
    d = rng.normal(size=parsed.d.shape).astype(np.float16)
    m = None if parsed.m is None else rng.normal(size=parsed.m.shape).astype(np.float16)
    return fmt.unparse(Codes(q=parsed.q, d=d, s=parsed.s, m=m, t=parsed.t))


@for_every_isa
@pytest.mark.parametrize("name", [name for name in formats.names() if name != "ternary"])
@examples
@given(st.sampled_from([(70, 1, 1.0), (33, 3, 25.298221281347036)]), st.integers(1, 6), st.integers(1, 3), seeds)
def test_embedding(target: str, name: str, shape: tuple[int, int, float], count: int, threads: int, seed: int) -> None:
    rows, blocks, scale = shape
    rng = np.random.default_rng(seed)
    fmt = formats.get(name)
    k = blocks * max(fmt.block, 16)
    stored = random_rows(fmt, rows, k, rng)
    ids = rng.integers(0, rows, count).astype(np.int32)
    ids[0] = rows - 1
    out = np.full((count, k), np.nan, np.float32)
    kernel = Embedding(name, rows, k, scale)
    packed = lanes.pack(fmt, stored)
    run(kernel, target, [frozen(packed), out], threads=threads, token_count=count, tokens=frozen(ids))
    assert same_bits(out, reference(fmt, stored, ids, scale))
