"""How each node kind of the final graph becomes kernel calls: one function a kind.

The kinds are those that the default pipeline leaves (see :mod:`ryzc.passes.pipeline`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from ryzc import formats
from ryzc.bundle.plan import Operand, PackedWeight
from ryzc.errors import InternalError
from ryzc.formats import AffineFormat, TernaryFormat
from ryzc.graph.ops.paged_codes import suffix
from ryzc.kv_formats import KV_FORMATS
from ryzc.lower.planner import Handle, Handler, Planner, attribute, kv_spec, logits_stride
from ryzc.lower.weights import GATED, Matrix, Produce, by_format, matrices, pack_gated, pack_rows, packed_bytes
from ryzc.passes.kv_layout import of_pages
from ryzc.templates.kernels.activations import code_bytes, record_bytes
from ryzc.templates.kernels.attention import Attention
from ryzc.templates.kernels.attention_rows import MOST
from ryzc.templates.kernels.bit_linear import BitLinear
from ryzc.templates.kernels.embedding import Embedding
from ryzc.templates.kernels.gate import Gate
from ryzc.templates.kernels.kernel import Kernel
from ryzc.templates.kernels.linear import Linear
from ryzc.templates.kernels.linear_f32 import LinearF32
from ryzc.templates.kernels.linear_quantize import LinearQuantize
from ryzc.templates.kernels.norm import Norm
from ryzc.templates.kernels.norm_add import NormAdd
from ryzc.templates.kernels.norm_quantize import NormQuantize
from ryzc.templates.kernels.norm_quantize_tokens import NormQuantizeTokens
from ryzc.templates.kernels.quantize import Quantize
from ryzc.templates.kernels.quantize_tokens import QuantizeTokens
from ryzc.templates.kernels.rope_angles import RopeAngles
from ryzc.templates.kernels.rope_append import RopeAppend
from ryzc.templates.kernels.select_rows import SelectRows
from ryzc.templates.kernels.token_activations import RECORD_BYTES as TOKEN_RECORD_BYTES
from ryzc.templates.kernels.vocab_adjust import VocabAdjust
from ryzc.templates.kernels.vocab_draw import VocabDraw
from ryzc.templates.kernels.vocab_max import CHUNK, VocabMax
from ryzc.templates.kernels.vocab_race import VocabRace
from ryzc.templates.kernels.vocab_sum import VocabSum, slices
from ryzc.templates.kernels.vocab_top import VocabTop

F32_BYTES = 4


def _columns(value: ir.Value | None) -> int:
    if value is None or value.shape is None or not isinstance(value.shape[-1], int):
        raise InternalError(f"value {value.name if value else None} has no known width")
    return int(value.shape[-1])


def _nothing(planner: Planner, node: ir.Node) -> None:
    """Weights are read through these nodes; they compute nothing in a step."""


def _embedding(planner: Planner, node: ir.Node) -> None:
    (table,) = matrices(_input(node, 1))
    planner.phase(token_local=True)
    out = planner.buffer("x", F32_BYTES * table.columns)
    kernel = Embedding(table.format, table.rows, table.columns, float(attribute(node, "scale")))
    packed = _packed([table], planner)
    operands = [planner.weight(packed, partial(pack_rows, [table], packed.layout)), planner.operand(out)]
    planner.call(kernel, "embedding", f"embedding_{table.format}", operands, node)
    planner.define(node.outputs[0], out)


def _rope_angles(planner: Planner, node: ir.Node) -> None:
    frequencies = _input(node, 1)
    half = _columns(frequencies)
    planner.phase(token_local=True)
    cos, sin = (planner.buffer(n, F32_BYTES * half) for n in ("cos", "sin"))
    operands = [planner.plain(frequencies), planner.operand(cos), planner.operand(sin)]
    planner.call(RopeAngles(2 * half), "rope_angles", f"rope_angles_{2 * half}", operands, node)
    planner.define(node.outputs[0], cos)
    planner.define(node.outputs[1], sin)


def _gather_rows(planner: Planner, node: ir.Node) -> None:
    x = _input(node, 0)
    columns = _columns(x)
    planner.phase()
    out = planner.buffer("rows", F32_BYTES * columns, rows=planner.max_rows)
    planner.call(
        SelectRows(columns), "select_rows", f"select_rows_{columns}", [planner.use(x), planner.operand(out)], node
    )
    planner.define(node.outputs[0], out)
    planner.row_values.add(node.outputs[0])


def _norm(planner: Planner, node: ir.Node) -> None:
    x, weight = _input(node, 0), _input(node, 1)
    columns, (rows, count) = _columns(x), planner.rows_of(x)
    planner.phase(token_local=count == "token_count")
    out = planner.buffer("norm", F32_BYTES * columns, rows=rows)
    kernel = Norm(columns, float(attribute(node, "epsilon")), count)
    operands = [planner.use(x), planner.plain(weight), planner.operand(out)]
    planner.call(kernel, "norm", f"norm_{columns}", operands, node)
    _propagate(planner, x, node.outputs[0])
    planner.define(node.outputs[0], out)


def _norm_quantize(planner: Planner, node: ir.Node) -> None:
    x, weight = _input(node, 0), _input(node, 1)
    columns, (_, count) = _columns(x), planner.rows_of(x)
    planner.phase(token_local=count == "token_count")
    kernel = NormQuantize(columns, float(attribute(node, "epsilon")), count, _unit(node.outputs[0]))
    sizes = code_bytes(columns), record_bytes(columns)
    operands = [planner.use(x), planner.plain(weight), *_quantized(planner, node, x, *sizes)]
    planner.call(kernel, "norm_quantize", f"norm_quantize_{columns}", operands, node)


def _norm_quantize_tokens(planner: Planner, node: ir.Node) -> None:
    x, weight = _input(node, 0), _input(node, 1)
    columns, (_, count) = _columns(x), planner.rows_of(x)
    planner.phase(token_local=count == "token_count")
    kernel = NormQuantizeTokens(columns, float(attribute(node, "epsilon")), count)
    operands = [planner.use(x), planner.plain(weight), *_quantized(planner, node, x, columns, TOKEN_RECORD_BYTES)]
    planner.call(kernel, "norm_quantize_tokens", f"norm_quantize_tokens_{columns}", operands, node)


def _quantize(planner: Planner, node: ir.Node) -> None:
    x = _input(node, 0)
    columns, (_, count) = _columns(x), planner.rows_of(x)
    planner.phase(token_local=count == "token_count")
    operands = [planner.use(x), *_quantized(planner, node, x, code_bytes(columns), record_bytes(columns))]
    kernel = Quantize(columns, count, _unit(node.outputs[0]))
    planner.call(kernel, "quantize", f"quantize_{columns}", operands, node)


def _quantize_tokens(planner: Planner, node: ir.Node) -> None:
    x = _input(node, 0)
    columns, (_, count) = _columns(x), planner.rows_of(x)
    planner.phase(token_local=count == "token_count")
    operands = [planner.use(x), *_quantized(planner, node, x, columns, TOKEN_RECORD_BYTES)]
    planner.call(QuantizeTokens(columns, count), "quantize_tokens", f"quantize_tokens_{columns}", operands, node)


def _unit(codes: ir.Value) -> int:
    """The unit of the records beside some codes: what divides the zero points of all weights that meet them."""
    weights = [value for use in codes.uses() for value in use.node.inputs[2:] if value is not None]
    found = {formats.get(m.format) for value in weights if _is_weight(value) for m in matrices(value)}
    return math.gcd(*(fmt.zero for fmt in found if isinstance(fmt, AffineFormat))) or 1


def _is_weight(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and (node.op_type == "Concat" or node.op_type.startswith("Dequantize_"))


def _quantized(planner: Planner, node: ir.Node, x: ir.Value, codes_of: int, records_of: int) -> list[Operand]:
    """Buffers for so many bytes of a token's codes and records; both outputs of the node are kept in the pair."""
    rows, _ = planner.rows_of(x)
    codes = planner.buffer("codes", codes_of, rows=rows)
    records = planner.buffer("records", records_of, rows=rows)
    for output in node.outputs:
        planner.define(output, codes, records)
        _propagate(planner, x, output)
    return [planner.operand(codes), planner.operand(records)]


