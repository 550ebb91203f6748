"""Weight formats: nothing is lost, and the meaning is that of the ``gguf`` package."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzc import formats
from ryzc.errors import UnsupportedError
from ryzc.formats import AffineFormat, Codes, TernaryFormat, WeightFormat, bits, lanes
from ryzc.formats.weight_format import F32, U8

ALL = [name for name in formats.names() if not isinstance(formats.get(name), TernaryFormat)]
AFFINE = [name for name in ALL if isinstance(formats.get(name), AffineFormat)]
OWN = ["trit1", "trit2"]
GGUFS = [name for name in ALL if name not in OWN]
FLOATS = [name for name in ALL if name not in AFFINE]
MADE = ["bf16", "f16", "f32", "q4_0", "q4_1", "q8_0", "tq1_0", "tq2_0"]

shapes = st.tuples(st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**32 - 1))


def random_bytes(fmt: WeightFormat, n: int, blocks: int, seed: int) -> U8:
    stored = np.random.default_rng(seed).integers(0, 256, (n, blocks * fmt.block_bytes), np.uint8)
    return canonical(stored) if fmt.name == "tq1_0" else stored


def canonical(stored: U8) -> U8:
    """Bytes of TQ1_0 that an encoder writes: numbers in base 3 that fill a byte, the last four ones' last digit 0."""
    blocks = stored.reshape(len(stored), -1, 54).astype(np.uint16)
    blocks[:, :, :48] = (blocks[:, :, :48] % 243 * 256 + 242) // 243
    blocks[:, :, 48:52] = (blocks[:, :, 48:52] % 81 * 3 * 256 + 242) // 243
    return blocks.astype(np.uint8).reshape(stored.shape)


def affine(name: str) -> AffineFormat:
    fmt = formats.get(name)
    assert isinstance(fmt, AffineFormat)
    return fmt


def oracle(name: str) -> Any:
    return gguf.GGMLQuantizationType[name.upper()]


def check_array(array: npt.NDArray[Any], shape: tuple[int, ...], dtype: str) -> None:
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)


def same_floats(a: F32, b: F32) -> bool:
    """Equal bits, where all NaNs are one."""
    equal = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
    return a.shape == b.shape and bool(equal.all())


def same_fields(a: Codes, b: Codes) -> bool:
    """Equal bits of all fields."""

    def raw(values: npt.NDArray[Any] | None) -> bytes | None:
        return None if values is None else values.tobytes()

    return all(raw(getattr(a, field)) == raw(getattr(b, field)) for field in ("q", "d", "s", "m", "t"))


def test_the_formats_of_both_models_and_their_kin_are_there() -> None:
    legacy = {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}
    ternary = {"tq1_0", "tq2_0"}
    assert set(ALL) >= legacy | ternary | {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "f32", "f16", "bf16"}
    for name in ALL:
        assert formats.get(name).name == name


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="iq3_xxs") as caught:
        formats.get("iq3_xxs")
    assert "q4_k" in str(caught.value.hint)
    for helper in ("lanes", "trits", "bits", "weight_format"):
        with pytest.raises(UnsupportedError):
            formats.get(helper)


@pytest.mark.parametrize("name", ALL)
def test_sizes_are_ggufs(name: str) -> None:
    fmt = formats.get(name)
    assert name in OWN or (fmt.block, fmt.block_bytes) == gguf.GGML_QUANT_SIZES[oracle(name)]
    assert fmt.bits_per_weight == 8 * fmt.block_bytes / fmt.block
    assert fmt.row_bytes(3 * fmt.block) == 3 * fmt.block_bytes
    assert fmt.columns(3 * fmt.block_bytes) == 3 * fmt.block
    for k in (0, -fmt.block, *([fmt.block + 1] if fmt.block > 1 else [])):
        with pytest.raises(ValueError, match="not whole blocks"):
            fmt.row_bytes(k)


@pytest.mark.parametrize("name", AFFINE)
@given(shapes)
def test_parse_loses_nothing(name: str, shape: tuple[int, int, int]) -> None:
    fmt = affine(name)
    n, blocks, seed = shape
    stored = random_bytes(fmt, n, blocks, seed)
    codes = fmt.parse(stored)
    k, groups = blocks * fmt.block, blocks * fmt.block // fmt.group
    check_array(codes.q, (n, k), "uint8")
    check_array(codes.d, (n, blocks), "float16")
    assert (codes.m is not None) == (fmt.min_sign != 0)
    for factors, width, zero in ((codes.s, fmt.scale_bits, fmt.scale_zero), (codes.t, fmt.min_bits, 0)):
        assert (factors is not None) == (width > 0)
        if factors is not None:
            check_array(factors, (n, groups), "int8")
            if width < 8:
                assert factors.min() >= -zero
                assert factors.max() < (1 << width) - zero
    assert codes.q.max() < 1 << sum(fmt.planes)
    assert np.array_equal(fmt.unparse(codes), stored)


