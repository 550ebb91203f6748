"""Ternary weights: nothing is lost between rows and packed tiles, and absmean is the paper's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzc import formats
from ryzc.errors import UnsupportedError
from ryzc.formats import TernaryFormat, trits
from ryzc.formats.lanes import TILE

shapes = st.tuples(st.integers(1, 70), st.integers(1, 30), st.integers(0, 2**32 - 1))


def ternary() -> TernaryFormat:
    fmt = formats.get("ternary")
    assert isinstance(fmt, TernaryFormat)
    return fmt


def test_sizes() -> None:
    fmt = ternary()
    assert (fmt.bits_per_weight, fmt.row_bytes(96), fmt.columns(28)) == (2.0, 28, 96)
    with pytest.raises(ValueError, match="not whole blocks"):
        fmt.row_bytes(48)


@given(shapes)
def test_rows_and_tiles_lose_nothing(shape: tuple[int, int, int]) -> None:
    fmt, (n, blocks, seed) = ternary(), shape
    rng = np.random.default_rng(seed)
    k = 32 * blocks
    weights = rng.integers(-1, 2, (n, k)).astype(np.int8)
    scales = rng.normal(size=n).astype(np.float32)
    stored = fmt.unparse(weights, scales)
    parsed = fmt.parse(stored)
    assert np.array_equal(parsed[0], weights)
    assert np.array_equal(parsed[1], scales)
    assert np.array_equal(fmt.decode(stored), weights.astype(np.float32) * scales[:, None])
    for layout, of in trits.LAYOUTS.items():
        packed = trits.pack(fmt, stored, layout)
        assert packed.shape == (-(-n // of.rows), of.tile_bytes(k))
        assert np.array_equal(trits.unpack(fmt, packed, n, k, layout), stored)


def test_bits_a_weight() -> None:
    for layout, most in (("planes", 2.1), ("dense", 1.7), ("lookup", 1.7)):
        of = trits.LAYOUTS[layout]
        assert 8 * of.tile_bytes(2560) / (of.rows * 2560) <= most


@pytest.mark.parametrize("layout", trits.LAYOUTS)
def test_packing_in_chunks_gives_the_same_bytes(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = ternary()
    stored = fmt.quantize(np.random.default_rng(1).normal(size=(5 * TILE + 7, 64)).astype(np.float32))
    whole = trits.pack(fmt, stored, layout)
    monkeypatch.setattr(trits, "_CHUNK", 2 * TILE * 64)
    assert np.array_equal(trits.pack(fmt, stored, layout), whole)


def test_absmean() -> None:
    fmt = ternary()
    weights = np.array([[0.6, -0.2, 0.0, 1.2] * 8], np.float32)
    trits_, scales = fmt.parse(fmt.quantize(weights))
    assert scales == pytest.approx([0.5])
    assert trits_[0, :4].tolist() == [1, 0, 0, 1]
    assert fmt.parse(fmt.quantize(np.zeros((2, 32), np.float32)))[1] == pytest.approx([1e-5, 1e-5])
    with pytest.raises(UnsupportedError, match="not finite"):
        fmt.quantize(np.full((1, 32), np.nan, np.float32))
