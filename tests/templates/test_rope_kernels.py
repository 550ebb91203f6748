"""Rotary angles, and rotation with the append to the paged cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from harness import Array, close, examples, floats, for_every_isa, frozen, run, same_bits
from hypothesis import given
from hypothesis import strategies as st
from paged import Cache, CodeCache, Codes, cache_of

from ryzc.errors import UnsupportedError
from ryzc.kv_formats import KV_FORMATS, block
from ryzc.templates.kernels import hadamard, rope_angles
from ryzc.templates.kernels.rope_angles import RopeAngles
from ryzc.templates.kernels.rope_append import RopeAppend, reference

UNIT = 2.0**-24
F32 = npt.NDArray[np.float32]

seeds = st.integers(0, 2**32 - 1)
threads = st.integers(1, 3)


def frequencies(head_dim: int, base: float = 10000.0) -> npt.NDArray[np.float64]:
    return base ** (-np.arange(0, head_dim, 2) / head_dim)


def angles(target: str, head_dim: int, positions: Array, workers: int = 1) -> tuple[F32, F32]:
    cos, sin = (np.full((len(positions), head_dim // 2), np.nan, np.float32) for _ in range(2))
    operands = [frozen(frequencies(head_dim)), cos, sin]
    counts = len(positions)
    run(RopeAngles(head_dim), target, operands, threads=workers, token_count=counts, positions=frozen(positions))
    return cos, sin


@for_every_isa
@examples
@given(
    st.sampled_from([2, 6, 16, 32, 64, 80, 96, 128, 256]),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=40),
    threads,
)
def test_rope_angles(target: str, head_dim: int, positions: list[int], workers: int) -> None:
    """The float64 result is good to 1e-9, so the float32 is the nearest but for ties: at most one ulp below 1."""
    where = np.array(positions, np.int32)
    found = angles(target, head_dim, where, workers)
    expected = rope_angles.reference(where, frequencies(head_dim))
    for f, e in zip(found, expected, strict=True):
        close(f, e.astype(np.float64), np.full(e.shape, UNIT))


@for_every_isa
def test_rope_angles_are_the_nearest_floats(target: str) -> None:
    """Over many angles hardly any lies so close to a tie that it may round the other way."""
    where = np.arange(0, 1_000_000, 1999, dtype=np.int32)
    found = angles(target, 128, where)
    expected = rope_angles.reference(where, frequencies(128))
    for f, e in zip(found, expected, strict=True):
        assert (f == e).mean() > 0.9999


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    interleaved: bool
    dtype: str
    norm: bool

    def kernel(self, cache: Cache) -> RopeAppend:
        return RopeAppend(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            interleaved=self.interleaved,
            page_tokens=cache.page_tokens,
            page_bytes=cache.page_bytes,
            dtype=self.dtype,
            q_norm=self.norm,
            epsilon=1e-6 if self.norm else 0.0,
        )


SHAPES = [
    Shape(9, 3, 64, True, "f16", False),
    Shape(4, 1, 256, False, "f16", True),
    Shape(2, 2, 80, True, "f32", True),
    Shape(3, 3, 96, False, "f16", False),
    Shape(8, 1, 32, False, "f32", False),
    Shape(1, 1, 16, True, "f16", True),
    Shape(6, 2, 128, True, "f16", True),
    Shape(9, 3, 64, True, "int16", False),
    Shape(4, 1, 256, False, "int16", True),
    Shape(2, 2, 80, True, "int16", False),
    Shape(9, 3, 64, True, "int8", False),
    Shape(4, 1, 256, False, "int8", True),
    Shape(2, 2, 80, True, "int8", False),
    Shape(9, 3, 64, True, "int8-int4", False),
    Shape(4, 1, 256, False, "int4", True),
    Shape(2, 2, 96, True, "int4", False),
]


@dataclass
class Batch:
    """Tokens with their projections and the angles of their positions."""

    positions: npt.NDArray[np.int32]
    sequences: npt.NDArray[np.int32]
    qkv: F32
    cos: F32
    sin: F32

    def part(self, chosen: slice) -> Batch:
        return Batch(*(getattr(self, n)[chosen] for n in ("positions", "sequences", "qkv", "cos", "sin")))


def batch(shape: Shape, cache: Cache, count: int, rng: np.random.Generator) -> Batch:
    """Distinct places of a cache, in any order."""
    places = rng.permutation(cache.sequences * cache.context)[:count]
    sequences, positions = (a.astype(np.int32) for a in np.divmod(places, cache.context))
    qkv = floats(rng, count, shape.heads + 2 * shape.kv_heads, shape.head_dim)
    angle = positions[:, None] * frequencies(shape.head_dim)
    return Batch(positions, sequences, qkv, np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))


def append(
    target: str, shape: Shape, cache: Cache, tokens: Batch, weights: list[F32], workers: int = 1
) -> npt.NDArray[np.float32]:
    """Run the kernel; the cache changes in place. Returns q ``[T, Hq, D]``."""
    count = len(tokens.positions)
    q = np.full((count, shape.heads, shape.head_dim), np.nan, np.float32)
    operands = [frozen(tokens.qkv), frozen(tokens.cos), frozen(tokens.sin), q, cache.layer(), *map(frozen, weights)]
    run(
        shape.kernel(cache),
        target,
        operands,
        threads=workers,
        token_count=count,
        positions=frozen(tokens.positions),
        sequences=frozen(tokens.sequences),
        page_table=frozen(cache.table),
        page_table_stride=cache.table.shape[1],
    )
    return q


def norm_weights(shape: Shape, rng: np.random.Generator) -> list[F32]:
    return [rng.uniform(0.2, 2, shape.head_dim).astype(np.float32) for _ in range(2)] if shape.norm else []


def rotation_bound(shape: Shape, x: F32, weight: F32 | None, cos: F32, sin: F32) -> Array:
    """Three roundings of the two products of a pair, and the norm's."""
    relative = 3 * UNIT + (UNIT * (shape.head_dim / 32 + 8) if shape.norm else 0)
    size = reference(np.abs(x), np.abs(cos), -np.abs(sin), interleaved=shape.interleaved, weight=weight, epsilon=1e-6)
    other = reference(np.abs(x), np.abs(cos), np.abs(sin), interleaved=shape.interleaved, weight=weight, epsilon=1e-6)
    return relative * np.maximum(np.abs(size), np.abs(other)) + 1e-37


