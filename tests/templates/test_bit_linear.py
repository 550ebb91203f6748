"""Ternary layers: bit-equal to the scalar meaning, by every method, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from harness import RUNNABLE, examples, frozen, run, same_bits
from hypothesis import given
from hypothesis import strategies as st

from ryzc import formats, targets
from ryzc.codegen import isa as instruction_sets
from ryzc.formats import TernaryFormat, trits
from ryzc.lower.weights import Matrix, pack_gated
from ryzc.templates.kernels import bit_linear, bit_lookup, norm
from ryzc.templates.kernels import token_activations as act
from ryzc.templates.kernels.bit_linear import BitLinear
from ryzc.templates.kernels.gate import Gate
from ryzc.templates.kernels.norm_quantize_tokens import NormQuantizeTokens
from ryzc.templates.kernels.quantize_tokens import QuantizeTokens

Codes = npt.NDArray[np.int8]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
seeds = st.integers(0, 2**32 - 1)
tokens = st.sampled_from([1, 2, 3, 5, 8, 13, 20, 97])
# Whole tiles and a tail; K with and without a rest of a dense word, shorter and longer than a stretch of a panel.
SHAPES = [(32, 32), (70, 160), (33, 1696)]


def isa_of(target: str) -> instruction_sets.Isa:
    return instruction_sets.BY_NAME[targets.get(target).isa]


WAYS = [(target, layout) for target in RUNNABLE for layout in bit_linear.layouts(isa_of(target))]
every_way = pytest.mark.parametrize(("target", "layout"), WAYS)


def ternary() -> TernaryFormat:
    fmt = formats.get("ternary")
    assert isinstance(fmt, TernaryFormat)
    return fmt


def random_weights(n: int, k: int, rng: np.random.Generator) -> U8:
    return ternary().unparse(rng.integers(-1, 2, (n, k)).astype(np.int8), rng.normal(size=n).astype(np.float32))


def multiply(target: str, kernel: BitLinear, stored: U8, codes: Codes, scales: F32, *, threads: int = 1) -> F32:
    out = np.full((len(codes), kernel.out_stride), np.nan, np.float32)
    packed = trits.pack(ternary(), stored, kernel.layout)
    operands = [frozen(packed), frozen(codes), frozen(act.records(codes, scales)), out]
    run(kernel, target, operands, threads=threads, token_count=len(codes))
    return out


@every_way
@examples
@given(st.sampled_from(SHAPES), tokens, st.integers(1, 3), seeds)
def test_bits_are_those_of_the_meaning(
    target: str, layout: str, shape: tuple[int, int], count: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    (n, k), stored = shape, random_weights(*shape, rng)
    codes, scales = act.quantize(rng.normal(size=(count, k)).astype(np.float32))
    found = multiply(target, BitLinear(layout, n, k, "store", n), stored, codes, scales, threads=threads)
    assert same_bits(found, bit_linear.reference(ternary(), stored, codes, scales))


@every_way
@pytest.mark.parametrize("weight", [-1, 0, 1])
@pytest.mark.parametrize("activation", [-127, 127, 0])
def test_extremes(target: str, layout: str, weight: int, activation: int) -> None:
    """Saturating activations against rows of one weight, over a K as long as any model's."""
    n, k, count = 33, 8192 + 32, 9
    stored = ternary().unparse(np.full((n, k), weight, np.int8), np.ones(n, np.float32))
    codes = np.full((count, k), activation, np.int8)
    found = multiply(target, BitLinear(layout, n, k, "store", n), stored, codes, np.ones((count, 1), np.float32))
    assert (found == weight * activation * k).all()


@every_way
def test_every_method_gives_the_same_bits(target: str, layout: str) -> None:
    rng = np.random.default_rng(3)
    n, k, count = 70, 1696, 23
    stored = random_weights(n, k, rng)
    codes, scales = act.quantize(rng.normal(size=(count, k)).astype(np.float32))
    expected = bit_linear.reference(ternary(), stored, codes, scales)
    kernel = BitLinear(layout, n, k, "store", n)
    for method in kernel.methods(isa_of(target)):
        one = replace(kernel, schedule=(f"1:{method}",))
        assert same_bits(multiply(target, one, stored, codes, scales), expected), method


