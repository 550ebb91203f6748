"""Making and recognising nodes of an ``onnx_ir`` graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ryzc import formats
from ryzc.errors import InternalError
from ryzc.graph import ops

Dim: TypeAlias = int | str
AttributeValue: TypeAlias = int | float | str | Sequence[int]

FLOAT = ir.DataType.FLOAT
DEQUANTIZE = "Dequantize_"
TERNARY = "ternary"
_DTYPES = {
    "f32": ir.DataType.FLOAT,
    "f16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}


def new_model(name: str, metadata: Mapping[str, str]) -> ir.Model:
    """An empty model at the opset, IR version and domain that ryzc uses."""
    imports = {"": ops.OPSET, ops.DOMAIN: ops.VERSION}
    graph = ir.Graph([], [], nodes=[], opset_imports=imports, name=name)
    return ir.Model(graph, ir_version=ops.IR_VERSION, producer_name="ryzc", metadata_props=dict(metadata))


def add_input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
    """A new graph input, or the one there is of that name."""
    for value in graph.inputs:
        if value.name == name:
            return value
    value = ir.val(name, dtype, list(shape))
    graph.inputs.append(value)
    return value


def add_constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    """An initializer holding ``array`` (not copied), or the one there is of that name."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.Tensor(array, name=name)
    value = ir.val(name, tensor.dtype, list(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_weight(
    graph: ir.Graph, name: str, format_: str, shape: Sequence[int], stored: npt.NDArray[np.uint8]
) -> ir.Value:
    """A stored tensor as float32: an initializer with the file's bytes and what decodes them.

    The decoded value is called ``NAME.f32``, or ``NAME`` itself where the file holds float32. A vector
    that is not float32 is decoded here and now: nothing is saved by keeping it.

    Args:
        name: the source's name of the tensor; it becomes the initializer's.
        format_: name of a weight format.
        shape: logical shape, rows first.
        stored: ``uint8 [..., row_bytes]``; used without a copy.
    """
    if len(shape) == 1 and format_ != "f32":
        return add_constant(graph, name, formats.get(format_).decode(stored))
    if format_ in _DTYPES:
        # A byte view cannot always be reinterpreted whole (a row of a 1-d tensor is all of it), so
        # flatten first: the file's tensors are contiguous, which makes this a view too.
        array = stored.reshape(-1).view(_DTYPES[format_].numpy()).reshape(tuple(shape))
        value = add_constant(graph, name, array)
        if format_ == "f32":
            return value
        operator = "Cast"
    else:
        value = add_constant(graph, name, stored)
        operator = DEQUANTIZE + format_
    for use in value.consumers():
        if use.op_type == operator:
            return use.outputs[0]
    attributes = {"to": int(FLOAT)} if operator == "Cast" else {}
    node = make(operator, [value], [(f"{name}.f32", FLOAT, shape)], attributes)
    graph.append(node)
    return node.outputs[0]


def make(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    outputs: Sequence[tuple[str, ir.DataType, Sequence[Dim]]],
    attributes: Mapping[str, AttributeValue] | None = None,
) -> ir.Node:
    """A node that is in no graph yet; outputs are ``(name, dtype, shape)``. The node takes the first's name."""
    return ir.node(
        op_type,
        inputs,
        dict(attributes or {}),
        domain=ops.DOMAIN if op_type in ops.names() else "",
        outputs=[ir.val(name, dtype, list(shape)) for name, dtype, shape in outputs],
        name=outputs[0][0],
    )


def add(
    graph: ir.Graph,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    shape: Sequence[Dim],
    dtype: ir.DataType = FLOAT,
    **attributes: AttributeValue,
) -> ir.Value:
    """Append a node with one output and return that."""
    node = make(op_type, inputs, [(name, dtype, shape)], attributes)
    graph.append(node)
    return node.outputs[0]


def replace(graph: ir.Graph, old: ir.Value, new: ir.Node, *, output: int = 0) -> None:
    """Put ``new`` where the producer of ``old`` stands and let its output take over from ``old``."""
    producer = old.producer()
    if producer is None:
        raise InternalError(f"{old.name} is no node's output and cannot be replaced")
    graph.insert_before(producer, new)
    take_over(old, new.outputs[output])


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let all users of ``old`` read ``new``, which also takes its place among the graph's outputs.

    What computed ``old`` is cut if nothing else needs it. ``new`` usually has the name of ``old``, so
    that names mean the same throughout the pipeline.
    """
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    node = old.producer()
    if node is not None and not cut([node]) and old.name == new.name:
        old.name = f"{old.name}.replaced"


def cut(candidates: Iterable[ir.Node]) -> int:
    """Remove those of the nodes that nothing reads, and what only they read; gives how many."""
    removed = 0
    waiting = list(candidates)
    while waiting:
        node = waiting.pop()
        graph = node.graph
        if graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        waiting += [before for value in node.inputs if value is not None and (before := value.producer())]
        graph.remove(node, safe=True)
        removed += 1
    return removed


def drop_unused(graph: ir.Graph) -> tuple[int, int]:
    """Remove all nodes and initializers that no output needs; gives how many of each."""
    removed = cut(graph)
    unused = [name for name, value in graph.initializers.items() if not value.uses()]
    for name in unused:
        del graph.initializers[name]
    return removed, len(unused)


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes ``value``, if it is of one of the types (of any, if none is named)."""
    node = None if value is None else value.producer()
    return node if node is not None and (not op_types or node.op_type in op_types) else None


def nodes(graph: ir.Graph, *op_types: str) -> Iterator[ir.Node]:
    """The nodes of these types in order. The graph may be changed meanwhile: what is removed is not visited."""
    for node in list(graph):
        if node.op_type in op_types and node.graph is graph:
            yield node


def operand(node: ir.Node, index: int) -> ir.Value:
    """Input ``index`` of a node, which must be there."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise InternalError(f"{node.op_type} node {node.name} lacks input {index}")
    return value


def only_use(value: ir.Value) -> bool:
    """Whether one node reads ``value``, once, and no graph output is it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def factor_after(x: ir.Value) -> tuple[ir.Value, float] | None:
    """The product of ``x`` and a constant number, and that number, if that is all that ``x`` is used for."""
    if not only_use(x):
        return None
    use = next(iter(x.consumers()))
    if use.op_type != "Mul":
        return None
    other = operand(use, 1) if operand(use, 0) is x else operand(use, 0)
    if other.const_value is None or other.const_value.size != 1:
        return None
    return use.outputs[0], float(other.const_value.numpy().item())


def dims(value: ir.Value) -> tuple[Dim, ...]:
    """The value's shape, names standing for symbolic dimensions."""
    if value.shape is None:
        raise InternalError(f"value {value.name} has no shape")
    return tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)


def name_of(value: ir.Value) -> str:
    """The value's name."""
    if value.name is None:
        raise InternalError("a value of the graph has no name")
    return value.name


def integer(node: ir.Node, attribute: str) -> int:
    """An integer attribute."""
    return int(node.attributes[attribute].as_int())


def real(node: ir.Node, attribute: str) -> float:
    """A float attribute."""
    return float(node.attributes[attribute].as_float())


def is_affine(weight: ir.Value) -> bool:
    """Whether a weight comes from small integer codes with shared scales: decoded from them, or joined of only such."""
    kinds = formats_of(weight)
    return bool(kinds) and all(isinstance(formats.get(kind), formats.AffineFormat) for kind in kinds)


def is_ternary(weight: ir.Value) -> bool:
    """Whether a weight is decoded from the format ``ternary``, or joined of only such."""
    return set(formats_of(weight)) == {TERNARY}


def formats_of(weight: ir.Value) -> list[str]:
    """The formats that a weight and all its joined parts are decoded from; none where one of them is not decoded."""
    node = producer(weight)
    if node is not None and node.op_type == "Concat":
        parts = [formats_of(operand(node, i)) for i in range(len(node.inputs))]
        return [kind for part in parts for kind in part] if all(parts) else []
    decoded = node is not None and node.op_type.startswith(DEQUANTIZE)
    return [node.op_type.removeprefix(DEQUANTIZE)] if node is not None and decoded else []