def transformed(x: Array, bound: Array) -> tuple[Array, Array]:
    """Heads after the Hadamard transform; errors of a block add up, and each of its sums rounds once a level."""
    size = block(x.shape[-1])
    parts = (np.abs(x) * UNIT * (np.log2(size) + 2) + bound).reshape(*x.shape[:-1], -1, size)
    total = parts.sum(axis=-1, keepdims=True) / np.sqrt(size)
    return hadamard.reference(x, size), np.broadcast_to(total, parts.shape).reshape(x.shape)


def code_bound(codes: Codes, bits: int) -> Array:
    """How far elements may be from what their codes stand for, ``[T, H, D]``.

    Half a step between codes, and the roundings of a quotient. Codes of 4 bits are two steps of the scale apart, and
    the grid may end before an extreme: by one and a half, as zero points are rounded and set aside, and by two and a
    half, as the scale may be an eighth too small for the 15 on either side of a group's middle.
    """
    return codes.step * (5 + 1e-3 if bits == 4 else 0.5 + (2 ** (bits - 1) - 1) * 4 * UNIT)


def check_scales(codes: Codes, bits: int) -> None:
    """Scales are as small as may be: in every block an element uses the last codes, or they have all norm they may."""
    parts = codes.signed.reshape(*codes.scale.shape, -1)
    if bits == 16:
        norms, rounding = np.linalg.norm(parts, axis=-1), np.sqrt(parts.shape[-1]) / 2
        assert np.abs(norms - 32639).max() <= 32639 / 255 + rounding
        return
    reach = np.abs(parts).max(axis=-1) if bits == 8 else np.ptp(parts, axis=-1)
    assert reach.min() >= (126 if bits == 8 else 22)
    assert reach.max() <= (127 if bits == 8 else 30)


