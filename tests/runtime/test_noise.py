"""The noise is uniform bits, whichever of seed, position and id is counted up, and neighbours tell nothing."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from ryzc.runtime.sampling import noise

U32 = npt.NDArray[np.uint32]
COUNT = 1 << 16


def along(what: str, start: int, count: int = COUNT) -> U32:
    """Bits of neighbours: ids of one row, or one id of neighbouring rows."""
    if what == "ids":
        return noise.bits(start, 7, np.arange(count))
    if what == "positions":
        return np.array([noise.bits(5, start + i, np.array([17]))[0] for i in range(count)])
    return np.array([noise.bits(start + i, 17, np.array([5]))[0] for i in range(count)])


def unlikely(chi_square: float, degrees: int) -> bool:
    return abs(chi_square - degrees) > 4 * math.sqrt(2 * degrees)


AXES = pytest.mark.parametrize("what", ["ids", "positions", "seeds"])


@AXES
@pytest.mark.parametrize("start", [0, 1 << 40])
def test_uniform(what: str, start: int) -> None:
    values = along(what, start, COUNT if what == "ids" else 8192)
    for shift in (23, 11, 0):  # of 31 bits, eight at the top, in the middle and at the bottom
        counts = np.bincount((values >> shift) & 255, minlength=256)
        expected = len(values) / 256
        assert not unlikely(((counts - expected) ** 2 / expected).sum(), 255)


@AXES
@pytest.mark.parametrize("distance", [1, 2, 256])
def test_neighbours_are_independent(what: str, distance: int) -> None:
    values = along(what, 0, COUNT if what == "ids" else 8192) >> 27
    pairs = values[:-distance].astype(np.int64) * 16 + values[distance:]
    expected = len(pairs) / 256
    assert not unlikely(((np.bincount(pairs, minlength=256) - expected) ** 2 / expected).sum(), 255)


@pytest.mark.parametrize(("seed", "position"), [(1, 0), (0, 1), (1 << 63, 0), (1 << 32, 0), (0, 1 << 32)])
def test_rows_that_differ_in_a_bit_share_nothing(seed: int, position: int) -> None:
    ids = np.arange(COUNT)
    flipped = noise.bits(0, 0, ids) ^ noise.bits(seed, position, ids)
    ones = np.array([((flipped >> i) & 1).mean() for i in range(31)])
    assert (np.abs(ones - 0.5) < 4 * 0.5 / math.sqrt(COUNT)).all()
    correlation = np.corrcoef(noise.gumbel(0, 0, ids), noise.gumbel(seed, position, ids))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(COUNT)


def test_seed_and_position_do_not_add_up() -> None:
    keys = {noise.key(seed, position) for seed in range(100) for position in range(100)}
    assert len(keys) == 10_000


def test_gumbel() -> None:
    values = np.sort(noise.gumbel(3, 4, np.arange(COUNT)))
    assert abs(values.mean() - np.euler_gamma) < 4 * math.pi / math.sqrt(6 * COUNT)
    distance = np.abs(np.exp(-np.exp(-values)) - (np.arange(COUNT) + 0.5) / COUNT).max()
    assert distance < 1.95 / math.sqrt(COUNT)  # Kolmogorov and Smirnov's at one in a thousand
    least, most = -math.log(-math.log1p(-(2.0**31 - 0.5) / 2**31)), -math.log(-math.log1p(-(2.0**-32)))
    assert least < values[0]
    assert values[-1] < most < 22.25