def _norm_add(planner: Planner, node: ir.Node) -> None:
    x, weight, residual = _input(node, 0), _input(node, 1), _input(node, 2)
    columns = _columns(x)
    planner.phase(token_local=True)
    kernel = NormAdd(columns, float(attribute(node, "epsilon")))
    operands = [planner.use(x), planner.plain(weight), _in_place(planner, node, residual)]
    planner.call(kernel, "norm_add", f"norm_add_{columns}", operands, node)


def _in_place(planner: Planner, node: ir.Node, residual: ir.Value) -> Operand:
    """The residual's buffer, which the node's output takes over."""
    later = [use.node for use in residual.uses() if use.node is not node and not _before(use.node, node)]
    if later:
        raise InternalError(f"{node.name}: the residual is still read by {later[0].name}")
    operand = planner.use(residual)
    planner.define(node.outputs[0], *planner.handles[residual])
    return operand


def _before(first: ir.Node, second: ir.Node) -> bool:
    """Whether a node comes before another in the graph's order."""
    graph = first.graph
    if graph is None:
        raise InternalError(f"{first.name} belongs to no graph")
    for node in graph:
        if node is first:
            return True
        if node is second:
            return False
    raise InternalError(f"{first.name} is not in its graph")


def _linear(planner: Planner, node: ir.Node) -> None:
    _store(planner, node, _quantized_input(planner, node), matrices(_input(node, 2)))