def test_tables_stay_small() -> None:
    """A K whose tables are large is multiplied otherwise, by default and when tuned."""
    isa = instruction_sets.AVX512_VNNI
    for k, looks_up in ((bit_lookup.REACH, True), (bit_lookup.REACH + 32, False)):
        kernel = BitLinear("lookup", 64, k, "store", 64)
        for names in (kernel.methods(isa), kernel.default_schedule(isa)):
            assert any("lookup" in name for name in names) == looks_up


@every_way
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_gates_and_residuals(target: str, layout: str, activation: str) -> None:
    """Fused epilogues give the bits of the plain layer and what follows it."""
    rng = np.random.default_rng(5)
    n, k, count = 48, 96, 7
    codes, scales = act.quantize(rng.normal(size=(count, k)).astype(np.float32))
    gate, up = random_weights(n, k, rng), random_weights(n, k, rng)
    plain = BitLinear(layout, n, k, "store", n)
    gated, raised = (multiply(target, plain, w, codes, scales) for w in (gate, up))
    apart = np.full((count, n), np.nan, np.float32)
    run(Gate(n, activation), target, [frozen(gated), frozen(raised), apart], token_count=count)

    def matrix(name: str, stored: U8) -> Matrix:
        return Matrix(name, "ternary", n, k, lambda: stored)

    packed = pack_gated(matrix("gate", gate), matrix("up", up), f"{layout}_gated")
    fused = np.full((count, n), np.nan, np.float32)
    operands = [frozen(packed), frozen(codes), frozen(act.records(codes, scales)), fused]
    run(BitLinear(layout, 2 * n, k, activation, n), target, operands, token_count=count)
    assert same_bits(fused, apart)

    residual = rng.normal(size=(count, n)).astype(np.float32)
    added = residual.copy()
    operands = [frozen(trits.pack(ternary(), gate, layout)), *operands[1:3], added]
    run(BitLinear(layout, n, k, "residual", n), target, operands, token_count=count)
    assert same_bits(added, residual + gated)


@pytest.mark.parametrize("target", RUNNABLE)
@examples
@given(st.sampled_from([32, 96, 576]), st.integers(1, 5), seeds, st.sampled_from([1e-9, 1e-3, 1.0, 1e6]))
def test_rounding_a_token(target: str, k: int, count: int, seed: int, size: float) -> None:
    x = (np.random.default_rng(seed).normal(size=(count, k)) * size).astype(np.float32)
    x[0] = 0
    codes, records = np.full((count, k), 99, np.int8), np.zeros((count, act.RECORD_BYTES), np.uint8)
    run(QuantizeTokens(k), target, [frozen(x), codes, records], threads=2, token_count=count)
    expected, scales = act.quantize(x)
    assert np.array_equal(codes, expected)
    assert np.array_equal(records, act.records(expected, scales))


@pytest.mark.parametrize("target", RUNNABLE)
@examples
@given(st.sampled_from([32, 96, 576]), st.integers(1, 5), seeds)
def test_rounding_a_normed_token(target: str, k: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(count, k)).astype(np.float32), rng.normal(size=k).astype(np.float32)
    codes, records = np.zeros((count, k), np.int8), np.zeros((count, act.RECORD_BYTES), np.uint8)
    run(NormQuantizeTokens(k, 1e-5), target, [frozen(x), frozen(weight), codes, records], token_count=count)
    normed = norm.reference(x, weight, 1e-5)
    scales = records[:, :4].copy().view(np.float32)
    amax = np.abs(normed).max(axis=1, keepdims=True)
    assert np.allclose(scales, amax / 127, rtol=1e-5)
    # The nearest code, but for what float32 loses on the way: K / 16 sums and few roundings after them.
    assert (np.abs(codes - normed / (amax / 127)) <= 0.5 + 127 * 2.0**-23 * (k / 16 + 8)).all()
    assert np.array_equal(records, act.records(codes, scales))
