"""Weights are rounded to a format of fewer bits than the source has: only where a build is asked to.

Linear layers but the head take one format, the head another or none; the embedding stays, and so do layers of BitNet
and what is ternary already. Which of the layers is the head is seen by its output, the graph's logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ryzc import formats
from ryzc.errors import UsageError
from ryzc.formats.trit_format import TritFormat
from ryzc.graph.nodes import (
    DEQUANTIZE,
    FLOAT,
    add_constant,
    cut,
    dims,
    make,
    name_of,
    nodes,
    operand,
    producer,
)
from ryzc.graph.oracle import walk
from ryzc.passes.choose_formats import stored_format
from ryzc.passes.pass_ import Pass, Report

U8: TypeAlias = npt.NDArray[np.uint8]
F32: TypeAlias = npt.NDArray[np.float32]

LAYERS = {"ternary": "trit1", "ternary2": "trit2"}
"""What a build can ask for, and the format that it means."""
HEADS = ("q8_0", "q4_1", "q4_0")
"""What the head can be rounded to."""
_TERNARY = ("tq1_0", "tq2_0", "trit1")
_CHUNK = 1 << 22
"""Elements that are decoded and rounded at a time."""


@dataclass(frozen=True)
class Rounded:
    """A matrix in its new format.

    Attributes:
        stored: ``uint8 [N, row_bytes]``.
        square: the sum of the weights' squares, as they were.
        error: the Frobenius norm of what was lost, relative to that of the weights.
    """

    stored: U8
    square: float
    error: float


@dataclass(frozen=True)
class Asked:
    """What a build asks for, and what came of it: a model that is planned again finds its weights here.

    Attributes:
        layers: a weight format for the linear layers, ``None`` for none.
        head: one for the head.
        importance: by name of a stored tensor, ``float32 [K]``: the mean squares of what its columns are multiplied by.
        done: weights that have been rounded, by name of the stored tensor and format.
    """

    layers: str | None
    head: str | None = None
    importance: Mapping[str, F32] = field(default_factory=dict)
    done: dict[tuple[str, str], Rounded] = field(default_factory=dict, compare=False)

    def rounded(self, name: str, format_: str, source: str, tensor: ir.TensorProtocol) -> Rounded:
        """A stored tensor of the format ``source``, in another format."""
        key = name, format_
        if key not in self.done:
            self.done[key] = _round(tensor, source, format_, self.importance.get(name))
        return self.done[key]


def check(layers: str | None, head: str | None) -> None:
    """Raise :class:`UsageError` unless both are what a build can ask for."""
    for name, option, known in ((layers, "quant", tuple(LAYERS)), (head, "head", HEADS)):
        if name is not None and name not in known:
            raise UsageError(f"{option} cannot be {name!r}", hint=f"choose {', '.join(known)}")


class QuantizeWeights(Pass):
    """See the module.

    Figures: what was rounded and what was kept, the relative error of all that was rounded, and by the tensors' names
    their own relative errors, or why they were kept.
    """

    name = "quantize_weights"
    ensures = ("weights",)

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        each: dict[str, float | str] = {}
        total = lost = 0.0
        for turned, weight, source, is_head in layers(graph):
            wanted = self.asked.head if is_head else self.asked.layers
            name, was, tensor = name_of(source), stored_format(weight), source.const_value
            if wanted is None or wanted == was or tensor is None:
                continue
            n, k = (int(size) for size in dims(weight))
            if was in _TERNARY:
                each[name] = "kept: ternary already"
                continue
            if k % formats.get(wanted).block:
                each[name] = f"kept: rows of {k} are no blocks of {formats.get(wanted).block}"
                continue
            rounded = self.asked.rounded(name, wanted, was, tensor)
            _put(graph, turned, source, wanted, rounded.stored, (n, k))
            each[name] = round(rounded.error, 4)
            total += rounded.square
            lost += rounded.square * rounded.error**2
        kept = sum(isinstance(value, str) for value in each.values())
        figures = {
            "rounded": len(each) - kept,
            "kept": kept,
            "error": round((lost / total) ** 0.5 if total else 0.0, 4),
        }
        return Report(self.name, len(each) > kept, {**figures, **each})


def layers(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value, ir.Value, bool]]:
    """Linear layers that are not BitNet's: where the weight is transposed, that, its source, and if it is the head.

    The source is the initializer that the weight is, or is decoded from.
    """
    for product in nodes(graph, "MatMul"):
        turned = producer(product.inputs[1], "Transpose")
        if turned is None or producer(product.inputs[0], "RoundTokens") is not None:
            continue
        weight = operand(turned, 0)
        node = producer(weight)
        source = weight if node is None else operand(node, 0)
        if source.is_initializer() and len(dims(weight)) == 2:
            yield turned, weight, source, product.outputs[0].is_graph_output()


def importance(model: ir.Model, tokens: Sequence[int]) -> dict[str, F32]:
    """What the columns of weights count: the mean squares of what they are multiplied by when a text is read.

    The error of a layer's output is the sum of the weights' errors times these where inputs are uncorrelated. A
    thousandth of their mean is added, so that no column counts for nothing.

    Args:
        model: a semantic graph; it is not changed, and evaluated by :func:`ryzc.graph.oracle.walk`.
        tokens: the text, a sequence from position 0.

    Returns:
        By name of the stored tensor, ``float32 [K]``, for all linear layers but the head and those of BitNet.
    """
    names = {turned.outputs[0]: name_of(source) for turned, _, source, is_head in layers(model.graph) if not is_head}
    ids = np.asarray(tokens, np.int64)
    found: dict[str, F32] = {}
    if not names:
        return found
    for node, read in walk(model, {"tokens": ids, "positions": np.arange(len(ids))}):
        name = names.get(node.inputs[1]) if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if name is not None:
            squares = np.square(read[name_of(operand(node, 0))], dtype=np.float64).mean(axis=0)
            found[name] = (squares + (squares.mean() or 1.0) / 1000).astype(np.float32)
            if len(found) == len(names):
                break
    return found


def _round(tensor: ir.TensorProtocol, source: str, format_: str, importance: F32 | None) -> Rounded:
    """Rows at a time, so that no whole matrix is there as float32."""
    array = np.ascontiguousarray(tensor.numpy())
    rows = array.view(np.uint8).reshape(len(array), -1)
    old, new = formats.get(source), formats.get(format_)
    parts, size, error = [], 0.0, 0.0
    step = max(1, _CHUNK // old.columns(rows.shape[1]))
    for first in range(0, len(rows), step):
        weights = old.decode(rows[first : first + step])
        part = new.quantize(weights, importance) if isinstance(new, TritFormat) else new.quantize(weights)
        size += float(np.square(weights).sum(dtype=np.float64))
        error += float(np.square(weights - new.decode(part)).sum(dtype=np.float64))
        parts.append(part)
    return Rounded(np.concatenate(parts), size, (error / size) ** 0.5 if size else 0.0)


def _put(graph: ir.Graph, turned: ir.Node, source: ir.Value, format_: str, stored: U8, shape: tuple[int, int]) -> None:
    """Let ``turned`` read a new initializer, which takes the name of ``source`` if nothing else reads that."""
    old, name = operand(turned, 0), name_of(source)
    if len(old.uses()) > 1 or (old is not source and len(source.uses()) > 1):  # the embedding, say
        name = f"{name}.{format_}"
    else:
        del graph.initializers[name]
    decoder = make(DEQUANTIZE + format_, [add_constant(graph, name, stored)], [(f"{name}.f32", FLOAT, list(shape))])
    graph.insert_before(turned, decoder)
    turned.replace_input_with(0, decoder.outputs[0])
    node = producer(old)
    if node is not None:
        cut([node])
