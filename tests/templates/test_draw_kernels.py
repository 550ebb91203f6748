"""Adjusting and drawing, all the phases of a step one after the other, against their meaning in numpy.

Two sources of difference are allowed. Scores: a tempered logit has two roundings and its sum with the noise a third,
and the noise is within 3e-6. Shares: the sums behind top-p and typical are float32 in a fixed order, see
``test_vocabulary_kernels``; where a share is as close to a border as they may be off, either side is right.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from harness import RUNNABLE, examples, for_every_isa, run, same_bits
from hypothesis import given
from hypothesis import strategies as st
from sampled import MAX_CANDIDATES, Drawn, Vocabulary

from ryzc.errors import UnsupportedError
from ryzc.runtime.sampling import RowParameters, Sampler, SamplingParams, noise, reference
from ryzc.templates.kernels import vocab_adjust
from ryzc.templates.kernels.vocab_adjust import VocabAdjust
from ryzc.templates.kernels.vocab_draw import VocabDraw
from ryzc.templates.kernels.vocab_race import VocabRace

UNIT = 2.0**-24
SHARE_SLACK = 1e-4
F32 = npt.NDArray[np.float32]

seeds = st.integers(0, 2**32 - 1)
threads = st.integers(1, 3)
vocabularies = st.sampled_from([40, 129, 2049, 8193, 20000])
settings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-30, 0.01, 0.3, 1.0, 1.7, 30.0, 1e30]),
    top_k=st.sampled_from([0, 1, 5, 16, 17, 40, 41, 60, 5000]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 1e-4, 0.05, 0.5, 1.0]),
    typical_p=st.sampled_from([0.0, 0.3, 0.9, 1.0, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def parameters(
    vocabulary: Vocabulary, params: list[SamplingParams], positions: list[int] | None = None
) -> RowParameters:
    rows = RowParameters(len(params), vocabulary.stride)
    for i, p in enumerate(params):
        sampler = Sampler(p, vocab_size=vocabulary.size, max_candidates=vocabulary.max_candidates)
        sampler.prepare(rows, i, positions[i] if positions else i)
    return rows


def random_rows(rng: np.random.Generator, rows: int, vocabulary: int) -> F32:
    """Normal, or with many ties, or of a few large ones over a sea of small ones."""
    kind = rng.integers(3)
    if kind == 0:
        return (rng.normal(size=(rows, vocabulary)) * rng.choice([0.01, 1, 5])).astype(np.float32)
    if kind == 1:
        return rng.integers(-3, 4, (rows, vocabulary)).astype(np.float32)
    out = rng.normal(size=(rows, vocabulary)).astype(np.float32)
    out[:, rng.integers(0, vocabulary, 12)] += 8
    return out


def acceptable(logits: F32, record: np.void, max_candidates: int = MAX_CANDIDATES) -> set[int]:
    """The tokens that may be drawn from an adjusted row, given how exact native code is."""
    if record["inverse_temperature"] == 0 or not np.isfinite(logits.max()):
        return {reference.draw(logits, record, max_candidates)}
    found: set[int] = set()
    for slack in (-SHARE_SLACK, 0.0, SHARE_SLACK):
        ids, scores = reference.race(logits, record, max_candidates, slack=slack)
        best = scores.max()
        gaps = logits[ids].astype(np.float64) - logits[ids].max()
        tempered = np.abs(gaps * float(record["inverse_temperature"]))
        bound = 4 * UNIT * (tempered + np.abs(scores) + abs(best)) + 6e-6
        found |= {int(id_) for id_ in ids[scores + bound >= best]}
    return found


@for_every_isa
@examples
@given(vocabularies, st.lists(settings, min_size=1, max_size=4), threads, seeds)
def test_draws_what_the_meaning_draws(
    target: str, size: int, params: list[SamplingParams], workers: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(target, size, workers)
    logits = random_rows(rng, len(params), size)
    rows = parameters(vocabulary, params, [int(p) for p in rng.integers(0, 1 << 40, len(params))])
    drawn = vocabulary.draw(logits, rows).drawn
    for i in range(len(params)):
        assert int(drawn[i]) in acceptable(logits[i], rows.records[i]), params[i]


@for_every_isa
@examples
@given(
    vocabularies,
    st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=5),
    threads,
    seeds,
)
def test_adjusts_to_the_bit(target: str, size: int, plan: list[tuple[int, bool]], workers: int, seed: int) -> None:
    """Spans of any length, with ids that come twice; and everything after works on the adjusted row."""
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(target, size, workers)
    logits = random_rows(rng, len(plan), size)
    rows = RowParameters(len(plan), vocabulary.stride)
    expected = logits.copy()
    for i, (count, masked) in enumerate(plan):
        ids = rng.integers(0, size, count).astype(np.int32)
        factors = rng.choice([1, 1.1, 0.5, 3], count).astype(np.float32)
        offsets = rng.choice([0, -0.3, 2, -np.inf], count).astype(np.float32)
        span = rows.adjust(ids, factors, offsets)
        mask = rng.random(size) < 0.7
        mask[rng.integers(size)] = True
        bits = np.zeros(vocabulary.stride, np.bool_)
        bits[:size] = mask
        rows.masks[i] = np.packbits(bits, bitorder="little").view(np.int32)
        rows.put(i, (seed, i, 1.0, 0.9, -math.inf, 1.0, 0, masked, *span))
        expected[i] = vocab_adjust.reference(logits[i], ids, factors, offsets, mask if masked else None)
        assert same_bits(reference.adjusted(logits[i], rows, i), expected[i])
    found = vocabulary.draw(logits, rows)
    assert same_bits(found.logits, expected)
    assert same_bits(found.row_max, expected.max(axis=1))
    for i in range(len(plan)):
        assert int(found.ids[i, 0]) == expected[i].argmax()
        assert int(found.drawn[i]) in acceptable(expected[i], rows.records[i])


def bits(found: Drawn) -> list[bytes]:
    return [a.tobytes() for a in (found.logits, found.ids, found.best, found.row_max, found.row_sum, found.drawn)]


@examples
@given(vocabularies, st.lists(settings, min_size=1, max_size=4), seeds)
def test_threads_and_instruction_sets_change_no_bit(size: int, params: list[SamplingParams], seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = random_rows(rng, len(params), size)
    found = []
    for target in RUNNABLE:
        for workers in (1, 2, 5):
            vocabulary = Vocabulary(target, size, workers)
            rows = parameters(vocabulary, params)
            count = min(30, size)
            span = rows.adjust(
                np.arange(0, size, size // count, dtype=np.int32)[:count],
                np.full(count, 1.3, np.float32),
                np.full(count, -0.1, np.float32),
            )
            rows.records["adjustment_start"], rows.records["adjustment_count"] = span
            found.append(bits(vocabulary.draw(logits, rows)))
    assert all(each == found[0] for each in found)


@for_every_isa
@examples
@given(vocabularies, settings, st.integers(0, 5), seeds)
def test_a_draw_does_not_depend_on_company(target: str, size: int, params: SamplingParams, at: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(target, size)
    logits = random_rows(rng, 6, size)
    others = [SamplingParams(temperature=t, top_k=k, seed=i) for i, (t, k) in enumerate([(0, 0), (1, 0), (2, 7)] * 2)]
    together = vocabulary.draw(logits, parameters(vocabulary, [*others[:at], params, *others[at + 1 :]], [9] * 6))
    sampler = Sampler(params, vocab_size=size, max_candidates=MAX_CANDIDATES)
    rows = RowParameters(1, vocabulary.stride)
    sampler.prepare(rows, 0, 9)
    alone = vocabulary.draw(logits[at : at + 1], rows, candidates=sampler.candidates)
    assert alone.drawn[0] == together.drawn[at]


@for_every_isa
@examples
@given(st.integers(2, MAX_CANDIDATES), st.sampled_from([0.2, 1.0, 5.0]), st.sampled_from([0.0, 0.1]), seeds)
def test_candidates_and_the_whole_row_agree(
    target: str, size: int, temperature: float, min_p: float, seed: int
) -> None:
    vocabulary = Vocabulary(target, size)
    logits = random_rows(np.random.default_rng(seed), 1, size)
    drawn = []
    for top_k in (0, size):
        record = (seed, 3, 1 / temperature, 1.0, math.log(min_p) if min_p else -math.inf, 1.0, top_k, 0, 0, 0)
        rows = RowParameters(1, vocabulary.stride)
        rows.put(0, record)
        drawn.append(int(vocabulary.draw(logits, rows, candidates=size).drawn[0]))
    assert drawn[0] == drawn[1]


DISTRIBUTIONS = {
    "defaults": SamplingParams(),
    "everything": SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0),
    "nucleus": SamplingParams(temperature=1, top_k=0, top_p=0.8, min_p=0),
    "hot nucleus": SamplingParams(temperature=2.5, top_k=0, top_p=0.6, min_p=0),
    "hot min-p": SamplingParams(temperature=1.8, top_k=0, top_p=1, min_p=0.1),
    "many": SamplingParams(temperature=1.4, top_k=50, top_p=0.97, min_p=0.01),
    "few": SamplingParams(temperature=1.2, top_k=6, top_p=0.99, min_p=0.02),
    "typical": SamplingParams(temperature=1, top_k=30, top_p=1, min_p=0, typical_p=0.7),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_frequencies(name: str) -> None:
    """Chi-square of draws at one position after the other: a distribution off by a few per cent would fail."""
    size, draws = 130, 6000
    vocabulary = Vocabulary(RUNNABLE[0], size, 2)
    logits = (np.random.default_rng(3).normal(size=size) * 1.5).astype(np.float32)
    params = DISTRIBUTIONS[name]
    rows = RowParameters(draws, vocabulary.stride)
    seeded = Sampler(SamplingParams(**{**vars(params), "seed": 11}), vocab_size=size, max_candidates=MAX_CANDIDATES)
    seeded.prepare(rows, 0, 100, [0] * (draws - 1))
    drawn = vocabulary.draw(np.tile(logits, (draws, 1)), rows).drawn

    ids, _ = reference.race(logits, rows.records[0], MAX_CANDIDATES)
    weights = np.exp((logits[ids].astype(np.float64) - logits.max()) / params.temperature)
    expected = np.zeros(size)
    expected[ids] = draws * weights / weights.sum()
    counts = np.bincount(drawn, minlength=size)
    assert set(np.flatnonzero(counts)) <= set(ids.tolist())
    likely = expected >= 5
    rest = expected[~likely].sum()
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    if rest >= 5:
        chi_square += (counts[~likely].sum() - rest) ** 2 / rest
    degrees = int(likely.sum()) - (0 if rest >= 5 else 1)
    assert degrees > 2
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


@for_every_isa
@examples
@given(vocabularies, st.integers(0, 2**64 - 1), st.integers(0, 2**63), st.booleans())
def test_equal_logits_are_decided_by_the_noise(
    target: str, size: int, seed: int, position: int, candidates: bool
) -> None:
    vocabulary = Vocabulary(target, size)
    rows = RowParameters(1, vocabulary.stride)
    rows.put(0, (seed, position, 1.0, 1.0, 0.0, 1.0, 40 if candidates else 0, 0, 0, 0))
    drawn = int(vocabulary.draw(np.full((1, size), 2.5, np.float32), rows).drawn[0])
    values = noise.gumbel(seed, position, np.arange(40 if candidates else size))
    assert values[drawn] >= values.max() - 6e-6


@for_every_isa
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 20, 300])
def test_rows_without_a_finite_largest_logit(target: str, temperature: float, top_k: int) -> None:
    logits = np.full((5, 256), -np.inf, np.float32)
    logits[1, 200] = 3
    logits[2, 5] = np.inf
    logits[3] = np.nan
    logits[4, 100:] = np.nan
    logits[4, :100] = np.arange(100)
    vocabulary = Vocabulary(target, 256)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=0.9, min_p=0, seed=1)
    drawn = vocabulary.draw(logits, parameters(vocabulary, [params] * 5)).drawn
    assert drawn[:4].tolist() == [-1, 200, -1, -1]
    assert 0 <= drawn[4] < 100


@for_every_isa
@examples
@given(st.sampled_from([40, 129, 2049, 9000]), st.booleans(), threads, seeds)
def test_no_parameters_lead_out_of_memory(target: str, size: int, wild: bool, workers: int, seed: int) -> None:
    """Records and adjustments of random bits; what is outside of buffers is unreadable, see ``harness``."""
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(target, size, workers)
    rows = RowParameters(4, vocabulary.stride)
    rows.records.view(np.uint8)[:] = rng.integers(0, 256, rows.records.nbytes)
    if not wild:
        names = ("inverse_temperature", "top_p", "typical_p", "log_min_p")
        for name, values in zip(names, ([0, 0.5, 1, 7], [0.3, 1], [0.3, 1], [-3, -np.inf]), strict=True):
            rows.records[name] = rng.choice(values, 4)
        rows.records["top_k"] = rng.integers(-2, 60, 4)
        rows.records["adjustment_start"] = rng.integers(-5, 1030, 4)
        rows.records["adjustment_count"] = rng.integers(-5, 1030, 4)
    rows.ids[:] = rng.integers(-size, 2 * size, len(rows.ids))
    rows.factors[:] = rng.choice([0, 1, -1, np.nan, np.inf], len(rows.factors))
    rows.offsets[:] = rng.choice([0, 1, np.nan, np.inf, -np.inf], len(rows.offsets))
    rows.masks[:] = rng.integers(-(1 << 31), 1 << 31, rows.masks.shape)
    drawn = vocabulary.draw(random_rows(rng, 4, size), rows, candidates=int(rng.integers(1, 41))).drawn
    assert (drawn >= -1).all()
    assert (drawn < size).all()


@for_every_isa
def test_winners_of_other_parameters_lead_nowhere(target: str) -> None:
    """Another thread may make a row one that is drawn from whole, between the race and the draw."""
    size = 256
    rows = RowParameters(1, size)
    rows.put(0, (1, 1, 1.0, 1.0, -math.inf, 1.0, 0, 0, 0, 0))
    for winner in (-1, size, 1 << 30, -(1 << 31)):
        drawn = np.zeros(1, np.int32)
        run(
            VocabDraw(size, 4),
            target,
            [np.zeros(2, np.float32), np.full(1, 99, np.float32), np.full(1, winner, np.int32)],
            row_count=1,
            logits=np.zeros((1, size), np.float32),
            candidate_count=1,
            candidate_ids=np.array([[3, 0, 0, 0]], np.int32),
            candidate_logits=np.zeros((1, 4), np.float32),
            row_max=np.zeros(1, np.float32),
            row_sum=np.full(1, size, np.float32),
            row_parameters=rows.records.view(np.uint8),
            drawn=drawn,
        )
        assert drawn[0] == 3


@for_every_isa
def test_top_k_beyond_the_candidates_cuts_ties_by_id(target: str) -> None:
    size = 1000
    vocabulary = Vocabulary(target, size)
    logits = np.zeros((600, size), np.float32)
    logits[:, [700, 900]] = 1e-3
    rows = RowParameters(600, vocabulary.stride)
    params = SamplingParams(temperature=100, top_k=50, top_p=1, min_p=0, seed=4)
    Sampler(params, vocab_size=size, max_candidates=MAX_CANDIDATES).prepare(rows, 0, 0, [0] * 599)
    assert set(vocabulary.draw(logits, rows).drawn.tolist()) == {*range(48), 700, 900}


def test_other_shapes_are_refused() -> None:
    for make in (lambda s: VocabAdjust(7, s), lambda s: VocabRace(s, 4), lambda s: VocabDraw(s, 4)):
        with pytest.raises(UnsupportedError, match="stride is 100"):
            make(100)