def _linear_residual(planner: Planner, node: ir.Node) -> None:
    _add(planner, node, _quantized_input(planner, node), matrices(_input(node, 2)), _input(node, 3))


def _linear_gated(planner: Planner, node: ir.Node) -> None:
    (gate,), (up,) = matrices(_input(node, 2)), matrices(_input(node, 3))
    _gate(planner, node, _quantized_input(planner, node), gate, up)


def _linear_gated_quantize(planner: Planner, node: ir.Node) -> None:
    x = _quantized_input(planner, node)
    (gate,), (up,) = matrices(_input(node, 2)), matrices(_input(node, 3))
    activation, unit = str(attribute(node, "activation")), _unit(node.outputs[0])
    packed, produce = _packed_gated(planner, gate, up)
    shape = (packed.rows, packed.columns, activation, x.count)
    kernel = LinearQuantize(packed.format, *shape, _unit(x.value), unit)
    symbol = f"linear_quantize_{packed.format}_{packed.rows}x{packed.columns}_{activation}"
    results = _quantized(planner, node, x.value, code_bytes(gate.rows), record_bytes(gate.rows))
    operands = [planner.weight(packed, produce), *x.operands, *results]
    planner.call(kernel, "linear_quantize", symbol, operands, node)
    planner.macs_per_token += _macs([gate, up])


def _bit_linear(planner: Planner, node: ir.Node) -> None:
    _store(planner, node, _ternary_input(planner, node), matrices(_input(node, 2)))


def _bit_linear_residual(planner: Planner, node: ir.Node) -> None:
    _add(planner, node, _ternary_input(planner, node), matrices(_input(node, 2)), _input(node, 3))


def _bit_linear_gated(planner: Planner, node: ir.Node) -> None:
    (gate,), (up,) = matrices(_input(node, 2)), matrices(_input(node, 3))
    _gate(planner, node, _ternary_input(planner, node), gate, up)


def _linear_f32(planner: Planner, node: ir.Node) -> None:
    _store(planner, node, _float_input(planner, node), matrices(_input(node, 1)))


def _linear_f32_residual(planner: Planner, node: ir.Node) -> None:
    _add(planner, node, _float_input(planner, node), matrices(_input(node, 1)), _input(node, 2))


def _linear_f32_gated(planner: Planner, node: ir.Node) -> None:
    (gate,), (up,) = matrices(_input(node, 1)), matrices(_input(node, 2))
    _gate(planner, node, _float_input(planner, node), gate, up)


