"""The functions of ``ai.ryzc`` against numpy, one operator at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as helper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from ryzc import formats
from ryzc.errors import InternalError
from ryzc.formats import FloatFormat
from ryzc.graph import ops

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def run(op: str, inputs: list[Array | None], outputs: int = 1, **attributes: Any) -> list[Array]:
    """Evaluate one node; ``None`` is an input left out."""
    names = ["" if x is None else f"i{i}" for i, x in enumerate(inputs)]
    results = [f"o{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, domain=ops.DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [onnx.ValueInfoProto(name=n) for n in names if n],
        [onnx.ValueInfoProto(name=n) for n in results],
    )
    imports = [helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    model = helper.make_model(graph, opset_imports=imports, functions=ops.with_dependencies({op}))
    feeds = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    return list(ReferenceEvaluator(model).run(None, feeds))


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_every_function_is_valid_onnx() -> None:
    for name in ops.names():
        function = ops.function(name)
        context = onnx.checker.C.CheckerContext()
        context.ir_version = ops.IR_VERSION
        context.opset_imports = {"": ops.OPSET, ops.DOMAIN: ops.VERSION}
        onnx.checker.check_function(function, context)
        assert not function.attribute_proto, f"{name}: attributes have no defaults"


def test_an_operator_without_meaning_is_an_error() -> None:
    with pytest.raises(InternalError, match="Nonsense"):
        ops.function("Nonsense")


def test_dependencies_come_before_their_users() -> None:
    order = [f.name for f in ops.with_dependencies({"RopeAppend", "LinearGated"})]
    assert order.index("HeadNorm") < order.index("RopeAppend")
    assert order.index("LinearF32") < order.index("Linear") < order.index("LinearGated")
    assert "PagedAttention" not in order


CODED = [name for name in formats.names() if not isinstance(formats.get(name), FloatFormat)]


def test_every_coded_format_has_a_meaning() -> None:
    assert {f"Dequantize_{name}" for name in CODED} <= ops.names()


@pytest.mark.parametrize("name", CODED)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_dequantize_equals_the_format_bit_for_bit(name: str, data: st.DataObject) -> None:
    """On any bytes at all: also infinities and NaNs in the scales."""
    fmt = formats.get(name)
    shape = (data.draw(st.integers(1, 5)), fmt.row_bytes(data.draw(st.integers(1, 3)) * fmt.block))
    seed = data.draw(st.integers(0, 2**31))
    stored = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    with np.errstate(all="ignore"):
        got, wanted = run(f"Dequantize_{name}", [stored])[0], fmt.decode(stored)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 4),
    blocks=st.integers(1, 3),
    size=st.sampled_from([1e-20, 1e-3, 1.0, 1e4, 1e30]),
)
def test_quantize(seed: int, tokens: int, blocks: int, size: float) -> None:
    x = normal(seed, tokens, 32 * blocks) * np.float32(size)
    x[0, :32] = 0
    codes, scales = run("Quantize", [x], 2)
    assert (codes.dtype.name, scales.dtype.name, codes.shape, scales.shape) == (
        "int8",
        "float32",
        x.shape,
        (tokens, blocks),
    )
    for t in range(tokens):
        for b in range(blocks):
            block = x[t, 32 * b : 32 * b + 32]
            amax = np.abs(block).max()
            assert scales[t, b] == np.float32(amax) / np.float32(127)
            inverse = np.float32(0) if amax == 0 else np.float32(127) / amax
            np.testing.assert_array_equal(codes[t, 32 * b : 32 * b + 32], np.rint(block * inverse).astype(np.int8))
    # Half a step, and the rounding of the scale, of its inverse and of two products.
    error = np.abs(codes.astype(np.float64) * np.repeat(scales, 32, 1) - x)
    bound = np.repeat(scales.astype(np.float64), 32, 1) * (0.5 + 127 * 4 * 2.0**-24)
    assert (error <= bound).all()


def test_quantize_rounds_halves_to_even() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :5] = [127, 0.5, 1.5, -0.5, -2.5]
    np.testing.assert_array_equal(run("Quantize", [x], 2)[0][0, :5], [127, 0, 2, 0, -2])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(1, 4), n=st.integers(1, 9), blocks=st.integers(1, 4))
def test_int8_linear_is_within_half_a_step_of_the_float_one(seed: int, tokens: int, n: int, blocks: int) -> None:
    """The documented bound: |error| <= sum over k of |W[n, k]| * scale / 2, plus float32 rounding."""
    x, w = normal(seed, tokens, 32 * blocks), normal(seed + 1, n, 32 * blocks)
    residual = normal(seed + 2, tokens, n)
    codes, scales = run("Quantize", [x], 2)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    step = np.repeat(scales.astype(np.float64), 32, 1)
    slack = (np.abs(x).astype(np.float64) @ np.abs(w).T.astype(np.float64)) * (32 * blocks + 4) * 2.0**-24 + 1e-6
    bound = (step / 2) @ np.abs(w).T.astype(np.float64) + slack
    assert (np.abs(run("Linear", [codes, scales, w])[0] - exact) <= bound).all()
    assert (np.abs(run("LinearResidual", [codes, scales, w, residual])[0] - residual - exact) <= bound).all()
    assert (np.abs(run("LinearF32", [x, w])[0] - exact) <= slack).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 4),
    k=st.sampled_from([1, 7, 64]),
    size=st.sampled_from([0.0, 1e-20, 1e-6, 1.0, 1e15]),
)
def test_rounding_tokens(seed: int, tokens: int, k: int, size: float) -> None:
    x = normal(seed, tokens, k) * np.float32(size)
    codes, scales = run("QuantizeTokens", [x], 2)
    assert (codes.dtype.name, codes.shape, scales.dtype.name, scales.shape) == ("int8", x.shape, "float32", (tokens, 1))
    for t in range(tokens):
        amax = max(np.abs(x[t]).max(), np.float32(1e-5))
        assert scales[t, 0] == amax / np.float32(127)
        np.testing.assert_array_equal(codes[t], np.rint(x[t] * (np.float32(127) / amax)).clip(-128, 127))
    rounded = run("RoundTokens", [x])[0]
    np.testing.assert_array_equal(rounded, codes.astype(np.float32) * scales)
    weight = 1 + normal(seed + 1, k)
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) * weight
    codes, scales = run("NormQuantizeTokens", [x, weight], 2, epsilon=1e-5)
    assert np.abs(codes * scales.astype(np.float64) - normed).max() <= scales.max() * 0.51


def test_tokens_are_rounded_half_to_even() -> None:
    x = np.array([[127, 0.5, 1.5, -0.5, -2.5, -127]], np.float32)
    np.testing.assert_array_equal(run("QuantizeTokens", [x], 2)[0], [[127, 0, 2, 0, -2, -127]])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4), size=st.sampled_from([0.0, 1e-7, 1.0, 1e6]))
def test_rounded_weights_are_those_of_the_format(seed: int, rows: int, size: float) -> None:
    weights, ternary = normal(seed, rows, 64) * np.float32(size), formats.get("ternary")
    np.testing.assert_allclose(run("RoundWeights", [weights])[0], ternary.decode(ternary.quantize(weights)), rtol=1e-6)


def test_layers_of_ternary_weights() -> None:
    x, residual = normal(0, 3, 64), normal(3, 3, 5)
    one, other = (np.sign(normal(seed, 5, 64)).astype(np.float32) * np.float32(0.25) for seed in (1, 2))
    rounded = run("RoundTokens", [x])[0]
    codes, scales = run("QuantizeTokens", [x], 2)
    for op, inputs, attributes in (
        ("", [one], {}),
        ("Residual", [one, residual], {}),
        ("Gated", [one, other], {"activation": "relu2"}),
    ):
        wanted = run(f"LinearF32{op}", [rounded, *inputs], **attributes)[0]
        np.testing.assert_array_equal(run(f"BitLinear{op}", [codes, scales, *inputs], **attributes)[0], wanted)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
def test_gated(activation: str) -> None:
    x, gate, up = normal(0, 5, 64), normal(1, 7, 64), normal(2, 7, 64)
    g, u = x.astype(np.float64) @ gate.T, x.astype(np.float64) @ up.T
    if activation == "silu":
        wanted = g / (1 + np.exp(-g)) * u
    elif activation == "relu2":
        wanted = np.maximum(g, 0) ** 2 * u
    else:
        wanted = 0.5 * g * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) * u
    got = run("LinearF32Gated", [x, gate, up], activation=activation)[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5)
    codes, scales = run("Quantize", [x], 2)
    rough = run("LinearGated", [codes, scales, gate, up], activation=activation)[0]
    assert 0 < np.abs(rough - wanted).max() < 0.05 * np.abs(wanted).max()
    gate, up = normal(1, 32, 64), normal(2, 32, 64)
    rough = run("LinearGated", [codes, scales, gate, up], activation=activation)[0]
    found = run("LinearGatedQuantize", [codes, scales, gate, up], 2, activation=activation)
    for got, expected in zip(found, run("Quantize", [rough], 2), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_norms() -> None:
    x, weight, residual = normal(0, 3, 64), normal(1, 64), normal(2, 3, 64)
    wanted = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-3) * weight
    np.testing.assert_allclose(
        run("NormAdd", [x, weight, residual], epsilon=1e-3)[0], residual + wanted, rtol=1e-5, atol=1e-6
    )
    codes, scales = run("NormQuantize", [x, weight], 2, epsilon=1e-3)
    assert np.abs(codes * np.repeat(scales, 32, 1) - wanted).max() <= scales.max() * 0.51
    by_head = x.reshape(3, 4, 16).astype(np.float64)
    wanted = by_head / np.sqrt((by_head**2).mean(2, keepdims=True) + 1e-3) * weight[:16]
    got = run("HeadNorm", [x, weight[:16]], heads=4, epsilon=1e-3)[0]
    np.testing.assert_allclose(got, wanted.reshape(3, 64), rtol=1e-5, atol=1e-6)


def test_embedding() -> None:
    table = normal(0, 9, 4)
    got = run("Embedding", [np.array([8, 0, 8]), table], scale=2.5)[0]
    np.testing.assert_array_equal(got, table[[8, 0, 8]] * np.float32(2.5))


def test_angles_of_far_positions_are_exact() -> None:
    frequencies = np.array([1.0, 0.731])
    positions = np.array([0, 1, 1_000_003])
    cos, sin = run("RopeAngles", [positions, frequencies], 2)
    assert cos.dtype == np.float32
    for i, p in enumerate(positions):
        for j, f in enumerate(frequencies):
            assert cos[i, j] == np.float32(math.cos(int(p) * float(f)))
            assert sin[i, j] == np.float32(math.sin(int(p) * float(f)))


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rope(interleaved: int) -> None:
    x, angle = normal(0, 3, 2 * 8), normal(1, 3, 4)
    got = run("Rope", [x, np.cos(angle), np.sin(angle)], heads=2, interleaved=interleaved)[0].reshape(3, 2, 8)
    for i in range(4):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + 4)
        z = (x.reshape(3, 2, 8)[:, :, a] + 1j * x.reshape(3, 2, 8)[:, :, b]) * np.exp(1j * angle[:, i : i + 1])
        np.testing.assert_allclose(got[:, :, a], z.real, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[:, :, b], z.imag, rtol=1e-5, atol=1e-6)


def attend(q: F32, k: F32, v: F32, at: Array, heads: int, kv_heads: int, scale: float, window: int) -> Array:
    """Attention token by token and head by head, in float64."""
    tokens, d = len(q), q.shape[1] // heads
    out = np.zeros((tokens, heads, d))
    for i in range(tokens):
        seen = [j for j in range(tokens) if at[j] <= at[i] and (window == 0 or at[i] - at[j] < window)]
        for h in range(heads):
            kh = k.reshape(tokens, kv_heads, d)[seen, h * kv_heads // heads].astype(np.float64)
            vh = v.reshape(tokens, kv_heads, d)[seen, h * kv_heads // heads].astype(np.float64)
            scores = kh @ q.reshape(tokens, heads, d)[i, h] * scale
            weights = np.exp(scores - scores.max())
            out[i, h] = weights @ vh / weights.sum()
    return out.reshape(tokens, -1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 8),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    window=st.integers(0, 5),
    first=st.integers(0, 100),
)
def test_causal_attention(seed: int, tokens: int, heads: tuple[int, int], window: int, first: int) -> None:
    q, k, v = (normal(seed + i, tokens, 8 * n) for i, n in enumerate((heads[0], heads[1], heads[1])))
    positions = np.random.default_rng(seed).permutation(tokens) + first
    got = run("CausalAttention", [q, k, v, positions], heads=heads[0], kv_heads=heads[1], scale=0.3, window=window)[0]
    wanted = attend(q, k, v, positions, *heads, 0.3, window)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    window=st.integers(0, 5),
    slots=st.sampled_from([1, 3, 4]),
    normed=st.booleans(),
    interleaved=st.integers(0, 1),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_pages_hold_what_one_sequence_would(
    seed: int,
    lengths: list[int],
    heads: tuple[int, int],
    window: int,
    slots: int,
    normed: bool,
    interleaved: int,
    dtype: type[np.floating[Any]],
) -> None:
    """Several sequences in one batch, in any order of tokens, over scattered pages full of old numbers."""
    d, (hq, hk) = 8, heads
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    order = rng.permutation(tokens)
    sequences = np.repeat(np.arange(len(lengths)), lengths)[order]
    positions = np.concatenate([np.arange(n) for n in lengths])[order]
    entries = -(-max(lengths) // slots)
    page_table = rng.permutation(len(lengths) * entries).reshape(len(lengths), entries)
    pages = page_table.size
    k_pages = normal(seed + 1, pages, hk, d, slots).astype(dtype)
    v_pages = normal(seed + 2, pages, hk, slots, d).astype(dtype)
    qkv, angle = normal(seed + 3, tokens, (hq + 2 * hk) * d), normal(seed + 4, tokens, d // 2)
    norms = (normal(seed + 5, d), normal(seed + 6, d)) if normed else (None, None)
    cos, sin = np.cos(angle), np.sin(angle)
    shape: Mapping[str, Any] = {"heads": hq, "kv_heads": hk}
    q, k_next, v_next = run(
        "RopeAppend",
        [qkv, cos, sin, k_pages, v_pages, page_table, positions, sequences, *norms],
        3,
        head_dim=d,
        interleaved=interleaved,
        epsilon=1e-5,
        **shape,
    )
    got = run(
        "PagedAttention", [q, k_next, v_next, page_table, positions, sequences], scale=0.3, window=window, **shape
    )[0]
    assert k_next.dtype == v_next.dtype == np.dtype(dtype)

    parts = np.split(qkv, [hq * d, (hq + hk) * d], axis=1)
    for i, heads_of in enumerate((hq, hk)):
        norm = norms[i]
        if norm is not None:
            parts[i] = run("HeadNorm", [parts[i], norm], heads=heads_of, epsilon=1e-5)[0]
        parts[i] = run("Rope", [parts[i], cos, sin], heads=heads_of, interleaved=interleaved)[0]
    kept_k, kept_v = parts[1].astype(dtype), parts[2].astype(dtype)
    written = np.zeros((pages, slots), bool)
    for t in range(tokens):
        page, slot = page_table[sequences[t], positions[t] // slots], positions[t] % slots
        written[page, slot] = True
        np.testing.assert_array_equal(k_next[page, :, :, slot], kept_k[t].reshape(hk, d))
        np.testing.assert_array_equal(v_next[page, :, slot], kept_v[t].reshape(hk, d))
    np.testing.assert_array_equal(k_next.transpose(0, 3, 1, 2)[~written], k_pages.transpose(0, 3, 1, 2)[~written])
    np.testing.assert_array_equal(v_next.transpose(0, 2, 1, 3)[~written], v_pages.transpose(0, 2, 1, 3)[~written])
    for s in range(len(lengths)):
        own = sequences == s
        wanted = attend(parts[0][own], kept_k[own], kept_v[own], positions[own], hq, hk, 0.3, window)
        np.testing.assert_allclose(got[own], wanted, rtol=1e-5, atol=1e-5)
