"""Blocks that several architectures are made of, as standard ONNX operators wherever there are some."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ryzc.graph.nodes import FLOAT, Dim, add, add_constant, add_input, dims, make

TOKENS: Dim = "T"


def token_inputs(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """The inputs of every semantic graph: ``tokens`` and ``positions``, int64 [T]."""
    return (
        add_input(graph, "tokens", ir.DataType.INT64, [TOKENS]),
        add_input(graph, "positions", ir.DataType.INT64, [TOKENS]),
    )


def embedding(graph: ir.Graph, table: ir.Value, tokens: ir.Value) -> ir.Value:
    """Rows of ``table [V, K]``: f32 [T, K]."""
    return add(graph, "Gather", [table, tokens], name="embedding", shape=[TOKENS, dims(table)[1]], axis=0)


def scaled(graph: ir.Graph, x: ir.Value, factor: float, *, name: str) -> ir.Value:
    """``x * factor`` in float32."""
    constant = add_constant(graph, f"{name}.factor", np.array(factor, np.float32))
    return add(graph, "Mul", [x, constant], name=name, shape=dims(x))


def linear(graph: ir.Graph, x: ir.Value, weight: ir.Value, *, name: str) -> ir.Value:
    """``x [T, K] @ weight[N, K].T``: f32 [T, N]."""
    n, k = dims(weight)
    columns = add(graph, "Transpose", [weight], name=f"{name}.columns", shape=[k, n], perm=[1, 0])
    return add(graph, "MatMul", [x, columns], name=name, shape=[dims(x)[0], n])


def rms_norm(graph: ir.Graph, x: ir.Value, weight: ir.Value, epsilon: float, *, name: str) -> ir.Value:
    """RMS norm over the last axis."""
    return add(graph, "RMSNormalization", [x, weight], name=name, shape=dims(x), axis=-1, epsilon=epsilon)


def head_norm(graph: ir.Graph, x: ir.Value, weight: ir.Value, heads: int, epsilon: float, *, name: str) -> ir.Value:
    """RMS norm of each head of ``x [T, heads * D]``, one ``weight [D]`` for all."""
    return add(graph, "HeadNorm", [x, weight], name=name, shape=dims(x), heads=heads, epsilon=epsilon)


def residual(graph: ir.Graph, stream: ir.Value, x: ir.Value, *, name: str) -> ir.Value:
    """``stream + x``."""
    return add(graph, "Add", [stream, x], name=name, shape=dims(stream))


def inverse_frequencies(
    base: float, head_dim: int, factors: npt.NDArray[np.floating] | None = None
) -> npt.NDArray[np.float64]:
    """Angles a position turns each pair by: f64 [head_dim / 2], divided by ``factors`` where there are some."""
    plain = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return plain if factors is None else plain / factors.astype(np.float64)


def rope_angles(
    graph: ir.Graph, positions: ir.Value, inverse: npt.NDArray[np.float64], *, name: str
) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines, f32 [T, head_dim / 2] each."""
    frequencies = add_constant(graph, f"{name}.inv_freq", inverse)
    shape: list[Dim] = [TOKENS, len(inverse)]
    outputs = [(f"{name}.cos", FLOAT, shape), (f"{name}.sin", FLOAT, shape)]
    node = make("RopeAngles", [positions, frequencies], outputs)
    graph.append(node)
    return node.outputs[0], node.outputs[1]


def rope(
    graph: ir.Graph, x: ir.Value, angles: tuple[ir.Value, ir.Value], heads: int, *, interleaved: bool, name: str
) -> ir.Value:
    """Rotate each head of ``x [T, heads * D]``; ``interleaved`` turns pairs (2i, 2i+1), else (i, i + D/2)."""
    return add(graph, "Rope", [x, *angles], name=name, shape=dims(x), heads=heads, interleaved=int(interleaved))


def attention(
    graph: ir.Graph,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    positions: ir.Value,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int,
    name: str,
) -> ir.Value:
    """Causal attention, ``heads / kv_heads`` query heads to a key head, ``window`` tokens back (0: all)."""
    return add(
        graph,
        "CausalAttention",
        [q, k, v, positions],
        name=name,
        shape=dims(q),
        heads=heads,
        kv_heads=kv_heads,
        scale=scale,
        window=window,
    )


def swiglu(graph: ir.Graph, gate: ir.Value, up: ir.Value, *, name: str) -> ir.Value:
    """``gate * sigmoid(gate) * up``."""
    sigmoid = add(graph, "Sigmoid", [gate], name=f"{name}.sigmoid", shape=dims(gate))
    silu = add(graph, "Mul", [gate, sigmoid], name=f"{name}.silu", shape=dims(gate))
    return add(graph, "Mul", [silu, up], name=name, shape=dims(gate))


def geglu(graph: ir.Graph, gate: ir.Value, up: ir.Value, *, name: str) -> ir.Value:
    """``gelu(gate) * up`` with the tanh form of GELU."""
    gelu = add(graph, "Gelu", [gate], name=f"{name}.gelu", shape=dims(gate), approximate="tanh")
    return add(graph, "Mul", [gelu, up], name=name, shape=dims(gate))


def relu2_glu(graph: ir.Graph, gate: ir.Value, up: ir.Value, *, name: str) -> ir.Value:
    """``relu(gate) ** 2 * up``."""
    relu = add(graph, "Relu", [gate], name=f"{name}.relu", shape=dims(gate))
    squared = add(graph, "Mul", [relu, relu], name=f"{name}.relu2", shape=dims(gate))
    return add(graph, "Mul", [squared, up], name=name, shape=dims(gate))


def round_tokens(graph: ir.Graph, x: ir.Value, *, name: str) -> ir.Value:
    """``x [T, K]`` rounded to eight bits under one scale a token, as BitNet's layers take it."""
    return add(graph, "RoundTokens", [x], name=name, shape=dims(x))


def round_weights(graph: ir.Graph, weight: ir.Value, *, name: str) -> ir.Value:
    """``weight [N, K]`` rounded to -1, 0 or 1 times its mean magnitude, as BitNet's layers take it."""
    return add(graph, "RoundWeights", [weight], name=name, shape=dims(weight))