@dataclass(frozen=True)
class _Input:
    """What a linear layer reads, and the kernel family that reads it.

    Attributes:
        value: the activations in the graph.
        operands: their buffers.
        rows, count: how many there can be, and the context field that counts them.
        family: of kernels, for these activations.
    """

    value: ir.Value
    operands: list[Operand]
    rows: int
    count: str
    family: str

    def kernel(self, weight: PackedWeight, epilogue: str, stride: int) -> Kernel:
        """The kernel that multiplies a weight."""
        shape = (weight.rows, weight.columns, epilogue, stride, self.count)
        fmt = formats.get(weight.format)
        if self.family == "bit_linear" and isinstance(fmt, TernaryFormat):
            return BitLinear(weight.layout.removesuffix(GATED), *shape)
        if self.family == "linear" and isinstance(fmt, AffineFormat):
            return Linear(weight.format, *shape, _unit(self.value))
        if self.family == "linear_f32" and not isinstance(fmt, TernaryFormat):
            return LinearF32(weight.format, *shape)
        raise InternalError(f"{weight.name}: no {self.family} kernel takes {weight.format} weights")


def _quantized_input(planner: Planner, node: ir.Node, family: str = "linear") -> _Input:
    codes = _input(node, 0)
    planner.phase()
    return _Input(codes, [planner.use(codes, i) for i in range(2)], *planner.rows_of(codes), family)


def _ternary_input(planner: Planner, node: ir.Node) -> _Input:
    return _quantized_input(planner, node, "bit_linear")


def _float_input(planner: Planner, node: ir.Node) -> _Input:
    x = _input(node, 0)
    planner.phase()
    return _Input(x, [planner.use(x)], *planner.rows_of(x), "linear_f32")


def _store(planner: Planner, node: ir.Node, x: _Input, weights: Sequence[Matrix]) -> None:
    """``out = x W``, several weights side by side; the graph's output are the logits."""
    y = node.outputs[0]
    if y.is_graph_output():
        stride = logits_stride(planner.facts.vocab_size)
        out = planner.buffer("logits", F32_BYTES * stride, rows=x.rows)
        out.name, out.pinned = "logits", True  # the runtime finds it by this name, and fills its tail once
        planner.head_macs += _macs(weights)
    else:
        stride = sum(m.rows for m in weights)
        out = planner.buffer("y", F32_BYTES * stride, rows=x.rows)
        planner.macs_per_token += _macs(weights)
    _side_by_side(planner, node, x, weights, "store", stride, planner.operand(out))
    planner.define(y, out)
    _propagate(planner, x.value, y)


def _add(planner: Planner, node: ir.Node, x: _Input, weights: Sequence[Matrix], residual: ir.Value) -> None:
    """``residual += x W``."""
    stride = sum(m.rows for m in weights)
    _side_by_side(planner, node, x, weights, "residual", stride, _in_place(planner, node, residual))
    planner.macs_per_token += _macs(weights)


def _side_by_side(
    planner: Planner, node: ir.Node, x: _Input, weights: Sequence[Matrix], epilogue: str, stride: int, out: Operand
) -> None:
    """One call for each run of weights that share a format."""
    first = 0
    for group in by_format(weights):
        place = replace(out, offset=F32_BYTES * first)
        packed = _packed(group, planner)
        produce = partial(pack_rows, group, packed.layout)
        first += _multiply(planner, node, x, packed, produce, epilogue, stride, place)


def _gate(planner: Planner, node: ir.Node, x: _Input, gate: Matrix, up: Matrix) -> None:
    """``out = activation(x gate) * (x up)``, in one kernel where both weights have one format."""
    activation = str(attribute(node, "activation"))
    out = planner.buffer("gated", F32_BYTES * gate.rows, rows=x.rows)
    if gate.format == up.format:
        packed, produce = _packed_gated(planner, gate, up)
        _multiply(planner, node, x, packed, produce, activation, gate.rows, planner.operand(out))
    else:
        halves = [planner.buffer(name, F32_BYTES * gate.rows, rows=x.rows) for name in ("gate", "up")]
        for matrix, half in zip((gate, up), halves, strict=True):
            _side_by_side(planner, node, x, [matrix], "store", gate.rows, planner.operand(half))
        planner.phase()
        operands = [planner.operand(handle) for handle in (*halves, out)]
        kernel = Gate(gate.rows, activation, x.count)
        planner.call(kernel, "gate", f"gate_{gate.rows}_{activation}", operands, node)
    planner.define(node.outputs[0], out)
    planner.macs_per_token += _macs([gate, up])