@pytest.mark.parametrize("name", ALL)
@given(shapes)
def test_packing_loses_nothing(name: str, shape: tuple[int, int, int]) -> None:
    fmt = formats.get(name)
    n, blocks, seed = shape
    stored = random_bytes(fmt, n, blocks, seed)
    packed = lanes.pack(fmt, stored)
    assert packed.shape == (-(-n // lanes.TILE), lanes.tile_bytes(fmt, blocks * fmt.block))
    assert np.array_equal(lanes.unpack(fmt, packed, n), stored)


@pytest.mark.parametrize("name", ALL)
def test_packing_in_chunks_gives_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = formats.get(name)
    stored = random_bytes(fmt, 5 * lanes.TILE + 7, 2, 1)
    whole = lanes.pack(fmt, stored)
    monkeypatch.setattr(lanes, "_CHUNK", 2 * lanes.TILE * 2 * fmt.block)
    assert np.array_equal(lanes.pack(fmt, stored), whole)
    assert np.array_equal(lanes.unpack(fmt, whole, len(stored)), stored)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ALL)
def test_packing_takes_views_of_read_only_files(name: str) -> None:
    fmt = formats.get(name)
    wide = random_bytes(fmt, 40, 4, 2)
    wide.setflags(write=False)
    view = wide[::2, : 2 * fmt.block_bytes]
    assert np.array_equal(lanes.unpack(fmt, lanes.pack(fmt, view), 20), view)
    assert same_floats(fmt.decode(view), fmt.decode(view.copy()))


@pytest.mark.parametrize("name", AFFINE)
def test_packed_bytes_lie_where_the_layout_says(name: str) -> None:
    """One element at a time, straight from the words of ``lanes``' description."""
    fmt = affine(name)
    n, blocks = 40, 2
    codes = fmt.parse(random_bytes(fmt, n, blocks, 3))
    packed = lanes.pack(fmt, fmt.unparse(codes))
    rng = np.random.default_rng(4)
    groups = fmt.block // fmt.group
    for row, k in zip(rng.integers(0, n, 200), rng.integers(0, blocks * fmt.block, 200), strict=True):
        tile, lane = divmod(int(row), 32)
        block, within = divmod(int(k), fmt.block)
        data = packed[tile].reshape(blocks, -1)[block]
        halves = data[: 64 * (1 + (codes.m is not None))].view(np.uint16).reshape(-1, 32)[:, lane]
        assert halves[0] == codes.d.view(np.uint16)[row, block]
        if codes.m is not None:
            assert halves[1] == codes.m.view(np.uint16)[row, block]
        data = data[64 * len(halves) :]
        count = lanes.factor_words(fmt)
        words = data[: 128 * count].view(np.uint32).reshape(count, 32)[:, lane]
        for factors, first, zero in ((codes.s, 0, fmt.scale_zero), (codes.t, groups, 0)):
            if factors is not None:
                pieces = lanes.factor_pieces(fmt, first + within // fmt.group)
                value = sum((int(words[w]) >> shift & (1 << width) - 1) << low for w, shift, low, width in pieces)
                assert value == (int(factors[row, int(k) // fmt.group]) + zero) % 256
        steps = data[128 * count :].reshape(fmt.block // 32, -1)[within // 32]
        j, i = divmod(within % 32, 4)
        value = low = 0
        for width in fmt.planes:
            vectors, steps = steps[: width * 128].reshape(width, 32, 4), steps[width * 128 :]
            value |= (int(vectors[j % width, lane, i]) >> width * (j // width) & (1 << width) - 1) << low
            low += width
        assert value == codes.q[row, k]


@pytest.mark.parametrize("name", FLOATS)
def test_packed_floats_lie_where_the_layout_says(name: str) -> None:
    fmt = formats.get(name)
    n, k = 40, 6
    stored = random_bytes(fmt, n, k, 5)
    packed = lanes.pack(fmt, stored).reshape(2, k, 32, fmt.block_bytes)
    for row in range(n):
        for column in range(k):
            at = column * fmt.block_bytes
            assert np.array_equal(packed[row // 32, column, row % 32], stored[row, at : at + fmt.block_bytes])


@pytest.mark.parametrize("name", ALL)
def test_rows_past_the_end_mean_zero(name: str) -> None:
    fmt = formats.get(name)
    padding = lanes.unpack(fmt, lanes.pack(fmt, random_bytes(fmt, 33, 2, 6)), 64)[33:]
    assert not padding.any()
    assert not fmt.decode(padding).any()


@pytest.mark.parametrize("name", GGUFS)
@given(shapes)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the random bytes hold infinities
def test_meaning_is_that_of_gguf(name: str, shape: tuple[int, int, int]) -> None:
    fmt = formats.get(name)
    n, blocks, seed = shape
    stored = random_bytes(fmt, n, blocks, seed)
    assert same_floats(fmt.decode(stored), gguf.quants.dequantize(stored, oracle(name)))


@pytest.mark.parametrize("name", ALL)
def test_decode_keeps_leading_axes(name: str) -> None:
    fmt = formats.get(name)
    stored = fmt_safe(fmt, 6)
    assert same_floats(fmt.decode(stored.reshape(2, 3, -1)), fmt.decode(stored).reshape(2, 3, -1))
    assert same_floats(fmt.decode(stored[0]), fmt.decode(stored)[0])


def fmt_safe(fmt: WeightFormat, n: int) -> U8:
    """Random rows whose scales are finite."""
    if not isinstance(fmt, AffineFormat):
        values = np.random.default_rng(7).standard_normal((n, 2 * fmt.block)).astype(np.float32)
        return fmt.quantize(values)
    codes = fmt.parse(random_bytes(fmt, n, 2, 7))
    m = None if codes.m is None else np.full_like(codes.m, 0.75)
    return fmt.unparse(Codes(q=codes.q, d=np.full_like(codes.d, -0.125), s=codes.s, m=m, t=codes.t))


EXTREME_HALVES = [
    0x0000,
    0x8000,
    0x0001,
    0x8001,
    0x03FF,
    0x0400,
    0x7BFF,
    0xFBFF,
    0x7C00,
    0xFC00,
    0x7C01,
    0x7E00,
    0xFFFF,
]


@pytest.mark.parametrize("half", EXTREME_HALVES)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7F])
@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_extremes(name: str, fill: int, half: int) -> None:
    """All codes 0 or all at their largest under zeros, subnormals, infinities and NaNs with their payloads."""
    fmt = affine(name)
    codes = fmt.parse(np.full((3, 2 * fmt.block_bytes), fill, np.uint8))
    d = np.full(codes.d.shape, half, np.uint16).view(np.float16)
    m = None if codes.m is None else (d.view(np.uint16) ^ 0x8000).view(np.float16)
    codes = Codes(q=codes.q, d=d, s=codes.s, m=m, t=codes.t)
    stored = fmt.unparse(codes)
    assert same_fields(fmt.parse(stored), codes)
    assert np.array_equal(lanes.unpack(fmt, lanes.pack(fmt, stored), 3), stored)
    meaning = fmt.meaning(codes) if name in OWN else gguf.quants.dequantize(stored, oracle(name))
    assert same_floats(fmt.decode(stored), meaning)


@pytest.mark.parametrize("name", AFFINE)
def test_the_formula_of_the_module(name: str) -> None:
    """``decode`` against the documented formula, an element at a time."""
    fmt = affine(name)
    stored = fmt_safe(fmt, 2)
    codes, w = fmt.parse(stored), fmt.decode(stored)
    for k in range(w.shape[1]):
        scale = np.float32(codes.d[1, k // fmt.block])
        if codes.s is not None:
            scale *= np.float32(codes.s[1, k // fmt.group])
        value = scale * (np.float32(codes.q[1, k]) - np.float32(fmt.zero))
        if codes.m is not None:
            least = np.float32(codes.m[1, k // fmt.block])
            if codes.t is not None:
                least *= np.float32(codes.t[1, k // fmt.group])
            value += np.float32(fmt.min_sign) * least
        assert value == w[1, k]


@given(st.sampled_from([(1, 1), (1, 32), (2, 4), (2, 32), (4, 8), (4, 16), (4, 64)]), st.integers(0, 2**32 - 1))
def test_spread_and_gather_undo_each_other(kind: tuple[int, int], seed: int) -> None:
    width, span = kind
    field = np.random.default_rng(seed).integers(0, 256, (2, 3, 2 * span), np.uint8)
    values = bits.spread(field, width, span)
    assert values.shape == (2, 3, 8 // width * 2 * span)
    assert np.array_equal(bits.gather(values, width, span), field)
    high = values << np.uint8(8 - width)
    assert np.array_equal(bits.gather(high, width, span, low=8 - width), field)


ordinary = st.tuples(st.integers(1, 40), st.integers(1, 3), st.integers(-30, 4), st.integers(0, 2**32 - 1))


def weights_of(n: int, k: int, exponent: int, seed: int) -> F32:
    """Normal values at a power of two, with ties, zero blocks and repeated values among them."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((n, k)).astype(np.float32) * np.float32(2.0**exponent)
    w[rng.random(n) < 0.2] = 0
    steps = rng.random(n) < 0.3
    w[steps] = np.round(w[steps] * np.float32(2.0 ** (2 - exponent))) / np.float32(2.0 ** (2 - exponent))
    w[rng.random(n) < 0.1] = w[0, 0]
    return w


@pytest.mark.parametrize("name", MADE)
@given(ordinary)
def test_quantizing_is_that_of_gguf(name: str, shape: tuple[int, int, int, int]) -> None:
    fmt = formats.get(name)
    n, blocks, exponent, seed = shape
    w = weights_of(n, max(32, fmt.block) * blocks, exponent, seed)
    stored = fmt.quantize(w)
    check_array(stored, (n, fmt.row_bytes(w.shape[1])), "uint8")
    assert np.array_equal(stored, gguf.quants.quantize(w, oracle(name)).view(np.uint8))


@pytest.mark.parametrize("name", MADE)
def test_what_is_quantized_means_nearly_the_same(name: str) -> None:
    w = np.random.default_rng(8).standard_normal((64, 256)).astype(np.float32)
    fmt = formats.get(name)
    relative = float(np.linalg.norm(fmt.decode(fmt.quantize(w)) - w) / np.linalg.norm(w))
    bound = {"f32": 0.0, "f16": 3e-4, "bf16": 3e-3, "q8_0": 8e-3, "q4_1": 0.09, "q4_0": 0.11}.get(name, 1.0)
    assert relative <= bound


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
@given(shapes)
def test_ternary_weights_are_quantized_exactly(name: str, shape: tuple[int, int, int]) -> None:
    fmt = formats.get(name)
    n, blocks, seed = shape
    rng = np.random.default_rng(seed)
    w = rng.integers(-1, 2, (n, blocks, 256)) * rng.uniform(2**-12, 2.0, (n, blocks, 1)).astype(np.float16)
    w = w.astype(np.float32).reshape(n, -1)
    assert np.array_equal(fmt.decode(fmt.quantize(w)), w)


@given(shapes)
def test_bytes_that_no_encoder_of_tq1_0_writes_mean_what_they_mean_to_gguf(shape: tuple[int, int, int]) -> None:
    n, blocks, seed = shape
    fmt = affine("tq1_0")
    stored = np.random.default_rng(seed).integers(0, 256, (n, blocks * 54), np.uint8)
    stored.reshape(n, blocks, 54)[:, :, 53] = 0x3C  # scales of about 1
    w = fmt.decode(stored)
    assert same_floats(w, gguf.quants.dequantize(stored, oracle("tq1_0")))
    assert same_floats(fmt.decode(fmt.unparse(fmt.parse(stored))), w)


@pytest.mark.parametrize("name", FLOATS)
def test_quantizing_what_a_float_format_can_hold_is_exact(name: str) -> None:
    fmt = formats.get(name)
    stored = random_bytes(fmt, 50, 64, 9)
    finite = np.isfinite(fmt.decode(stored))
    cells = stored.reshape(50, 64, -1) * finite[:, :, None].astype(np.uint8)
    assert np.array_equal(fmt.quantize(fmt.decode(cells.reshape(50, -1))).reshape(cells.shape), cells)


@pytest.mark.parametrize("name", sorted(set(MADE) - {"f32"}))
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3.4028235e38])
def test_what_does_not_fit_is_refused(name: str, bad: float) -> None:
    w = np.ones((2, 256), np.float32)
    w[1, 40] = bad
    w[1, 41] = -abs(bad)
    with pytest.raises(UnsupportedError, match=f"{name}: .*not finite or too large"):
        formats.get(name).quantize(w)


@pytest.mark.parametrize("name", sorted(set(MADE) - set(FLOATS)))
def test_scales_below_float16_become_zero_without_a_warning(name: str) -> None:
    fmt = formats.get(name)
    w = np.full((1, fmt.block), 1e-42, np.float32)
    w[0, 3] = -1e-43
    with np.errstate(all="raise", under="ignore"):
        assert not fmt.decode(fmt.quantize(w)).any()


@pytest.mark.parametrize("name", sorted(set(GGUFS) - set(MADE)))
def test_formats_that_are_only_read_say_so(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"reads weights in {name}"):
        formats.get(name).quantize(np.zeros((1, 256), np.float32))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q8_0", "tq1_0", "tq2_0"])
def test_quantizing_needs_whole_blocks(name: str) -> None:
    with pytest.raises(ValueError, match="not whole blocks"):
        formats.get(name).quantize(np.zeros((1, 48), np.float32))
