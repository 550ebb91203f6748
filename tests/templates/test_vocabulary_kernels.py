"""The three phases that reduce rows of logits, run one after the other as a step does.

Bound of the partition sum: terms are good to 2e-7 and to the rounding of ``logit - largest``, whose size
times its term is at most 1/e; all terms are positive, so sums in 16 lanes, by halving and over slices add
``slice / 16 + slices + 6`` roundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from harness import close, examples, for_every_isa, frozen, run, same_bits
from hypothesis import given
from hypothesis import strategies as st

from ryzc.errors import UnsupportedError
from ryzc.templates.kernels.vocab_max import CHUNK, VocabMax
from ryzc.templates.kernels.vocab_sum import SLICE, VocabSum, slices
from ryzc.templates.kernels.vocab_top import VocabTop, reference

UNIT = 2.0**-24
MAX_CANDIDATES = 40
F32 = npt.NDArray[np.float32]

seeds = st.integers(0, 2**32 - 1)
threads = st.integers(1, 3)
vocabularies = st.sampled_from([100, 128, 129, 1000, 2048, 2049, 5000, 8192, 8193, 33000])


@dataclass
class Reduced:
    """What the phases wrote; rows past ``rows`` hold the marks that were there before."""

    ids: npt.NDArray[np.int32]
    best: F32
    row_max: F32
    row_sum: F32
    chunk_max: F32


def reduce(target: str, logits: F32, rows: int, candidates: int, workers: int = 1) -> Reduced:
    """Run the phases over ``[R, stride]``; the logits must come back as they were."""
    count, stride = logits.shape
    chunk_max = np.full((count, stride // CHUNK), 7, np.float32)
    partial = np.full((count, slices(stride)), 7, np.float32)
    ids = np.full((count, MAX_CANDIDATES), -7, np.int32)
    best = np.full((count, MAX_CANDIDATES), 7, np.float32)
    row_max, row_sum = np.full(count, 7, np.float32), np.full(count, 7, np.float32)
    work = logits.copy()
    run(VocabMax(stride), target, [chunk_max], threads=workers, row_count=rows, logits=frozen(work))
    kept = chunk_max.copy()
    operands = [frozen(chunk_max), partial]
    run(VocabSum(stride), target, operands, threads=workers, row_count=rows, logits=frozen(work))
    run(
        VocabTop(stride, MAX_CANDIDATES),
        target,
        [chunk_max, frozen(partial)],
        threads=workers,
        row_count=rows,
        logits=work,
        candidate_count=candidates,
        candidate_ids=ids,
        candidate_logits=best,
        row_max=row_max,
        row_sum=row_sum,
    )
    assert same_bits(work, logits)
    return Reduced(ids, best, row_max, row_sum, kept)


def padded(logits: F32) -> F32:
    """Rows with a tail of -inf up to whole chunks, as the runtime keeps them."""
    rows, vocabulary = logits.shape
    stride = -(-vocabulary // CHUNK) * CHUNK
    out = np.full((rows, stride), -np.inf, np.float32)
    out[:, :vocabulary] = logits
    return out


def check(logits: F32, found: Reduced, rows: int, candidates: int) -> None:
    for r in range(rows):
        ids, best, largest, total = reference(logits[r], candidates)
        assert found.ids[r, :candidates].tolist() == ids.tolist()
        assert same_bits(found.best[r, :candidates], best)
        assert found.row_max[r] == largest
        n = logits.shape[1]
        bound = 2e-7 + UNIT * (min(n, SLICE) / 16 + slices(n) + 6)
        # e**d is clamped at d = -87: each of the others may count 2e-38.
        allowed = bound * total + UNIT / np.e * n + 2e-38 * n
        close(found.row_sum[r : r + 1], np.array([total]), np.array([allowed]))
        chunks = logits[r].reshape(-1, CHUNK).max(axis=1)
        assert (found.chunk_max[r] == chunks).all()
    assert (found.ids[:rows, candidates:] == -7).all()
    assert (found.ids[rows:] == -7).all()
    assert (found.row_max[rows:] == 7).all()
    assert (found.row_sum[rows:] == 7).all()


@for_every_isa
@examples
@given(vocabularies, st.integers(1, 5), st.integers(0, 5), st.integers(1, MAX_CANDIDATES), threads, seeds)
def test_vocabulary(
    target: str, vocabulary: int, count: int, rows: int, candidates: int, workers: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size = float(rng.choice([0.01, 1, 10, 100]))
    logits = padded(rng.normal(size=(count, vocabulary), scale=size).astype(np.float32))
    rows = min(rows, count)
    check(logits, reduce(target, logits, rows, candidates, workers), rows, candidates)


@for_every_isa
@examples
@given(vocabularies, st.integers(1, 5), st.integers(1, MAX_CANDIDATES), seeds)
def test_ties_take_the_lowest_id(target: str, vocabulary: int, values: int, candidates: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = padded(rng.integers(0, values, (2, vocabulary)).astype(np.float32))
    check(logits, reduce(target, logits, 2, candidates), 2, candidates)


@for_every_isa
@pytest.mark.parametrize("vocabulary", [128, 8193, 262144])
def test_where_the_largest_stands(target: str, vocabulary: int) -> None:
    for at in {0, 1, 127, 128 % vocabulary, vocabulary // 2, vocabulary - 129, vocabulary - 1} & set(range(vocabulary)):
        logits = np.zeros((1, vocabulary), np.float32)
        logits[0, at] = 1
        rows = padded(logits)
        found = reduce(target, rows, 1, 2)
        assert found.ids[0, :2].tolist() == [at, 0 if at else 1]
        check(rows, found, 1, 2)


@for_every_isa
@examples
@given(vocabularies, seeds)
def test_rows_and_threads_change_no_bit(target: str, vocabulary: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = padded(rng.normal(size=(4, vocabulary), scale=5).astype(np.float32))
    whole = reduce(target, logits, 4, 5)
    for workers in (2, 3):
        again = reduce(target, logits, 4, 5, workers)
        assert same_bits(again.row_sum, whole.row_sum)
        assert same_bits(again.ids, whole.ids)
    for r in range(4):
        alone = reduce(target, logits[r : r + 1], 1, 5)
        assert same_bits(alone.row_sum[0], whole.row_sum[r])
        assert same_bits(alone.best[0], whole.best[r])


@for_every_isa
@examples
@given(vocabularies, st.sampled_from(["all", "some", "head"]), st.integers(1, MAX_CANDIDATES), seeds)
def test_nans_neither_hang_nor_lead_astray(
    target: str, vocabulary: int, where: str, candidates: int, seed: int
) -> None:
    """Candidates are always ids of the vocabulary; the logits come back bit for bit (``reduce`` checks that)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, vocabulary)).astype(np.float32)
    share = {"all": 1.0, "some": 0.5, "head": 0.0}[where]
    logits[0, rng.random(vocabulary) < share] = np.nan
    logits[0, 0] = np.nan
    rows = padded(logits)
    found = reduce(target, rows, 2, candidates)
    assert (found.ids[:, :candidates] >= 0).all()
    assert (found.ids[:, :candidates] < vocabulary).all()
    check(rows[1:], Reduced(*(getattr(found, n)[1:] for n in Reduced.__annotations__)), 1, candidates)
    finite = np.flatnonzero(~np.isnan(logits[0]))
    expected = finite[np.argsort(-logits[0, finite], kind="stable")][:candidates]
    assert found.ids[0, : len(expected)].tolist() == expected.tolist()


@for_every_isa
def test_rows_of_infinities(target: str) -> None:
    logits = np.full((3, 256), -np.inf, np.float32)
    logits[1, 200] = 3
    logits[2, 5] = np.inf
    found = reduce(target, logits, 3, 3)
    assert found.row_max.tolist() == [-np.inf, 3, np.inf]
    assert found.ids[:, :3].tolist() == [[0, 0, 0], [200, 0, 0], [5, 0, 0]]
    assert abs(found.row_sum[1] - 1) <= 4 * UNIT


def test_other_shapes_are_refused() -> None:
    for make in (VocabMax, VocabSum, lambda stride: VocabTop(stride, 4)):
        with pytest.raises(UnsupportedError, match="stride is 100"):
            make(100)
