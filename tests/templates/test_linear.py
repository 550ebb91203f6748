"""Linear layers: integer sums exact, floats within their rounding, one result whatever the batch.

Expected values come from the stored bytes through :mod:`ryzc.formats`, never from the packed layout.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from harness import RUNNABLE, examples, for_every_isa, frozen, run, same_bits
from hypothesis import given
from hypothesis import strategies as st

from ryzc import formats, targets
from ryzc.codegen import isa as instruction_sets
from ryzc.errors import UnsupportedError
from ryzc.formats import AffineFormat, Codes, WeightFormat, lanes
from ryzc.formats.weight_format import U8
from ryzc.lower.weights import Matrix, pack_gated
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels import linear, linear_f32, schedule
from ryzc.templates.kernels.epilogue import Epilogue
from ryzc.templates.kernels.gate import Gate
from ryzc.templates.kernels.linear import Linear
from ryzc.templates.kernels.linear_f32 import LinearF32
from ryzc.templates.kernels.linear_quantize import LinearQuantize

F32 = npt.NDArray[np.float32]
AFFINE = [name for name in formats.names() if isinstance(formats.get(name), AffineFormat)]
EPSILON = 2.0**-24
seeds = st.integers(0, 2**32 - 1)
tokens = st.sampled_from([1, 2, 3, 5, 6, 7, 13, 16, 30, 64, 65])
every_format = pytest.mark.parametrize("name", AFFINE)
# Compiling takes longer than running, so few shapes (whole tiles, a tail, several blocks), many values.
SHAPES = [(32, 1), (70, 2)]


def random_weights(fmt: AffineFormat, n: int, k: int, rng: np.random.Generator) -> U8:
    """Stored rows: any codes and factors, scales of ordinary size."""
    parsed = fmt.parse(rng.integers(0, 256, (n, fmt.row_bytes(k)), np.uint8))
    d = (rng.normal(size=parsed.d.shape) / 64).astype(np.float16)
    m = None if parsed.m is None else (rng.normal(size=parsed.m.shape) / 64).astype(np.float16)
    return fmt.unparse(Codes(q=parsed.q, d=d, s=parsed.s, m=m, t=parsed.t))


def gated(name: str, k: int, *halves: U8) -> U8:
    """Stored rows of gate and up, packed together."""
    matrices = [Matrix("w", name, len(half), k, lambda stored=half: stored) for half in halves]  # type: ignore[misc]
    return frozen(pack_gated(*matrices, "gated"))


def in_rows(codes: npt.NDArray[np.int8], scales: F32) -> list[U8]:
    """Codes and records as kernels read them."""
    return [frozen(act.rows(values)) for values in (codes, act.records(codes, scales))]


def multiply(
    target: str,
    name: str,
    stored: U8,
    codes: npt.NDArray[np.int8],
    scales: F32,
    *,
    threads: int = 1,
    residual: F32 | None = None,
) -> F32:
    """The kernel's ``[T, N]``."""
    fmt, (n, k), count = formats.get(name), (len(stored), codes.shape[1]), len(codes)
    out = np.full((count, n), np.nan, np.float32) if residual is None else residual.copy()
    kernel = Linear(name, n, k, "store" if residual is None else "residual", n)
    operands = [frozen(lanes.pack(fmt, stored)), *in_rows(codes, scales), out]
    run(kernel, target, operands, threads=threads, token_count=count)
    return out


def bound(fmt: AffineFormat, stored: U8, codes: npt.NDArray[np.int8], scales: F32) -> npt.NDArray[np.float64]:
    """How far float32 may stray, ``[T, N]``.

    Each group adds one product of two rounded scales and, with a minimum, a second term, to a running sum:
    at most ``3 + 2 K / group`` roundings of the sum of all magnitudes.
    """
    fields = fmt.parse(stored)
    x = np.abs(codes.astype(np.float64)) * np.repeat(scales.astype(np.float64), act.BLOCK, axis=1)
    largest = np.abs(fields.q.astype(np.float64) - fmt.zero) * np.abs(_spread(fmt, fields.d, fields.s))
    if fields.m is not None:
        largest = largest + np.abs(_spread(fmt, fields.m, fields.t))
    magnitude: npt.NDArray[np.float64] = x @ largest.T
    return magnitude * EPSILON * (4 + 2 * codes.shape[1] / fmt.group)


