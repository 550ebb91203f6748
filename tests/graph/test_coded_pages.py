"""The functions around pages of codes against numpy and against what they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import attend, normal, run

from ryzc.graph.ops.paged_codes import cache, suffix
from ryzc.kv_formats import GROUP, KV_FORMATS, KVFormat

F32 = npt.NDArray[np.float32]


def matrix(size: int) -> npt.NDArray[np.float64]:
    """Sylvester's construction, made orthogonal."""
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]]) / np.sqrt(2)
    return h


@pytest.mark.parametrize(("width", "size"), [(3, 1), (8, 8), (6, 2), (80, 16), (96, 32)])
def test_hadamard(width: int, size: int) -> None:
    x = normal(width, 5, width)
    got = run("Hadamard", [x], block=size)[0]
    wanted = (x.reshape(5, -1, size) @ matrix(size)).reshape(x.shape)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(run("Hadamard", [got], block=size)[0], x, rtol=0, atol=2e-6)


def test_quantize_blocks() -> None:
    x = normal(1, 4, 3 * 8) * np.array([1e-3, 1, 50, 1e-35], np.float32)[:, None]
    codes, scale = run("QuantizeBlocks", [x], 2, block=8)
    blocks, amax = x.reshape(4, 3, 8), np.abs(x).reshape(4, 3, 8).max(axis=2)
    np.testing.assert_allclose(scale[:3], amax[:3] / 127, rtol=2**-8)
    assert not (scale.view(np.uint32) & 0xFFFF).any()
    assert not codes[3].any()
    assert not scale[3].any()
    assert np.abs(codes).max() == 127
    assert np.abs(codes).reshape(4, 3, 8)[:3].max(axis=2).min() >= 126
    assert (codes == np.rint(codes)).all()
    error = np.abs(run("Scaled", [codes, scale])[0].reshape(blocks.shape) - blocks)
    assert (error[:3] <= 0.501 * scale[:3, :, None]).all()


def test_quantize_heads() -> None:
    """A scale is the norm's 32639th part, to bfloat16; no product of two heads' codes leaves 32 bits."""
    x = normal(1, 5, 3 * 8) * np.array([1e-3, 1, 50, 1e-35, 1], np.float32)[:, None]
    x[4] = np.eye(8, dtype=np.float32)[:3].reshape(-1) * 1.003
    codes, scale = run("QuantizeHeads", [x], 2, block=8)
    blocks, norm = x.reshape(5, 3, 8), np.linalg.norm(x.reshape(5, 3, 8), axis=2)
    np.testing.assert_allclose(scale[[0, 1, 2, 4]], norm[[0, 1, 2, 4]] / 32639, rtol=2**-8)
    assert not (scale.view(np.uint32) & 0xFFFF).any()
    assert not codes[3].any()
    assert not scale[3].any()
    assert (codes == np.rint(codes)).all()
    assert np.abs(codes).max() <= 32767
    assert (codes.reshape(5, 3, 8) ** 2).sum(axis=2).max() < 2**31
    error = np.abs(run("Scaled", [codes, scale])[0].reshape(blocks.shape) - blocks)
    assert (error[[0, 1, 2, 4]] <= 0.51 * scale[[0, 1, 2, 4], :, None]).all()
    rounded = run("RoundHeads", [x], block=8)[0].reshape(blocks.shape)
    assert (np.abs(rounded - blocks)[[0, 1, 2, 4]] <= 0.51 * norm[[0, 1, 2, 4], :, None] / 32639).all()
    assert not rounded[3].any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=16, max_size=16), st.floats(-20, 0))
def test_quantize_groups(elements: list[float], exponent: float) -> None:
    """Whatever a group holds, no element is off by more than the grid's end may be aside: three half steps of codes.

    And the squared error is no more than that of the smallest grid which holds the group.
    """
    x = np.array([elements], np.float32) * np.float32(2**exponent)
    codes, scale, zero = run("QuantizeGroups", [x], 3, block=16)
    for whole, most in ((codes, 15), (zero, 30)):
        assert (whole == np.rint(whole)).all()
        assert whole.min() >= 0
        assert whole.max() <= most
    span = max(x.max(), 0) - min(x.min(), 0)
    assert 2**-21 <= scale[0, 0] <= max(2**-21, 1.1251 * span / 30)
    assert scale.view(np.uint32)[0, 0] & 0xFFFFF == 0
    error = np.abs(run("Scaled", [run("Centred", [codes, zero])[0], scale])[0] - x)
    assert error.max() <= GROUP_STEPS * scale[0, 0]
    assert np.sqrt((error**2).mean()) <= 1.501 * max(2**-21, 1.1251 * span / 30)


GROUP_STEPS = 5.01
"""How many scales an element may be off: one as codes are two apart, one and a half as the zero point is rounded and
set aside, and two and a half as the scale may be an eighth too small for the 15 on either side of a group's middle."""