def _multiply(
    planner: Planner,
    node: ir.Node,
    x: _Input,
    packed: PackedWeight,
    produce: Produce,
    epilogue: str,
    stride: int,
    out: Operand,
) -> int:
    """Call a linear kernel; returns the rows of its weight."""
    kernel = x.kernel(packed, epilogue, stride)
    symbol = f"{x.family}_{packed.format}_{packed.rows}x{packed.columns}_{epilogue}"
    planner.call(kernel, x.family, symbol, [planner.weight(packed, produce), *x.operands, out], node)
    return packed.rows


def _packed(group: Sequence[Matrix], planner: Planner) -> PackedWeight:
    """Matrices of one format under one another."""
    rows, columns, name = sum(m.rows for m in group), group[0].columns, group[0].format
    layout = planner.ternary_layout(rows, columns) if isinstance(formats.get(name), TernaryFormat) else "tiles"
    return PackedWeight(
        name="+".join(m.name for m in group),
        sources=tuple(m.name for m in group),
        format=name,
        rows=rows,
        columns=columns,
        layout=layout,
        offset=0,
        bytes=packed_bytes(name, rows, columns, layout),
    )


def _packed_gated(planner: Planner, gate: Matrix, up: Matrix) -> tuple[PackedWeight, Produce]:
    """Two matrices of one format, tiles of which hold rows of both."""
    packed = _packed([gate, up], planner)
    packed = replace(packed, layout="gated" if packed.layout == "tiles" else packed.layout + GATED)
    return packed, partial(pack_gated, gate, up, packed.layout)


def _macs(weights: Sequence[Matrix]) -> int:
    return sum(m.rows * m.columns for m in weights)


def _rope_append(planner: Planner, node: ir.Node) -> None:
    qkv, cos, sin, k_pages = (_input(node, i) for i in range(4))
    heads, kv_heads, head_dim = (int(attribute(node, n)) for n in ("heads", "kv_heads", "head_dim"))
    norms = [v for v in node.inputs[-2:] if v is not None]
    page_tokens, dtype = _page(planner, node)
    spec = kv_spec(planner.facts, page_tokens, dtype)
    planner.phase()
    q = planner.buffer("q", F32_BYTES * heads * head_dim)
    kernel = RopeAppend(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        interleaved=bool(attribute(node, "interleaved")),
        page_tokens=page_tokens,
        page_bytes=spec.page_bytes,
        dtype=dtype,
        q_norm=bool(norms),
        epsilon=float(attribute(node, "epsilon")) if norms else 0.0,
    )
    cache = _cache(planner, k_pages)
    operands = [planner.use(qkv), planner.use(cos), planner.use(sin), planner.operand(q), cache]
    operands += [planner.plain(v) for v in norms]
    planner.call(kernel, "rope_append", "rope_append", operands, node)
    planner.define(node.outputs[0], q)


def _paged_attention(planner: Planner, node: ir.Node) -> None:
    q, k_pages = _input(node, 0), _input(node, 1)
    heads, kv_heads = (int(attribute(node, n)) for n in ("heads", "kv_heads"))
    append = _producer(k_pages)
    source = _input(append, 3)
    page_tokens, dtype = _page(planner, append)
    spec = kv_spec(planner.facts, page_tokens, dtype)
    window = int(attribute(node, "window"))
    planner.phase()
    out = planner.buffer("attention", F32_BYTES * heads * spec.head_dim)
    kernel = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=spec.head_dim,
        page_tokens=page_tokens,
        page_bytes=spec.page_bytes,
        dtype=dtype,
        scale=float(attribute(node, "scale")),
        window=window,
        group=max(g for g in range(1, MOST + 1) if heads // kv_heads % g == 0),
    )
    symbol = f"attention_window{window}" if window else "attention"
    planner.call(kernel, "attention", symbol, [planner.use(q), _cache(planner, source), planner.operand(out)], node)
    planner.define(node.outputs[0], out)


