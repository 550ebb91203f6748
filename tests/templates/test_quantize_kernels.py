"""Quantizing kernels: bit-equal to their meaning.

``norm_quantize`` is held to the bits of ``norm`` followed by ``quantize``; and, by itself, to float64. There a
code may differ by one, and only where ``y * 127 / amax`` lies within ``noise`` of a tie: both ``y`` and
``amax`` carry the norm's relative error, codes are at most 127, and three more roundings make the code.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from harness import close, examples, floats, for_every_isa, frozen, run, same_bits
from hypothesis import given
from hypothesis import strategies as st

from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels import rms
from ryzc.templates.kernels.norm import Norm
from ryzc.templates.kernels.norm_quantize import NormQuantize
from ryzc.templates.kernels.quantize import Quantize, reference

UNIT = 2.0**-24

columns = st.sampled_from([32, 64, 96, 576, 1536])
tokens = st.integers(1, 9)
threads = st.integers(1, 3)
seeds = st.integers(0, 2**32 - 1)
exponents = st.integers(-110, 120)


def outputs(count: int, k: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
    return np.full((count, act.code_bytes(k)), 77, np.int8), np.full((count, act.record_bytes(k)), 77, np.uint8)


def written(
    codes: npt.NDArray[np.int8], records: npt.NDArray[np.uint8], k: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
    """The codes and records in the outputs; what fills up their rows is as it was."""
    used = k // 32 * act.RECORD_BYTES
    assert (codes[:, k:] == 77).all()
    assert (records[:, used:] == 77).all()
    return codes[:, :k], records[:, :used].reshape(len(records), -1, act.RECORD_BYTES)


@given(st.integers(1, 1 << 20))
def test_rows_are_an_odd_number_of_lines(size: int) -> None:
    row = act.row_bytes(size)
    assert size <= row < size + 128
    assert row % 128 == 64


def scales_of(records: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(records[:, :, :4]).view(np.float32)[:, :, 0]


def check(target: str, x: npt.NDArray[np.float32], workers: int = 1) -> None:
    """Hold the kernel to the bits of the meaning."""
    codes, records = outputs(*x.shape)
    run(Quantize(x.shape[1]), target, [frozen(x), codes, records], threads=workers, token_count=len(x))
    codes, records = written(codes, records, x.shape[1])
    expected, scales = reference(x)
    assert same_bits(codes, expected)
    assert same_bits(records, act.records(expected, scales))


@for_every_isa
@examples
@given(columns, tokens, threads, exponents, seeds)
def test_quantize(target: str, k: int, count: int, workers: int, exponent: int, seed: int) -> None:
    check(target, floats(np.random.default_rng(seed), count, k, scale=2.0**exponent), workers)


@for_every_isa
@examples
@given(columns, st.integers(-90, 90), seeds)
def test_quantize_at_ties(target: str, k: int, exponent: int, seed: int) -> None:
    """With amax 127 * 2^e codes are exact halves: ties go to even."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(-253, 254, (2, k)) / 2).astype(np.float32)
    x[:, ::32] = 127
    codes, _ = reference(x)
    assert (codes == np.rint(x)).all()
    check(target, np.ldexp(x, exponent))


@for_every_isa
def test_quantize_extremes(target: str) -> None:
    blocks = np.zeros((10, 32), np.float32)
    blocks[1, 3] = -0.0
    blocks[2, ::2] = np.finfo(np.float32).max
    blocks[2, 1::2] = -np.finfo(np.float32).max
    blocks[3, 20] = -np.finfo(np.float32).max / 2
    blocks[4] = 1e-45
    blocks[5] = np.nextafter(np.float32(act.TINY), np.float32(0))  # the last that counts as zero
    blocks[6] = np.float32(act.TINY)
    blocks[7, 31] = 1e-3
    blocks[8] = np.linspace(-1, 1, 32)
    blocks[9, 15:17] = (5, -5)  # on both sides of the sum of the first half
    check(target, blocks.reshape(2, 160))


@for_every_isa
@examples
@given(columns, tokens, threads, seeds)
def test_norm_quantize_is_norm_then_quantize(target: str, k: int, count: int, workers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight, y = floats(rng, count, k), floats(rng, k), np.empty((count, k), np.float32)
    codes, records = outputs(count, k)
    kernel = NormQuantize(k, 1e-5)
    run(kernel, target, [frozen(x), frozen(weight), codes, records], threads=workers, token_count=count)
    run(Norm(k, 1e-5), target, [x, weight, y], token_count=count)
    codes, records = written(codes, records, k)
    expected, scales = reference(y)
    assert same_bits(codes, expected)
    assert same_bits(records, act.records(expected, scales))


@for_every_isa
@examples
@given(columns, tokens, seeds)
def test_norm_quantize_against_float64(target: str, k: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight = floats(rng, count, k), rng.uniform(0.1, 2, k).astype(np.float32)
    codes, records = outputs(count, k)
    run(NormQuantize(k, 1e-6, "row_count"), target, [x, weight, codes, records], row_count=count)
    codes, records = written(codes, records, k)
    y = rms.reference(x, weight, 1e-6).reshape(count, -1, 32)
    amax = np.abs(y).max(axis=2)
    exact = (y * (127 / amax)[:, :, None]).reshape(count, k)
    relative = UNIT * (k / 32 + 8)
    noise = 127 * (2 * relative + 3 * UNIT)
    close(codes, exact, np.full(exact.shape, 0.5 + noise))
    close(scales_of(records), amax / 127, (relative + UNIT) * amax / 127)
    assert same_bits(records, act.records(codes, scales_of(records)))


@for_every_isa
def test_counts_the_rows_it_is_told_to(target: str) -> None:
    x = floats(np.random.default_rng(3), 4, 32)
    codes, records = outputs(4, 32)
    run(Quantize(32, "row_count"), target, [x, codes, records], row_count=1, token_count=4)
    assert (codes[1:] == 77).all()
    assert (records[1:] == 77).all()
    assert same_bits(codes[:1, :32], reference(x[:1])[0])