FORMATS = {name: format_ for name, format_ in KV_FORMATS.items() if format_.coded}


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    window=st.integers(0, 5),
    slots=st.sampled_from([1, 3, 4]),
    normed=st.booleans(),
    name=st.sampled_from(sorted(FORMATS)),
)
def test_pages_of_codes_hold_nearly_what_float_pages_hold(
    seed: int, lengths: list[int], heads: tuple[int, int], window: int, slots: int, normed: bool, name: str
) -> None:
    """Several sequences in one batch over scattered pages full of old codes, beside :class:`PagedAttention` in float32.

    An 8-bit code is off by half a step of 1/127 of the largest of 32 elements: of queries, keys and values 0.7 % of
    their root mean square each, and weights alike. Scores of about one then give results off by about 2 %; with codes
    of 4 bits, whose steps are 1/15 of a group's range, by ten times as much where keys have them. Codes of 16
    bits are off by half a step of 1/32639 of a head's norm, a twentieth of a thousandth of what elements are.
    """
    d, (hq, hk) = 32, heads
    format_ = FORMATS[name]
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    order = rng.permutation(tokens)
    sequences = np.repeat(np.arange(len(lengths)), lengths)[order]
    positions = np.concatenate([np.arange(n) for n in lengths])[order]
    entries = -(-max(lengths) // slots)
    table = rng.permutation(len(lengths) * entries).reshape(len(lengths), entries)
    pages = table.size
    qkv, angle = normal(seed + 3, tokens, (hq + 2 * hk) * d), normal(seed + 4, tokens, d // 2)
    norms = (normal(seed + 5, d), normal(seed + 6, d)) if normed else (None, None)
    cos, sin = np.cos(angle), np.sin(angle)
    shape: dict[str, Any] = {"heads": hq, "kv_heads": hk}
    rope = {**shape, "head_dim": d, "interleaved": 1, "epsilon": 1e-5}
    parts = cache(name)
    old = {part: _old(part, format_, rng, (pages, hk, slots), d) for part in parts}
    where = [table, positions, sequences]
    q, *stored = run(
        f"RopeAppend{suffix(name)}", [qkv, cos, sin, *old.values(), *where, *norms], 1 + len(parts), block=32, **rope
    )
    options = {"scale": d**-0.5, "window": window, "block": 32, **shape}
    got = run(f"PagedAttention{suffix(name)}", [q, *stored, *where], **options)[0]

    zeros = [np.zeros(s, np.float32) for s in ((pages, hk, d, slots), (pages, hk, slots, d))]
    q32, k32, v32 = run("RopeAppend", [qkv, cos, sin, *zeros, *where, *norms], 3, **rope)

    def even(rows: F32) -> F32:
        """What codes of few bits stand for, and back."""
        return run("Hadamard", [rows], block=32)[0] if format_.transformed else rows

    np.testing.assert_allclose(even(q), q32, rtol=0, atol=1e-5)
    page, slot = table[sequences, positions // slots], positions % slots
    now = dict(zip(parts, stored, strict=True))
    for letter, rows in (("k", k32[page, :, :, slot]), ("v", v32[page, :, slot])):
        x = even(rows.reshape(tokens, hk * d)).reshape(tokens, hk, d)
        codes = now[f"{letter}_pages"][page, :, :, slot] if letter == "k" else now["v_pages"][page, :, slot]
        half_step = 0.501 if format_.transformed else 0.51  # and a rounding of a quotient of up to 32639
        scale, steps, signed = now[f"{letter}_scales"][page, :, slot], half_step, codes.astype(np.float32)
        if f"{letter}_zeros" in now:
            signed, steps = run("Centred", [codes, now[f"{letter}_zeros"][page, :, slot]])[0], GROUP_STEPS
        step = np.repeat(scale, d // scale.shape[2], axis=2)
        assert (np.abs(signed * step - x) <= steps * step).all()
    written = np.zeros((pages, slots), bool)
    written[page, slot] = True
    for part, array in now.items():
        order_ = (0, 3, 1, 2) if part == "k_pages" else (0, 2, 1, 3)
        np.testing.assert_array_equal(array.transpose(order_)[~written], old[part].transpose(order_)[~written])

    k_rows, v_rows = k32[page, :, :, slot].reshape(tokens, -1), v32[page, :, slot].reshape(tokens, -1)
    for s in range(len(lengths)):
        own = sequences == s
        wanted = attend(q32[own], k_rows[own], v_rows[own], positions[own], hq, hk, d**-0.5, window)
        size = np.sqrt((v_rows[own] ** 2).mean())
        bound = {(16, 16): 0.0005, (8, 8): 0.04, (8, 4): 0.15, (4, 4): 0.6}[format_.key_bits, format_.value_bits]
        assert np.sqrt(((got[own] - wanted) ** 2).mean()) <= bound * size


def _old(
    part: str, format_: KVFormat, rng: np.random.Generator, shape: tuple[int, int, int], head_dim: int
) -> npt.NDArray[Any]:
    """What lies in a pool of pages before anything is stored: any codes, scales and zero points."""
    letter, kind = part.split("_")
    pages, hk, slots = shape
    bits = format_.key_bits if letter == "k" else format_.value_bits
    if kind == "pages":
        size = (pages, hk, head_dim, slots) if letter == "k" else (pages, hk, slots, head_dim)
        codes = rng.integers(0, 16, size) if bits == 4 else rng.integers(-127, 128, size)
        return codes.astype({16: np.int16, 8: np.int8, 4: np.uint8}[bits])
    blocks = head_dim // GROUP if bits == 4 else head_dim // 32 if letter == "k" else 1
    if kind == "zeros":
        return rng.integers(0, 31, (*shape, blocks)).astype(np.uint8)
    return np.abs(rng.normal(size=(*shape, blocks))).astype(np.float32)