def _page(planner: Planner, append: ir.Node) -> tuple[int, str]:
    """Tokens of a page and the format of the pages that a node stores to."""
    parts = {
        name.partition(".")[0]: value for value in append.inputs if value is not None for name in [str(value.name)]
    }
    keys, values = parts["k_pages"], parts["v_pages"]
    if keys.shape is None or not isinstance(keys.shape[-1], int):
        raise InternalError(f"{keys.name}: pages have no known size")
    planner.page_tokens, planner.kv_dtype = int(keys.shape[-1]), of_pages(keys.dtype, values.dtype)
    return planner.page_tokens, planner.kv_dtype


def _cache(planner: Planner, k_pages: ir.Value) -> Operand:
    name = str(k_pages.name)
    layer = int(name.removeprefix("k_pages."))
    spec = kv_spec(planner.facts, planner.page_tokens, planner.kv_dtype)
    return Operand("kv", layer * spec.layer_bytes, f"layer {layer}")


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise InternalError(f"{value.name} has no producer")
    return node


def reduce_logits(planner: Planner, logits: ir.Value) -> None:
    """Phases after the head: adjustments, the largest logit, the partition sum, the top candidates, and a draw."""
    facts, node = planner.facts, _producer(logits)
    stride, most = logits_stride(facts.vocab_size), planner.max_candidates

    def buffer(name: str, columns: int) -> Handle:
        return planner.buffer(name, F32_BYTES * columns, rows=planner.max_rows)

    def call(kernel: Kernel, name: str, *handles: Handle) -> None:
        planner.call(kernel, name, name, [planner.operand(handle) for handle in handles], node)

    planner.phase()
    planner.use(logits)
    chunk_max = buffer("chunk_max", stride // CHUNK)
    call(VocabAdjust(facts.vocab_size, stride), "vocab_adjust")
    call(VocabMax(stride), "vocab_max", chunk_max)
    planner.phase()
    partial, scores, winners = (buffer(name, slices(stride)) for name in ("partial_sums", "scores", "winners"))
    call(VocabSum(stride), "vocab_sum", chunk_max, partial)
    call(VocabRace(stride, most), "vocab_race", chunk_max, scores, winners)
    planner.phase()
    call(VocabTop(stride, most), "vocab_top", chunk_max, partial)
    call(VocabDraw(stride, most), "vocab_draw", chunk_max, scores, winners)


def _propagate(planner: Planner, source: ir.Value, result: ir.Value) -> None:
    """What comes from selected rows has as many rows."""
    if source in planner.row_values:
        planner.row_values.add(result)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise InternalError(f"{node.op_type} {node.name} lacks input {index}")
    return value


_PAGED: dict[str, Handler] = {"RopeAppend": _rope_append, "PagedAttention": _paged_attention}
_OWN: dict[str, Handler] = {
    "Embedding": _embedding,
    "RopeAngles": _rope_angles,
    "NormQuantize": _norm_quantize,
    "Quantize": _quantize,
    "NormAdd": _norm_add,
    "Linear": _linear,
    "LinearResidual": _linear_residual,
    "LinearGated": _linear_gated,
    "LinearGatedQuantize": _linear_gated_quantize,
    "QuantizeTokens": _quantize_tokens,
    "NormQuantizeTokens": _norm_quantize_tokens,
    "BitLinear": _bit_linear,
    "BitLinearResidual": _bit_linear_residual,
    "BitLinearGated": _bit_linear_gated,
    "LinearF32": _linear_f32,
    "LinearF32Residual": _linear_f32_residual,
    "LinearF32Gated": _linear_f32_gated,
    **{f"{kind}{suffix(name)}": handler for kind, handler in _PAGED.items() for name in KV_FORMATS},
}
_STANDARD: dict[str, Handler] = {
    "Concat": _nothing,
    "Cast": _nothing,
    "Gather": _gather_rows,
    "RMSNormalization": _norm,
}
HANDLERS: dict[tuple[str, str], Handler] = {
    **{("ai.ryzc", name): handler for name, handler in _OWN.items()},
    **{("ai.ryzc", f"Dequantize_{name}"): _nothing for name in formats.names()},
    **{("", name): handler for name, handler in _STANDARD.items()},
}
