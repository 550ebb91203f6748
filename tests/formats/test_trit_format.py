"""Weights rounded to ternary digits: the scales are the best there are, and what is ternary loses nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzc import formats
from ryzc.errors import UnsupportedError
from ryzc.formats.trit_format import TritFormat, best_scales

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
HALF = 2.0**-22
"""What rounding a scale to float16 adds to the error, at most, as a share of what the codes mean: (2^-11)^2."""

matrices = st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]))


def trits(name: str) -> TritFormat:
    fmt = formats.get(name)
    assert isinstance(fmt, TritFormat)
    return fmt


def weights(shape: tuple[int, int, int, float]) -> F32:
    """Normal ones, a few far out, and a block of zeros."""
    n, blocks, seed, size = shape
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n, 32 * blocks)) * np.where(rng.random((n, 32 * blocks)) < 0.02, 6, 1)
    w[0, :32] = 0
    return (w * size).astype(np.float32)


def losses(fmt: TritFormat, w: F32, h: F32 | None = None) -> F64:
    """Of each block, ``[N, blocks]``."""
    squares = np.square(w.astype(np.float64) - fmt.decode(fmt.quantize(w, h))) * (1 if h is None else h)
    return squares.reshape(len(w), -1, 32).sum(axis=2)


@given(matrices)
def test_no_block_is_worse_than_zeros_nor_two_digits_than_one(shape: tuple[int, int, int, float]) -> None:
    w = weights(shape)
    size = np.square(w.astype(np.float64)).reshape(len(w), -1, 32).sum(axis=2)
    one, two = losses(trits("trit1"), w), losses(trits("trit2"), w)
    assert (one <= size).all()
    assert (two <= one + HALF * size).all()
    # In sevenths of twice the largest weight, none is farther than half a step from -4 .. 3.
    largest = np.abs(w).reshape(len(w), -1, 32).max(axis=2)
    assert (two <= 32 * (largest / 7) ** 2 + HALF * size).all()


@given(matrices, st.integers(0, 2**32 - 1))
def test_importance_saves_where_it_counts(shape: tuple[int, int, int, float], seed: int) -> None:
    w = weights(shape)
    h = np.random.default_rng(seed).exponential(size=w.shape[1]).astype(np.float32)
    for name in ("trit1", "trit2"):
        fmt = trits(name)
        plain = np.square(w.astype(np.float64) - fmt.decode(fmt.quantize(w))) * h
        size = (np.square(w.astype(np.float64)) * h).reshape(len(w), -1, 32).sum(axis=2)
        assert (losses(fmt, w, h) <= plain.reshape(len(w), -1, 32).sum(axis=2) + HALF * size).all()


@pytest.mark.parametrize(("down", "up"), [(1, 1), (4, 3), (2, 0)])
def test_no_scale_is_better(down: int, up: int) -> None:
    rng = np.random.default_rng(down)
    blocks = rng.normal(size=(20, 3, 8)).astype(np.float32)
    h = rng.exponential(size=(3, 8)).astype(np.float32)

    def loss(d: F64) -> F64:
        steps = np.rint(blocks / d[:, :, None]).clip(-down, up)
        found: F64 = (h * np.square(blocks - d[:, :, None] * steps)).sum(axis=2)
        return found

    signs = (1,) if down == up else (1, -1)
    tried = [loss(np.full((20, 3), sign * d)) for sign in signs for d in np.linspace(0.02, 6, 3000)]
    best = loss(best_scales(blocks, down, up, h))
    assert (best <= np.min(tried, axis=0) + 1e-9).all()


@pytest.mark.parametrize("name", ["trit1", "trit2"])
@given(matrices)
def test_ternary_weights_lose_nothing(name: str, shape: tuple[int, int, int, float]) -> None:
    fmt = trits(name)
    rng = np.random.default_rng(shape[2])
    scales = np.abs(weights(shape)[:, ::32]).astype(np.float16).astype(np.float32)
    digits = rng.integers(-1, 2, (shape[0], shape[1], 32)).astype(np.float32)
    w = (digits * scales[:, :, None]).reshape(shape[0], -1)
    assert np.array_equal(fmt.decode(fmt.quantize(w)), w)


@pytest.mark.parametrize("name", ["trit1", "trit2"])
def test_what_cannot_be_held_is_refused(name: str) -> None:
    for bad in (np.nan, np.inf, 1e9):
        with pytest.raises(UnsupportedError, match="not finite"):
            trits(name).quantize(np.full((1, 32), bad, np.float32))
    with pytest.raises(ValueError, match="not whole blocks"):
        trits(name).quantize(np.ones((1, 48), np.float32))