def _spread(
    fmt: AffineFormat, values: npt.NDArray[np.float16], factors: npt.NDArray[np.int8] | None
) -> npt.NDArray[np.float64]:
    groups = np.repeat(values.astype(np.float64), fmt.block // fmt.group, axis=1)
    if factors is not None:
        groups = groups * factors
    return np.repeat(groups, fmt.group, axis=1)


@for_every_isa
@every_format
@examples
@given(st.sampled_from(SHAPES), tokens, st.integers(1, 3), seeds)
def test_against_exact_sums(
    target: str, name: str, shape: tuple[int, int], count: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    fmt = formats.get(name)
    assert isinstance(fmt, AffineFormat)
    n, k = shape[0], shape[1] * max(fmt.block, 64)
    stored = random_weights(fmt, n, k, rng)
    codes, scales = act.quantize(rng.normal(size=(count, k)).astype(np.float32))
    found = multiply(target, name, stored, codes, scales, threads=threads)
    error = np.abs(found - linear.reference(fmt, stored, codes, scales))
    allowed = bound(fmt, stored, codes, scales)
    worst = np.unravel_index((error - allowed).argmax(), error.shape)
    assert (error <= allowed).all(), f"token and row {worst}: off by {error[worst]}, allowed {allowed[worst]}"


@for_every_isa
@every_format
@pytest.mark.parametrize("weight", ["lowest", "highest", "random"])
@pytest.mark.parametrize("activation", [-127, 127, 0, "random"])
def test_integers_are_exact(target: str, name: str, weight: str, activation: int | str) -> None:
    """With scales that are powers of two every float is exact, so the result is the integer sum itself."""
    rng = np.random.default_rng(7)
    fmt = formats.get(name)
    assert isinstance(fmt, AffineFormat)
    n, k = 33, max(fmt.block, 64)
    top = (1 << sum(fmt.planes)) - 1
    filled = {"lowest": 0, "highest": top, "random": rng.integers(0, top + 1, (n, k))}[weight]
    blocks, groups = (n, k // fmt.block), (n, k // fmt.group)
    s = rng.choice([-1, 1] if fmt.scale_zero or fmt.scale_bits == 8 else [1, 2], groups).astype(np.int8)
    weights = Codes(
        q=np.full((n, k), filled, np.uint8),
        d=np.full(blocks, 0.5, np.float16),
        s=s if fmt.scale_bits else None,
        m=np.full(blocks, 0.25, np.float16) if fmt.min_sign else None,
        t=np.full(groups, 3, np.int8) if fmt.min_bits else None,
    )
    shape = (3, k)
    codes = np.full(shape, rng.integers(-127, 128, shape) if activation == "random" else activation, np.int8)
    scales = np.full((3, k // act.BLOCK), 2.0, np.float32)
    stored = fmt.unparse(weights)
    found = multiply(target, name, stored, codes, scales)
    assert np.array_equal(found, linear.reference(fmt, stored, codes, scales))


@every_format
@examples
@given(seeds)
def test_one_result_whatever_the_batch(name: str, seed: int) -> None:
    """Same bits alone or among others, at any thread count, on every instruction set."""
    rng = np.random.default_rng(seed)
    fmt = formats.get(name)
    assert isinstance(fmt, AffineFormat)
    k = max(fmt.block, 64)
    stored = random_weights(fmt, 70, k, rng)
    codes, scales = act.quantize(rng.normal(size=(37, k)).astype(np.float32))
    whole = multiply(RUNNABLE[0], name, stored, codes, scales)
    for target in RUNNABLE:
        for start, stop, threads in ((0, 1, 1), (5, 7, 2), (3, 9, 1), (0, 13, 3), (4, 20, 2), (9, 37, 1)):
            part = multiply(target, name, stored, codes[start:stop], scales[start:stop], threads=threads)
            assert same_bits(part, whole[start:stop])


@for_every_isa
@pytest.mark.parametrize("name", ["q4_0", "q6_k"])
def test_residual_is_added_once(target: str, name: str) -> None:
    rng = np.random.default_rng(3)
    fmt = formats.get(name)
    assert isinstance(fmt, AffineFormat)
    stored = random_weights(fmt, 70, 256, rng)
    codes, scales = act.quantize(rng.normal(size=(9, 256)).astype(np.float32))
    residual = rng.normal(size=(9, 70)).astype(np.float32)
    plain = multiply(target, name, stored, codes, scales)
    assert same_bits(multiply(target, name, stored, codes, scales, threads=2, residual=residual), plain + residual)


def _gate(activation: str, gate: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if activation == "silu":
        return gate / (1 + np.exp(-gate))
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))


@for_every_isa
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("name", "rows"), [("q4_1", 64), ("q5_0", 40), ("q4_k", 21)])
@pytest.mark.parametrize("exact", [False, True])
def test_gated_layers(target: str, activation: str, name: str, rows: int, exact: bool) -> None:
    rng = np.random.default_rng(11)
    fmt = formats.get(name)
    assert isinstance(fmt, AffineFormat)
    gate, up = (random_weights(fmt, rows, 256, rng) for _ in range(2))
    x = rng.normal(size=(8, 256)).astype(np.float32)
    codes, scales = act.quantize(x)
    packed = gated(name, 256, gate, up)
    out = np.full((8, rows), np.nan, np.float32)
    if exact:
        run(LinearF32(name, 2 * rows, 256, activation, rows), target, [packed, frozen(x), out], token_count=8)
        sums = [linear_f32.reference(fmt, stored, x) for stored in (gate, up)]
    else:
        kernel = Linear(name, 2 * rows, 256, activation, rows)
        operands = [packed, *in_rows(codes, scales), out]
        run(kernel, target, operands, threads=2, token_count=8)
        sums = [linear.reference(fmt, stored, codes, scales) for stored in (gate, up)]
    expected = _gate(activation, sums[0]) * sums[1]
    # The gate's slope stays below 1.2, exp is good to 2e-7, and the sums' own rounding is scaled by the other.
    size = np.abs(sums[0]) * np.abs(sums[1])
    stray = 64 * EPSILON * (1 + np.abs(sums[0]).max()) * (1 + np.abs(sums[1]).max())
    assert (np.abs(out - expected) <= 4e-6 * size + stray).all()


@for_every_isa
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gate_equals_the_fused_layer(target: str, activation: str) -> None:
    """Separate layers and a gate, as for weights of two formats, give the bits of the gated layer."""
    rng = np.random.default_rng(5)
    fmt = formats.get("q4_1")
    assert isinstance(fmt, AffineFormat)
    halves = [random_weights(fmt, 48, 64, rng) for _ in range(2)]
    codes, scales = act.quantize(rng.normal(size=(7, 64)).astype(np.float32))
    gate, up = (frozen(multiply(target, "q4_1", stored, codes, scales)) for stored in halves)
    apart, fused = (np.full((7, 48), np.nan, np.float32) for _ in range(2))
    run(Gate(48, activation), target, [gate, up, apart], threads=3, token_count=7)
    operands = [gated("q4_1", 64, *halves), *in_rows(codes, scales), fused]
    run(Linear("q4_1", 96, 64, activation, 48), target, operands, token_count=7)
    assert same_bits(apart, fused)


@for_every_isa
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
@pytest.mark.parametrize(("name", "k"), [("q4_1", 64), ("q5_0", 1280), ("q6_k", 256)])
def test_quantized_gates_have_the_codes_of_the_gate(target: str, activation: str, name: str, k: int) -> None:
    """Batches are decoded in registers or by panels, fill groups of eight tokens or not, and may be of zeros."""
    rng = np.random.default_rng(17)
    fmt = formats.get(name)
    assert isinstance(fmt, AffineFormat)
    rows = 160
    packed = gated(name, k, *(random_weights(fmt, rows, k, rng) for _ in range(2)))
    x = rng.normal(size=(203, k)).astype(np.float32)
    x[::7] = 0
    codes, scales = act.quantize(x)
    floats = np.full((len(x), rows), np.nan, np.float32)
    inputs = [packed, *in_rows(codes, scales)]
    run(Linear(name, 2 * rows, k, activation, rows), target, [*inputs, floats], token_count=len(x))
    assert np.isfinite(floats).all()
    assert floats.any()
    wanted, wanted_scales = act.quantize(floats)
    wanted_records = act.records(wanted, wanted_scales, 8)
    for count, threads in ((1, 1), (2, 2), (8, 1), (13, 3), (33, 1), (97, 2), (203, 1), (203, 3)):
        found = [np.full((count, size), 99, np.uint8) for size in (act.code_bytes(rows), act.record_bytes(rows))]
        kernel = LinearQuantize(name, 2 * rows, k, activation, out_unit=8)
        run(kernel, target, [*inputs, *found], threads=threads, token_count=count)
        for got, expected in zip(found, (wanted, wanted_records), strict=True):
            expected = expected[:count].reshape(count, -1).view(np.uint8)
            assert np.array_equal(got[:, : expected.shape[1]], expected)
            assert (got[:, expected.shape[1] :] == 99).all()


def test_quantized_gates_need_whole_blocks() -> None:
    with pytest.raises(UnsupportedError, match="rows is 96"):
        LinearQuantize("q4_0", 96, 64, "silu")


@for_every_isa
@pytest.mark.parametrize("epilogue", ["store", "residual", "silu"])
@pytest.mark.parametrize(("name", "k"), [("q4_1", 64), ("q5_0", 1280), ("q6_k", 1536)])
def test_panels_change_no_bit(target: str, epilogue: str, name: str, k: int) -> None:
    """K is one stretch, or two or three; tokens fill tiles of every width, or less than the widest."""
    rng = np.random.default_rng(13)
    fmt = formats.get(name)
    assert isinstance(fmt, AffineFormat)
    rows, is_gated = 45, epilogue == "silu"
    if is_gated:
        packed = gated(name, k, *(random_weights(fmt, rows, k, rng) for _ in range(2)))
    else:
        packed = frozen(lanes.pack(fmt, random_weights(fmt, rows, k, rng)))
    codes, scales = act.quantize(rng.normal(size=(27, k)).astype(np.float32))
    before = rng.normal(size=(27, rows)).astype(np.float32)

    def multiplied(method: str, count: int) -> F32:
        out = before[:count].copy() if epilogue == "residual" else np.full((count, rows), np.nan, np.float32)
        kernel = Linear(name, rows << is_gated, k, epilogue, rows, schedule=(f"512:{method}",))
        run(kernel, target, [packed, *in_rows(codes[:count], scales[:count]), out], threads=2, token_count=count)
        return out

    isa = instruction_sets.BY_NAME[targets.get(target).isa]
    panels = {found.partition("-p1024")[0] for found in schedule.methods(isa) if found.startswith("panel")}
    for method in sorted(panels):
        for count in (3, 27):
            assert same_bits(multiplied(method, count), multiplied("direct-4x2", count)), (method, count)


def test_gate_and_up_are_multiplied_together() -> None:
    with pytest.raises(UnsupportedError, match="1 vectors a panel are no pairs"):
        Epilogue("silu", 64, 32).together(16, 1)


def _any_weights(fmt: WeightFormat, n: int, k: int, rng: np.random.Generator) -> U8:
    if isinstance(fmt, AffineFormat):
        return random_weights(fmt, n, k, rng)
    return fmt.quantize(rng.normal(size=(n, k)).astype(np.float32))


@for_every_isa
@pytest.mark.parametrize("name", [name for name in formats.names() if name != "ternary"])
@examples
@given(tokens, st.integers(1, 3), seeds)
def test_float_activations(target: str, name: str, count: int, threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fmt = formats.get(name)
    n, k = 70, max(fmt.block, 64)
    stored = _any_weights(fmt, n, k, rng)
    x = rng.normal(size=(count, k)).astype(np.float32)
    out = np.full((count, n), np.nan, np.float32)
    packed = frozen(lanes.pack(fmt, stored))
    run(LinearF32(name, n, k, "store", n), target, [packed, frozen(x), out], threads=threads, token_count=count)
    decoded = fmt.decode(stored).astype(np.float64)
    # One rounding for each of K fused steps, two for joining the four sums; and the weight's own last bit.
    allowed = (np.abs(x.astype(np.float64)) @ np.abs(decoded).T) * EPSILON * (k / 4 + 4)
    assert (np.abs(out - linear_f32.reference(fmt, stored, x)) <= allowed).all()
    alone = np.full((1, n), np.nan, np.float32)
    run(LinearF32(name, n, k, "store", n), target, [packed, frozen(x[-1:]), alone], token_count=1)
    assert same_bits(alone[0], out[-1])
