"""What the operators of domain ``ai.ryzc`` mean: ONNX functions over standard operators.

Each file of this package holds a family of functions as ONNX text in ``FUNCTIONS``; a body may use
functions of other files. The bodies are the definition that kernels and passes are tested against,
so they are written for clarity and evaluated by ONNX's own ReferenceEvaluator.

Every attribute of an ``ai.ryzc`` node must be given: the functions declare no defaults. Shapes in
the texts' comments use ``T`` tokens of a step, ``K`` columns and ``N`` rows of a weight, ``D`` head
size, ``Hq`` and ``Hk`` query and key heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import onnx
import onnx.parser
import onnx_ir as ir

from ryzc.errors import InternalError

DOMAIN = "ai.ryzc"
VERSION = 1
OPSET = 26
IR_VERSION = 13


ATTRIBUTES = {
    **dict.fromkeys(("heads", "kv_heads", "head_dim", "interleaved", "window"), onnx.AttributeProto.INT),
    **dict.fromkeys(("span", "mask", "shift", "block"), onnx.AttributeProto.INT),
    **dict.fromkeys(("scale", "epsilon"), onnx.AttributeProto.FLOAT),
    "activation": onnx.AttributeProto.STRING,
}
"""The type of every attribute, by its name."""


@cache
def _all() -> dict[str, onnx.FunctionProto]:
    functions = {}
    for module in iter_modules(__path__):
        for text in import_module(f"{__name__}.{module.name}").FUNCTIONS:
            header = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}, "{DOMAIN}": {VERSION}]>'
            function = onnx.parser.parse_function(header + text)
            _type_references(function.node)
            functions[function.name] = function
    return functions


def names() -> frozenset[str]:
    """The names of all operators of the domain."""
    return frozenset(_all())


def function(name: str) -> onnx.FunctionProto:
    """The function that defines operator ``name``.

    Raises:
        InternalError: where there is none.
    """
    if name not in _all():
        raise InternalError(f"operator {DOMAIN}::{name} has no meaning in ryzc.graph.ops")
    return _all()[name]


def with_dependencies(wanted: set[str]) -> list[onnx.FunctionProto]:
    """The functions named and all that their bodies use, callees before callers."""
    ordered: dict[str, onnx.FunctionProto] = {}

    def visit(name: str) -> None:
        if name in ordered:
            return
        body = function(name)
        for callee in _callees(body.node):
            visit(callee)
        ordered[name] = body

    for name in sorted(wanted):
        visit(name)
    return list(ordered.values())


def _callees(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Operators of the domain that nodes and their branches use."""
    for node in nodes:
        if node.domain == DOMAIN:
            yield node.op_type
        for attribute in node.attribute:
            yield from _callees(attribute.g.node)


def _type_references(nodes: Iterable[onnx.NodeProto]) -> None:
    """Give references to a function's attributes their types, which the text form leaves out."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                attribute.type = ATTRIBUTES[attribute.ref_attr_name]
            _type_references(attribute.g.node)


def attach(model: ir.Model) -> None:
    """Make the functions of ``model`` exactly those that its graph uses."""
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    model.functions.clear()
    for proto in with_dependencies(used):
        body = ir.serde.deserialize_function(proto)
        model.functions[body.identifier()] = body
