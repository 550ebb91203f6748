"""RMS norm kernels against float64, and the copy of selected rows.

Bound: K squares are summed in 16 lanes and by halving, all of one sign, so the sum is off by at most
``K / 16 + 5`` roundings, its root by half of that; division, root and two products add four more.
"""

from __future__ import annotations

import numpy as np
import pytest
from harness import close, examples, floats, for_every_isa, frozen, run, same_bits
from hypothesis import given
from hypothesis import strategies as st

from ryzc.errors import UnsupportedError
from ryzc.templates.kernels import norm, rms
from ryzc.templates.kernels.norm import Norm
from ryzc.templates.kernels.norm_add import NormAdd
from ryzc.templates.kernels.norm_add import reference as norm_add_reference
from ryzc.templates.kernels.norm_quantize import NormQuantize
from ryzc.templates.kernels.quantize import Quantize
from ryzc.templates.kernels.select_rows import SelectRows

UNIT = 2.0**-24

columns = st.sampled_from([16, 32, 48, 112, 576, 640, 1536])
tokens = st.integers(1, 9)
threads = st.integers(1, 3)
seeds = st.integers(0, 2**32 - 1)
epsilons = st.sampled_from([1e-5, 1e-6])


def relative_bound(k: int) -> float:
    return UNIT * (k / 32 + 8)


@for_every_isa
@examples
@given(columns, tokens, threads, epsilons, seeds)
def test_norm(target: str, k: int, count: int, workers: int, epsilon: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight, out = floats(rng, count, k), floats(rng, k), np.full((count, k), np.nan, np.float32)
    run(Norm(k, epsilon), target, [frozen(x), frozen(weight), out], threads=workers, token_count=count)
    expected = norm.reference(x, weight, epsilon)
    close(out, expected, relative_bound(k) * np.abs(expected) + 1e-37)


@for_every_isa
@examples
@given(columns, tokens, threads, epsilons, seeds)
def test_norm_add(target: str, k: int, count: int, workers: int, epsilon: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight, residual = floats(rng, count, k), floats(rng, k), floats(rng, count, k)
    out = residual.copy()
    run(NormAdd(k, epsilon), target, [frozen(x), frozen(weight), out], threads=workers, token_count=count)
    expected = norm_add_reference(x, weight, residual, epsilon)
    normed = np.abs(rms.reference(x, weight, epsilon))
    close(out, expected, relative_bound(k) * normed + UNIT * np.abs(expected) + 1e-37)


@for_every_isa
def test_norm_counts_the_rows_it_is_told_to(target: str) -> None:
    x, out = floats(np.random.default_rng(1), 4, 32), np.zeros((4, 32), np.float32)
    run(Norm(32, 1e-5, "row_count"), target, [x, np.ones(32, np.float32), out], token_count=4, row_count=2)
    assert (out[:2] != 0).all()
    assert (out[2:] == 0).all()


@for_every_isa
def test_norm_of_zeros_and_extremes(target: str) -> None:
    x = np.zeros((3, 64), np.float32)
    x[1] = 1e18  # the largest whose squares still sum
    x[2] = 1e-30
    out = np.empty_like(x)
    run(Norm(64, 1e-5), target, [x, np.ones(64, np.float32), out], token_count=3)
    expected = norm.reference(x, np.ones(64, np.float32), 1e-5)
    assert (out[0] == 0).all()
    close(out, expected, relative_bound(64) * np.abs(expected))


@for_every_isa
@examples
@given(columns, seeds)
def test_norm_does_not_depend_on_the_batch(target: str, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight = floats(rng, 7, k), floats(rng, k)
    whole = np.empty_like(x)
    run(Norm(k, 1e-5), target, [x, weight, whole], threads=3, token_count=7)
    for i in range(7):
        alone = np.empty((1, k), np.float32)
        run(Norm(k, 1e-5), target, [x[i : i + 1], weight, alone], token_count=1)
        assert same_bits(alone[0], whole[i])


@for_every_isa
@examples
@given(st.sampled_from([16, 48, 576]), st.integers(1, 6), st.integers(0, 8), threads, seeds)
def test_select_rows(target: str, k: int, count: int, wanted: int, workers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, rows = floats(rng, count, k), rng.integers(0, count, 8).astype(np.int32)
    out = np.full((8, k), 7, np.float32)
    run(SelectRows(k), target, [frozen(x), out], threads=workers, row_count=wanted, rows=frozen(rows))
    assert same_bits(out[:wanted], x[rows[:wanted]])
    assert (out[wanted:] == 7).all()


def test_other_shapes_are_refused() -> None:
    for make, k in ((Norm, 40), (NormAdd, 8), (NormQuantize, 48)):
        with pytest.raises(UnsupportedError, match=f"columns is {k}") as caught:
            make(k, 1e-5)
        assert caught.value.hint
    with pytest.raises(UnsupportedError, match="multiple of 32"):
        Quantize(16)
    with pytest.raises(UnsupportedError, match="multiple of 16"):
        SelectRows(0)
