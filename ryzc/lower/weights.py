"""From a weight in the graph to a packed matrix: which tensors, which layout, which bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ryzc import formats
from ryzc.errors import InternalError
from ryzc.formats import TernaryFormat, lanes, trits

Produce: TypeAlias = Callable[[], npt.NDArray[np.uint8]]
_FLOATS = {ir.DataType.FLOAT: "f32", ir.DataType.FLOAT16: "f16", ir.DataType.BFLOAT16: "bf16"}
HALF_TILE = lanes.TILE // 2
GATED = "_gated"
"""What is added to the layout of a matrix whose tiles hold rows of two layers."""


@dataclass(frozen=True)
class Matrix:
    """A stored matrix of the source.

    Attributes:
        name: the initializer's name.
        format: a weight format's name.
        rows, columns: logical shape.
        stored: gives ``uint8 [rows, row_bytes]``.
    """

    name: str
    format: str
    rows: int
    columns: int
    stored: Produce


def matrices(value: ir.Value) -> list[Matrix]:
    """The stored matrices behind a weight: an initializer, dequantized or cast, or several concatenated.

    Raises:
        InternalError: where something else computes the weight.
    """
    node = value.producer()
    if node is None:
        return [_matrix(value, None)]
    if node.op_type == "Concat":
        return [m for part in node.inputs for m in matrices(_present(part))]
    source = _present(node.inputs[0])
    if node.op_type == "Cast":
        return [_matrix(source, None)]
    if node.domain == "ai.ryzc" and node.op_type.startswith("Dequantize_"):
        return [_matrix(source, node.op_type.removeprefix("Dequantize_"))]
    raise InternalError(f"weight {value.name}: computed by {node.op_type}, which the planner cannot pack")


def _present(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise InternalError("a weight lacks an input")
    return value


def _matrix(value: ir.Value, format_name: str | None) -> Matrix:
    tensor = value.const_value
    if tensor is None:
        raise InternalError(f"weight {value.name} is no constant")
    shape = list(tensor.shape.numpy())
    if format_name is None:
        format_name = _FLOATS.get(tensor.dtype)
        if format_name is None:
            raise InternalError(f"weight {value.name} has type {tensor.dtype}")
        columns = shape[-1]
    else:
        fmt = formats.get(format_name)
        columns = fmt.columns(shape[-1])

    def stored() -> npt.NDArray[np.uint8]:
        array = np.ascontiguousarray(tensor.numpy())
        return array.view(np.uint8).reshape(shape[0], -1)

    return Matrix(str(value.name), format_name, shape[0], columns, stored)


def by_format(found: Sequence[Matrix]) -> list[list[Matrix]]:
    """Neighbours of one format together: each group becomes one packed matrix."""
    groups: list[list[Matrix]] = []
    for matrix in found:
        if groups and groups[-1][0].format == matrix.format:
            groups[-1].append(matrix)
        else:
            groups.append([matrix])
    return groups


def pack_rows(group: Sequence[Matrix], layout: str) -> npt.NDArray[np.uint8]:
    """Packed tiles of matrices under one another; ``layout`` as in :class:`ryzc.bundle.plan.PackedWeight`."""
    rows = [m.stored() for m in group]
    return _pack(group[0].format, rows[0] if len(rows) == 1 else np.concatenate(rows), layout)


def pack_gated(gate: Matrix, up: Matrix, layout: str) -> npt.NDArray[np.uint8]:
    """Packed tiles of 16 rows of ``gate`` and the 16 matching rows of ``up``."""
    halves = []
    for matrix in (gate, up):
        rows = matrix.stored()
        rows = np.concatenate([rows, np.zeros((-len(rows) % HALF_TILE, rows.shape[1]), np.uint8)])
        halves.append(rows.reshape(-1, 1, HALF_TILE, rows.shape[1]))
    mixed = np.concatenate(halves, axis=1)
    return _pack(gate.format, mixed.reshape(-1, mixed.shape[-1]), layout.removesuffix(GATED))


def _pack(format_name: str, rows: npt.NDArray[np.uint8], layout: str) -> npt.NDArray[np.uint8]:
    fmt = formats.get(format_name)
    packed = trits.pack(fmt, rows, layout) if isinstance(fmt, TernaryFormat) else lanes.pack(fmt, rows)
    return packed.reshape(-1)


def packed_bytes(format_name: str, rows: int, columns: int, layout: str) -> int:
    """Bytes of a packed matrix."""
    fmt = formats.get(format_name)
    if isinstance(fmt, TernaryFormat):
        ternary = trits.LAYOUTS[layout]
        return ternary.tiles(rows) * ternary.tile_bytes(columns)
    return -(-rows // lanes.TILE) * lanes.tile_bytes(fmt, columns)
