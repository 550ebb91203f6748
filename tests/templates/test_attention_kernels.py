"""Attention over pages against float64, and the promise that nothing but a token's own sequence changes its bits.

Bound of a result: a score of D products is off by at most ``(D + 3) * unit * sum |q k| * scale``, which is
the relative error of its probability, of which numerator and denominator each have one; the exponentials
are good to 2e-7, once for the key and once for every page that rescales; sums over T keys add ``T + 8``
roundings. All of it relative to ``sum of probability * |v|``.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from harness import RUNNABLE, Array, best_isa_first, close, examples, for_every_isa, frozen, run, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import PAGE_TOKENS, Cache, CodeCache, cache_of

from ryzc.errors import UnsupportedError
from ryzc.kv_formats import KV_FORMATS, block
from ryzc.templates.kernels.attention import Attention, reference
from ryzc.templates.kernels.hadamard import reference as hadamard
from ryzc.templates.kernels.rope_append import RopeAppend

UNIT = 2.0**-24
MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

seeds = st.integers(0, 2**32 - 1)
threads = st.integers(1, 3)


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str = "f16"
    window: int = 0
    group: int = 1

    def kernel(self, page_bytes: int) -> Attention:
        return Attention(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            page_tokens=PAGE_TOKENS,
            page_bytes=page_bytes,
            dtype=self.dtype,
            scale=self.head_dim**-0.5,
            window=self.window,
            group=self.group,
        )


SHAPES = [
    Shape(2, 2, 32),
    Shape(4, 2, 64, group=2),
    Shape(9, 3, 64, group=3),
    Shape(4, 1, 256, window=33, group=2),
    Shape(8, 1, 80, dtype="f32", group=4),
    Shape(3, 1, 96, window=1, group=3),
    Shape(8, 2, 128, dtype="f32", window=32),
    Shape(1, 1, 16, window=70),
    Shape(8, 1, 48, group=8),
    Shape(7, 1, 32, window=20, group=7),
    Shape(2, 1, 112, dtype="f32", window=64),
    Shape(9, 3, 64, dtype="int16", group=3),
    Shape(4, 1, 256, dtype="int16", window=33, group=4),
    Shape(2, 1, 80, dtype="int16", window=1, group=2),
    Shape(8, 1, 32, dtype="int16", group=8),
    Shape(1, 1, 16, dtype="int16", window=70),
    Shape(9, 3, 64, dtype="int8", group=3),
    Shape(4, 1, 256, dtype="int8", window=33, group=4),
    Shape(2, 1, 80, dtype="int8", window=1, group=2),
    Shape(8, 1, 32, dtype="int8", group=8),
    Shape(9, 3, 64, dtype="int8-int4", group=3),
    Shape(2, 1, 96, dtype="int8-int4", window=40, group=2),
    Shape(9, 3, 64, dtype="int4", group=3),
    Shape(4, 1, 256, dtype="int4", window=33, group=4),
    Shape(8, 1, 32, dtype="int4", group=8),
]


def filled(shape: Shape, sequences: int, context: int, rng: np.random.Generator, size: float = 1.0) -> Cache:
    """A cache with every token of every sequence."""
    cache = cache_of(rng, sequences, context, shape.kv_heads, shape.head_dim, shape.dtype)
    where = everywhere(cache)
    k, v = (rng.normal(size=(len(where), shape.kv_heads, shape.head_dim)) for _ in range(2))
    cache.write(where[:, 0], where[:, 1], size * k, v)
    return cache


def everywhere(cache: Cache) -> Array:
    return np.stack(np.divmod(np.arange(cache.sequences * cache.context), cache.context), axis=1)


def attend(
    target: str, shape: Shape, cache: Cache, q: F32, sequences: Array, positions: Array, workers: int = 1
) -> F32:
    """Run the kernel for queries ``[T, Hq, D]``."""
    out = np.full_like(q, np.nan)
    run(
        shape.kernel(cache.page_bytes),
        target,
        [frozen(q), frozen(cache.layer()), out],
        threads=workers,
        token_count=len(q),
        positions=frozen(positions.astype(np.int32)),
        sequences=frozen(sequences.astype(np.int32)),
        page_table=frozen(cache.table),
        page_table_stride=cache.table.shape[1],
    )
    return out


def queries(shape: Shape, cache: Cache, count: int, rng: np.random.Generator) -> tuple[F32, Array, Array]:
    q = rng.normal(size=(count, shape.heads, shape.head_dim)).astype(np.float32)
    return q, rng.integers(0, cache.sequences, count), rng.integers(0, cache.context, count)


def check(shape: Shape, cache: Cache, q: F32, sequences: Array, positions: Array, found: F32) -> None:
    if isinstance(cache, CodeCache):
        check_codes(shape, cache, q, sequences, positions, found)
    else:
        check_float(shape, cache, q, sequences, positions, found)


def check_codes(shape: Shape, cache: CodeCache, q: F32, sequences: Array, positions: Array, found: F32) -> None:
    """Against float64 over the same codes.

    Codes of queries are known, but for those of 16 bits that are about to tip over. Codes of a page's weights may be
    off by half a step of 1/127 of their largest, or 1/32639 of their sum beside keys and values of 16 bits, as rounding
    goes, which is by far the largest part of the bound; scores are exact integers times
    scales, summed block by block: a few roundings for each, relative to the sizes of a score's parts. The results of
    formats that transform lie behind one more Hadamard transform, which is undone here: it adds the roundings of its
    sums.
    """
    per_kv, transformed = shape.heads // shape.kv_heads, KV_FORMATS[shape.dtype].transformed
    size = block(shape.head_dim) if transformed else shape.head_dim
    q_codes, q_steps, doubts = query_codes_of(q, size) if transformed else wide_query_codes_of(q)
    for i, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        first = max(0, position + 1 - shape.window) if shape.window else 0
        where = np.arange(first, position + 1)
        keys, values = cache.codes_from(cache.pool, np.full(len(where), sequence), where)
        k, v, v_step = (np.repeat(a, per_kv, axis=1) for a in (keys.floats, values.signed, values.step))
        products = q_codes[i] * q_steps[i] * shape.head_dim**-0.5 * k
        scores = products.sum(axis=2)
        # A block's products are summed exactly, but their integer may be large where its parts cancel.
        parts = np.abs(products).reshape(*products.shape[:2], -1, min(16, size)).sum(axis=3)
        chance = np.exp(scores - scores.max(axis=0))
        chance /= chance.sum(axis=0)
        weights = chance[..., None] * v_step
        pages = where // PAGE_TOKENS
        of_pages = [weights[pages == p] for p in pages]
        half_steps = np.stack([w.max(axis=0) / 254 if transformed else w.sum(axis=0) / 65278 for w in of_pages])
        relative = (8 + 2 * parts.shape[2]) * UNIT * parts.sum(axis=2).max() + 1e-6 + 3 * UNIT * len(where)
        relative += 2 * (doubts[i] * q_steps[i] * shape.head_dim**-0.5 * np.abs(k)).sum(axis=2).max()
        sizes = np.einsum("thd,thd->hd", weights, np.abs(v))
        bound = np.einsum("thd,thd->hd", half_steps * (1 + 1e-4), np.abs(v)) + relative * sizes
        bound += 16 * UNIT * np.linalg.norm(sizes, axis=1, keepdims=True)
        close(hadamard(found[i], size) if transformed else found[i], np.einsum("thd,thd->hd", weights, v), bound)


def query_codes_of(x: F32, size: int) -> tuple[Array, Array, Array]:
    """Codes of queries, the scale of each element and whether it is in doubt, by the operations of the meaning."""
    parts = x.reshape(*x.shape[:-1], -1, size)
    amax = np.abs(parts).max(axis=-1, keepdims=True)
    codes = np.rint(parts * (np.float32(32258) / amax)).astype(np.float64)
    step = np.broadcast_to(amax / np.float32(32258), parts.shape)
    return codes.reshape(x.shape), step.reshape(x.shape).astype(np.float64), np.zeros(x.shape, bool)


def wide_query_codes_of(x: F32) -> tuple[Array, Array, Array]:
    """The same for codes of 16 bits: their scale ends a sum, so a code near the middle of two may be either."""
    wide = x.astype(np.float64)
    step = np.linalg.norm(wide, axis=-1, keepdims=True) / 32639
    exact = wide / step
    aside = np.abs(exact - np.floor(exact) - 0.5)
    doubts = aside <= (x.shape[-1] / 16 + 10) * UNIT * np.abs(exact)
    return np.rint(exact), np.broadcast_to(step, x.shape), doubts


def check_float(shape: Shape, cache: Cache, q: F32, sequences: Array, positions: Array, found: F32) -> None:
    per_kv, scale = shape.heads // shape.kv_heads, shape.head_dim**-0.5
    for i, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        where = np.arange(position + 1)
        k, v = (a.astype(np.float32) for a in cache.read(np.full(position + 1, sequence), where))
        expected = reference(q[i], k, v, scale=scale, window=shape.window)
        shown = slice(max(0, position + 1 - shape.window) if shape.window else 0, None)
        keys, values = (np.repeat(np.abs(a[shown].astype(np.float64)), per_kv, axis=1) for a in (k, v))
        size = np.einsum("hd,thd->ht", np.abs(q[i]).astype(np.float64), keys).max(axis=1) * scale
        pages = position // PAGE_TOKENS + 1
        relative = 2 * (shape.head_dim + 3) * UNIT * size + 2e-7 * (pages + 2) + 2 * UNIT * (len(values) + 8)
        # sum of probability * |v|, by attending to |v|
        weighted = reference(q[i], k, np.abs(v), scale=scale, window=shape.window)
        close(found[i], expected, relative[:, None] * weighted + 1e-30)


@best_isa_first
@examples
@given(st.sampled_from(SHAPES), st.integers(1, 110), st.integers(1, 6), threads, seeds)
def test_attention(target: str, shape: Shape, context: int, count: int, workers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache = filled(shape, 2, context, rng, size=float(rng.choice([0.1, 1, 5])))
    q, sequences, positions = queries(shape, cache, count, rng)
    check(shape, cache, q, sequences, positions, attend(target, shape, cache, q, sequences, positions, workers))


@best_isa_first
@pytest.mark.parametrize(
    "window", [0, 1, 33, 64, *(pytest.param(w, marks=pytest.mark.thorough) for w in (2, 31, 32, 40, 65, 1000))]
)
@pytest.mark.parametrize("dtype", ["f16", "int16", "int8", "int4"])
def test_every_position_around_pages_and_windows(target: str, dtype: str, window: int) -> None:
    rng = np.random.default_rng(window)
    shape = Shape(2, 1, 32, dtype, window=window, group=2)
    cache = filled(shape, 1, 100, rng)
    positions = np.arange(100)
    q = rng.normal(size=(100, 2, 32)).astype(np.float32)
    zeros = np.zeros(100, np.int64)
    check(shape, cache, q, zeros, positions, attend(target, shape, cache, q, zeros, positions))


@for_every_isa
@pytest.mark.parametrize("dtype", ["f16", "int16", "int8", "int8-int4", "int4"])
def test_a_long_context(target: str, dtype: str) -> None:
    rng = np.random.default_rng(7)
    shape = Shape(3, 1, 64, dtype, group=3)
    cache = filled(shape, 1, 3001, rng)
    q, sequences, _ = queries(shape, cache, 3, rng)
    positions = np.array([3000, 1, 2047])
    check(shape, cache, q, sequences, positions, attend(target, shape, cache, q, sequences, positions))


@for_every_isa
@pytest.mark.parametrize("dtype", ["f32", "f16", "int16"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_not_lost(target: str, dtype: str, wrong: float) -> None:
    """Where floats would give an infinity there may stand no number at all, but nothing that looks like a result."""
    rng = np.random.default_rng(8)
    shape = Shape(3, 1, 64, dtype, group=3)
    cache = filled(shape, 1, 70, rng)
    where, v = np.array([40]), rng.normal(size=(1, 1, 64))
    v[0, 0, 5] = wrong
    with np.errstate(invalid="ignore"):
        cache.write(np.array([0]), where, rng.normal(size=(1, 1, 64)), v)
    q = rng.normal(size=(2, 3, 64)).astype(np.float32)
    found = attend(target, shape, cache, q, np.zeros(2, np.int64), np.array([39, 60]))
    assert np.isfinite(found[0]).all()
    assert not np.isfinite(found[1, :, 5]).any()


@best_isa_first
@examples
@given(st.sampled_from(SHAPES), st.integers(1, 100), seeds)
def test_what_a_query_may_not_see_changes_nothing(target: str, shape: Shape, context: int, seed: int) -> None:
    """Slots past the query or before its window, other pages and other sequences: NaN, then large numbers.

    Entries of the page table that hold nothing visible point to where there is no memory.
    """
    rng = np.random.default_rng(seed)
    cache = filled(shape, 2, context, rng)
    q, sequences, positions = queries(shape, cache, 1, rng)
    full = attend(target, shape, cache, q, sequences, positions)
    first = max(0, int(positions[0]) + 1 - shape.window) if shape.window else 0
    seen = np.arange(first, positions[0] + 1)
    kept = np.stack([np.full(len(seen), sequences[0]), seen], axis=1)
    table = cache.table.copy()
    cache.table[...] = -(1 << 30)
    cache.table[sequences[0], seen // PAGE_TOKENS] = table[sequences[0], seen // PAGE_TOKENS]
    for filler in (0xFF, 0x7B):
        cache.poison(kept, filler)
        assert same_bits(attend(target, shape, cache, q, sequences, positions), full)


@best_isa_first
@examples
@given(st.sampled_from(SHAPES), st.integers(1, 100), seeds)
def test_batch_threads_and_grouping_change_no_bit(target: str, shape: Shape, context: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache = filled(shape, 3, context, rng)
    q, sequences, positions = queries(shape, cache, 5, rng)
    whole = attend(target, shape, cache, q, sequences, positions)
    for workers in (2, 3):
        assert same_bits(attend(target, shape, cache, q, sequences, positions, workers), whole)
    for i in range(5):
        one = slice(i, i + 1)
        assert same_bits(attend(target, shape, cache, q[one], sequences[one], positions[one]), whole[one])
    per_kv = shape.heads // shape.kv_heads
    for group in (g for g in range(1, per_kv + 1) if per_kv % g == 0):
        assert same_bits(attend(target, replace(shape, group=group), cache, q, sequences, positions), whole)


@pytest.mark.skipif(len(RUNNABLE) < 2, reason="this CPU runs one instruction set only")
@pytest.mark.parametrize("shape", SHAPES)
def test_instruction_sets_agree_in_every_bit(shape: Shape) -> None:
    rng = np.random.default_rng(2)
    cache = filled(shape, 2, 90, rng)
    q, sequences, positions = queries(shape, cache, 5, rng)
    results = [attend(target, shape, cache, q, sequences, positions) for target in RUNNABLE]
    assert same_bits(results[0], results[1])


@for_every_isa
@examples
@given(
    st.sampled_from(SHAPES),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 99), st.integers(1, 40)), min_size=1, max_size=4),
    threads,
    seeds,
)
def test_runs_of_tokens_go_together_without_changing_a_bit(
    target: str, shape: Shape, runs: list[tuple[int, int, int]], workers: int, seed: int
) -> None:
    """Runs of consecutive tokens, as in prompts, wherever they start and break off, against tokens alone."""
    rng = np.random.default_rng(seed)
    cache = filled(shape, 2, 100, rng)
    rows = [(s, p) for s, start, length in runs for p in range(start, min(start + length, 100))]
    sequences, positions = np.array(rows).T
    q = rng.normal(size=(len(rows), shape.heads, shape.head_dim)).astype(np.float32)
    found = attend(target, shape, cache, q, sequences, positions, workers)
    for i in range(len(rows)):
        one = slice(i, i + 1)
        assert same_bits(attend(target, shape, cache, q[one], sequences[one], positions[one]), found[one]), rows[i]


@for_every_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_beside_later_ones_sees_nothing_of_them(target: str, shape: Shape) -> None:
    """They share a run and its loads; keys and values of a later token that are no numbers stay its own."""
    rng = np.random.default_rng(4)
    cache = filled(shape, 1, 48, rng)
    q = rng.normal(size=(48, shape.heads, shape.head_dim)).astype(np.float32)
    positions, zeros = np.arange(48), np.zeros(48, np.int64)
    whole = attend(target, shape, cache, q, zeros, positions)
    for later in (1, 13, 31, 32, 46):
        kept = np.stack([zeros, positions], axis=1)[:later]
        cache.poison(kept, 0xFF)
        assert same_bits(attend(target, shape, cache, q, zeros, positions)[:later], whole[:later])
        cache = filled(shape, 1, 48, np.random.default_rng(4))


@for_every_isa
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[3], SHAPES[11], SHAPES[16], SHAPES[-3]])
@settings(examples, max_examples=8)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), threads, seeds)
def test_chunks_of_a_prompt_change_no_bit(
    target: str, shape: Shape, chunks: list[int], workers: int, seed: int
) -> None:
    """Append and attend: a prompt as a whole, in chunks beside another sequence's tokens, and token by token."""
    rng = np.random.default_rng(seed)
    count = min(sum(chunks), 75)
    h, hk, d = shape.heads, shape.kv_heads, shape.head_dim
    qkv = rng.normal(size=(2, count, h + 2 * hk, d)).astype(np.float32)
    angle = rng.uniform(0, 6, (count, d // 2))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def feed(sizes: list[int], sequences: list[int], workers: int) -> tuple[F32, Array]:
        cache = cache_of(np.random.default_rng(seed), 2, 75, hk, d, shape.dtype)
        rope = RopeAppend(h, hk, d, True, PAGE_TOKENS, cache.page_bytes, shape.dtype, False, 0.0)
        out, start = np.empty((count, h, d), np.float32), 0
        for size in sizes:
            positions = np.arange(start, min(start + size, count))
            rows = np.array([(s, p) for p in positions for s in sequences], np.int32).reshape(-1, 2)
            s, p = rows.T.copy()
            q = np.empty((len(rows), h, d), np.float32)
            context: dict[str, Any] = {
                "token_count": len(rows),
                "sequences": s,
                "positions": p,
                "page_table": cache.table,
                "page_table_stride": cache.table.shape[1],
            }
            operands = [frozen(qkv[s, p]), cos[p], sin[p], q, cache.layer()]
            run(rope, target, operands, threads=workers, **context)
            found = attend(target, shape, cache, q, s, p, workers)
            out[positions] = found[s == 0]
            start += size
        keys, values = cache.read(np.zeros(count, np.int64), np.arange(count))
        return out, np.concatenate([keys, values])

    whole, stored = feed([count], [0], 1)
    assert not np.isnan(whole).any()
    for sizes, sequences in (([*chunks, count], [1, 0]), ([1] * count, [0])):
        found, again = feed(sizes, sequences, workers)
        assert same_bits(found, whole)
        assert same_bits(again, stored)


@for_every_isa
def test_pages_beyond_4_gib(target: str) -> None:
    """Page ids and sizes are multiplied in 64 bits."""
    shape, page_bytes, page = Shape(1, 1, 16), 1 << 21, 2500
    rng = np.random.default_rng(1)
    where = mmap.mmap(-1, page_bytes * (page + 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    pool = np.frombuffer(where, np.uint8)
    q = rng.normal(size=(1, 1, 16)).astype(np.float32)
    kv = rng.normal(size=(2, 16)).astype(np.float32)
    context: dict[str, Any] = {
        "token_count": 1,
        "sequences": np.zeros(1, np.int32),
        "positions": np.zeros(1, np.int32),
        "page_table": np.array([page], np.int32),
        "page_table_stride": 1,
    }
    rope = RopeAppend(1, 1, 16, False, PAGE_TOKENS, page_bytes, "f16", False, 0.0)
    ones, zeros = np.ones((1, 8), np.float32), np.zeros((1, 8), np.float32)
    rotated, out = np.empty_like(q), np.empty_like(q)
    run(rope, target, [np.stack([q[0, 0], *kv]), ones, zeros, rotated, pool.ctypes.data], **context)
    assert same_bits(rotated, q)
    run(shape.kernel(page_bytes), target, [q, pool.ctypes.data, out], **context)
    assert same_bits(out[0, 0], kv[1].astype(np.float16).astype(np.float32))
    wrapped = page * page_bytes % 2**32
    assert not pool[wrapped : wrapped + page_bytes].any()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="head_dim is 24"):
        Shape(1, 1, 24).kernel(1 << 12)
    for dtype in ("int8-int4", "int4"):
        with pytest.raises(UnsupportedError, match="head_dim is 80"):
            Shape(1, 1, 80, dtype).kernel(1 << 14)
    with pytest.raises(UnsupportedError, match="heads is 9"):
        Shape(9, 3, 64, group=2).kernel(1 << 16)
    with pytest.raises(UnsupportedError, match="a group of 16 heads"):
        Shape(16, 1, 64, group=16).kernel(1 << 16)
