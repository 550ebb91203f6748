"""Weights of BitNet's layers become rows of the format ``ternary``, whatever they came as.

A layer is BitNet's if it reads what ``RoundTokens`` gives. Its weights are ternary already (TQ1_0 and TQ2_0 of one
scale a row, floats of one magnitude) and keep their meaning bit for bit, or master weights under ``RoundWeights``,
which are rounded here as that says. A number that multiplies a layer's output joins its scales. Other weights, e.g.
those quantized once more, are left as they are.

Weights are converted when they are asked for, each time anew: a build holds one of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ryzc import formats
from ryzc.formats import TernaryFormat, exact_ternary
from ryzc.graph.nodes import (
    DEQUANTIZE,
    FLOAT,
    TERNARY,
    dims,
    factor_after,
    make,
    name_of,
    nodes,
    operand,
    producer,
    replace,
    take_over,
)
from ryzc.passes.choose_formats import stored_format
from ryzc.passes.pass_ import Pass, Report

U8: TypeAlias = npt.NDArray[np.uint8]
F32: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = Callable[[], U8]


class Ternarize(Pass):
    name = "ternarize"
    ensures = ("ternary",)

    def run(self, model: ir.Model) -> Report:
        graph = model.graph
        figures = {"exact": 0, "rounded": 0, "factors": 0}
        for product, weight in _layers(graph):
            factor = factor_after(product.outputs[0]) if len(weight.uses()) == 1 else None
            ternary = producer(weight, DEQUANTIZE + TERNARY) is not None
            if ternary and factor is None:
                continue
            found = _source(weight)
            if found is None:
                continue
            source, rows = found
            if factor is not None:
                scaled, number = factor
                rows = partial(_scaled, rows, np.float32(number))
                name = name_of(scaled)
                take_over(scaled, product.outputs[0])
                product.name = product.outputs[0].name = name
                figures["factors"] += 1
            if not ternary:
                figures["exact" if producer(weight, "RoundWeights") is None else "rounded"] += 1
            _put(graph, weight, source, rows)
        return Report(self.name, any(figures.values()), figures)


def _layers(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value]]:
    """The products of what RoundTokens gives with a weight, and that weight as it is before it is transposed."""
    for rounding in nodes(graph, "RoundTokens"):
        for use in tuple(rounding.outputs[0].consumers()):
            if use.op_type in ("MatMul", "LinearF32"):
                turned = producer(use.inputs[1], "Transpose")
                yield use, operand(use, 1) if turned is None else operand(turned, 0)


def _source(weight: ir.Value) -> tuple[ir.Value, Rows] | None:
    """The initializer behind a weight, and what gives it as rows of ``ternary``; ``None`` where nothing can."""
    if int(dims(weight)[1]) % formats.get(TERNARY).block:
        return None
    rounding = producer(weight, "RoundWeights")
    decoded = weight if rounding is None else operand(rounding, 0)
    node = producer(decoded)
    source = decoded if node is None else operand(node, 0)
    tensor = source.const_value
    if tensor is None:
        return None
    format_ = stored_format(decoded)
    if rounding is not None:
        return source, partial(_rounded, tensor, format_)
    if format_ == TERNARY:
        return source, partial(_stored, tensor)
    scales = exact_ternary.row_scales(format_, _stored(tensor))
    return None if scales is None else (source, partial(_exact, tensor, format_, scales))


def _put(graph: ir.Graph, weight: ir.Value, source: ir.Value, rows: Rows) -> None:
    """Decode ``weight`` from an initializer that ``rows`` gives and that takes the name of ``source``."""
    n, k = (int(size) for size in dims(weight))
    name = name_of(source)
    shape = (n, formats.get(TERNARY).row_bytes(k))
    tensor = ir.LazyTensor(lambda: ir.Tensor(rows()), ir.DataType.UINT8, ir.Shape(shape), name=name)
    stored = ir.val(name, ir.DataType.UINT8, list(shape), const_value=tensor)
    decoder = make(DEQUANTIZE + TERNARY, [stored], [(f"{name}.f32", FLOAT, [n, k])])
    if producer(weight) is None:
        graph.insert_before(next(iter(weight.consumers())), decoder)
        take_over(weight, decoder.outputs[0])
    else:
        replace(graph, weight, decoder)
    if source.uses():  # by something else: an embedding, say
        name = stored.name = tensor.name = f"{name}.ternary"
        decoder.name = decoder.outputs[0].name = f"{name}.f32"
    else:
        del graph.initializers[name]
    graph.register_initializer(stored)


def _stored(tensor: ir.TensorProtocol) -> U8:
    """The bytes of a matrix, ``uint8 [N, row_bytes]``."""
    array = np.ascontiguousarray(tensor.numpy())
    return array.view(np.uint8).reshape(len(array), -1)


def _exact(tensor: ir.TensorProtocol, format_: str, scales: F32) -> U8:
    return exact_ternary.convert(format_, _stored(tensor), scales)


def _rounded(tensor: ir.TensorProtocol, format_: str) -> U8:
    return formats.get(TERNARY).quantize(formats.get(format_).decode(_stored(tensor)))


def _scaled(rows: Rows, factor: np.float32) -> U8:
    ternary = formats.get(TERNARY)
    assert isinstance(ternary, TernaryFormat)
    trits, scales = ternary.parse(rows())
    return ternary.unparse(trits, scales * factor)