@for_every_isa
@examples
@given(st.sampled_from(SHAPES), st.integers(1, 12), threads, seeds)
def test_rope_append(target: str, shape: Shape, count: int, workers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache = cache_of(rng, 2, 40, shape.kv_heads, shape.head_dim, shape.dtype)
    tokens, weights = batch(shape, cache, count, rng), norm_weights(shape, rng)
    before = cache.pool.copy()
    q = append(target, shape, cache, tokens, weights, workers)

    def check(found: Array, x: F32, weight: F32 | None, half: bool, extra: Array | float = 0.0) -> None:
        options = {"interleaved": shape.interleaved, "weight": weight, "epsilon": 1e-6}
        expected = reference(x, tokens.cos, tokens.sin, **options)  # type: ignore[arg-type]
        bound = rotation_bound(shape, x, weight, tokens.cos, tokens.sin)
        if KV_FORMATS[shape.dtype].transformed:
            expected, bound = transformed(expected, bound)
        if half:  # rounded to 11 bits, or to the smallest subnormal
            bound = bound + np.maximum(2.0**-11 * (np.abs(expected) + bound), 2.0**-25)
        close(found, expected, bound + extra)

    h, hk = shape.heads, shape.kv_heads
    check(q, tokens.qkv[:, :h], weights[0] if weights else None, False)
    keys, values = cache.read(tokens.sequences, tokens.positions)
    wanted = tokens.qkv[:, h + hk :]
    if isinstance(cache, CodeCache):
        k_codes, v_codes = cache.codes_from(cache.pool, tokens.sequences, tokens.positions)
        extra = [code_bound(codes, bits) for codes, bits in zip((k_codes, v_codes), cache.bits, strict=True)]
        check(keys, tokens.qkv[:, h : h + hk], weights[1] if weights else None, False, extra[0])
        even, bound = wanted.astype(np.float64), np.zeros(wanted.shape)
        if KV_FORMATS[shape.dtype].transformed:
            even, bound = transformed(even, bound)
        close(values, even, bound + extra[1])
        check_scales(k_codes, cache.bits[0])
        check_scales(v_codes, cache.bits[1])
    else:
        check(keys, tokens.qkv[:, h : h + hk], weights[1] if weights else None, shape.dtype == "f16")
        assert same_bits(values, wanted.astype(cache.numpy_dtype))
    # Nothing but these slots changed.
    cache.restore(before, tokens.sequences, tokens.positions)
    assert same_bits(cache.pool, before)


@for_every_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_batches_and_threads_change_no_bit(target: str, shape: Shape) -> None:
    rng = np.random.default_rng(11)
    cache = cache_of(rng, 2, 40, shape.kv_heads, shape.head_dim, shape.dtype)
    tokens, weights = batch(shape, cache, 9, rng), norm_weights(shape, rng)
    start = cache.pool.copy()
    q = append(target, shape, cache, tokens, weights)
    end = cache.pool.copy()
    for workers in (2, 3):
        cache.pool[...] = start
        assert same_bits(append(target, shape, cache, tokens, weights, workers), q)
        assert same_bits(cache.pool, end)
    cache.pool[...] = start
    alone = [append(target, shape, cache, tokens.part(slice(i, i + 1)), weights) for i in range(9)]
    assert same_bits(np.concatenate(alone), q)
    assert same_bits(cache.pool, end)


@for_every_isa
def test_values_beyond_float16_become_infinite(target: str) -> None:
    rng = np.random.default_rng(3)
    shape = replace(SHAPES[0], heads=1, kv_heads=1)
    cache = Cache(rng, 1, 32, 1, 64, "f16")
    tokens = batch(shape, cache, 1, rng)
    tokens.qkv[0, 2, :4] = 1e6, -1e6, 65519, 1e-9
    append(target, shape, cache, tokens, [])
    _, values = cache.read(tokens.sequences, tokens.positions)
    assert values[0, 0, :4].tolist() == [np.inf, -np.inf, 65504, 0]


def test_other_shapes_are_refused() -> None:
    cache = Cache(np.random.default_rng(1), 1, 32, 1, 16, "f16")
    with pytest.raises(UnsupportedError, match="head_dim is 24"):
        replace(SHAPES[0], head_dim=24).kernel(cache)
    with pytest.raises(UnsupportedError, match="heads is 9"):
        replace(SHAPES[0], kv_heads=2).kernel(cache)
    with pytest.raises(UnsupportedError, match="head_dim is 7"):
        RopeAngles(7)
