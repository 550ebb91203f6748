"""What a graph computes, by ONNX's own ReferenceEvaluator. Slow, plain, and the measure of everything else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ryzc import formats
from ryzc.errors import InternalError, UsageError
from ryzc.graph import ops
from ryzc.graph.nodes import DEQUANTIZE, dims, name_of

Array: TypeAlias = npt.NDArray[Any]


class Gelu(OpRun):
    """ONNX's Gelu, written as the body that the standard gives; the evaluator of onnx 1.23 cannot derive it."""

    op_domain = ""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        if approximate != "tanh":
            raise NotImplementedError("Gelu: only approximate='tanh' is used")
        half, one = x.dtype.type(0.5), x.dtype.type(1)
        inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
        return (half * x * (one + np.tanh(inner)),)


class Oracle:
    """A graph made ready for evaluation; weights are decoded once.

    Weights never enter the protobuf (which ends at 2 GB): they are fed as inputs, from the arrays
    that the model holds.

    Args:
        model: a semantic or a final graph.
        decode: ``"formats"`` decodes stored weights with :mod:`ryzc.formats` beforehand, which is
            fast; ``"functions"`` leaves it to the bodies of ``Dequantize_*``. Both give the same bits.
        keep: names of further values to return, e.g. all those of a layer.
    """

    def __init__(self, model: ir.Model, *, decode: str = "formats", keep: Iterable[str] = ()) -> None:
        if decode not in ("formats", "functions"):
            raise UsageError(f"decode is {decode!r}; it must be 'formats' or 'functions'")
        graph = model.graph
        self.weights: dict[str, Array] = {}
        decoded: set[ir.Node] = set()
        for node in graph:
            stored = node.inputs[0] if node.op_type.startswith(DEQUANTIZE) else None
            if stored is not None and stored.const_value is not None and decode == "formats":
                format_ = formats.get(node.op_type.removeprefix(DEQUANTIZE))
                self.weights[name_of(node.outputs[0])] = format_.decode(stored.const_value.numpy())
                decoded.add(node)
        for name, value in graph.initializers.items():
            if any(use not in decoded for use in value.consumers()):
                if value.const_value is None:
                    raise InternalError(f"initializer {name} holds no data")
                self.weights[name] = value.const_value.numpy()
        self.inputs = {name_of(value): value for value in graph.inputs}
        self.outputs = [name_of(value) for value in graph.outputs]
        self.kept = list(dict.fromkeys([*self.outputs, *keep]))
        body = [node for node in graph if node not in decoded]
        proto = _proto(body, [*self.inputs, *self.weights], self.kept)
        self._evaluator = ReferenceEvaluator(proto, new_ops=[Gelu])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Evaluate on the inputs named; gives the graph's outputs and what was kept, by name.

        Raises:
            UsageError: where an input is missing or unknown.
        """
        if feeds.keys() != self.inputs.keys():
            raise UsageError(f"the graph takes {', '.join(self.inputs)}; given were {', '.join(feeds)}")
        results = self._evaluator.run(None, {**self.weights, **feeds})
        return dict(zip(self.kept, results, strict=True))


def evaluate(
    model: ir.Model, feeds: Mapping[str, Array], *, keep: Iterable[str] = (), decode: str = "formats"
) -> dict[str, Array]:
    """The outputs of ``model`` (and the values in ``keep``) on ``feeds``; see :class:`Oracle`."""
    return Oracle(model, decode=decode, keep=keep).run(feeds)


def walk(model: ir.Model, feeds: Mapping[str, Array]) -> Iterator[tuple[ir.Node, dict[str, Array]]]:
    """Evaluate node by node: after each node, that and what it read, by name.

    Needs little memory: a weight is decoded where it is read first, and no value stays after its last reader. Whoever
    has seen enough stops asking.
    """
    waiting = Counter(name_of(value) for node in model.graph for value in node.inputs if value is not None)
    values = dict(feeds)
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        for value in inputs:
            if value.const_value is not None:
                values[name_of(value)] = value.const_value.numpy()
        read = {name_of(value): values[name_of(value)] for value in inputs}
        names = [name_of(value) for value in node.outputs]
        if node.op_type.startswith(DEQUANTIZE):
            values[names[0]] = formats.get(node.op_type.removeprefix(DEQUANTIZE)).decode(*read.values())
        else:
            results = ReferenceEvaluator(_proto([node], read, names), new_ops=[Gelu]).run(None, read)
            values.update((name, np.asarray(result)) for name, result in zip(names, results, strict=True))
        yield node, read
        for value in inputs:
            waiting[name_of(value)] -= 1
            if not waiting[name_of(value)]:
                del values[name_of(value)]


def logits(model: ir.Model, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """f32 [T, V] of a *semantic* graph on one sequence from position 0."""
    ids = np.asarray(tokens, np.int64)
    result: npt.NDArray[np.float32] = evaluate(model, {"tokens": ids, "positions": np.arange(len(ids))})["logits"]
    return result


class PagedOracle:
    """A *final* graph with a cache of its own: fresh pages, filled call by call as the runtime would.

    Args:
        model: a final graph, or one in the pipeline from kv_layout on.
        sequences: rows of the page table.
        context: positions a sequence can hold.
        decode: see :class:`Oracle`.
        shuffle: seed of a permutation of the pages, so that neighbours in a sequence are none in memory.
    """

    def __init__(
        self, model: ir.Model, *, sequences: int = 1, context: int = 128, decode: str = "formats", shuffle: int = 0
    ) -> None:
        self.oracle = Oracle(model, decode=decode)
        pools = [name for name in self.oracle.inputs if name.startswith(("k_", "v_"))]
        if not pools:
            raise UsageError("the graph has no pages: it is not a final graph")
        self.page_tokens = int(dims(self.oracle.inputs["v_pages.0"])[2])
        entries = -(-context // self.page_tokens)
        self.context = entries * self.page_tokens
        pages = sequences * entries
        order = np.random.default_rng(shuffle).permutation(pages)
        self.page_table = order.reshape(sequences, entries).astype(np.int64)
        self.pages: dict[str, Array] = {}
        for name in pools:
            value = self.oracle.inputs[name]
            assert value.dtype is not None
            self.pages[name] = np.zeros((pages, *(int(d) for d in dims(value)[1:])), value.dtype.numpy())
        # The graph gives the updated pools in the order in which it takes them.
        self._updates = dict(zip([n for n in self.oracle.outputs if n != "logits"], pools, strict=True))

    def step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """One step: stores keys and values, gives f32 [R, V].

        Args:
            sequences: a row of the page table a token; row 0 if not given.
            rows: which tokens' logits are wanted; all if not given.

        Raises:
            UsageError: a position lies outside the context.
        """
        count = len(tokens)
        if not all(0 <= position < self.context for position in positions):
            raise UsageError(f"positions must lie in 0 .. {self.context - 1}")
        feeds = {
            "tokens": np.asarray(tokens, np.int64),
            "positions": np.asarray(positions, np.int64),
            "sequences": np.zeros(count, np.int64) if sequences is None else np.asarray(sequences, np.int64),
            "page_table": self.page_table,
            **self.pages,
        }
        if "rows" in self.oracle.inputs:
            feeds["rows"] = np.arange(count) if rows is None else np.asarray(rows, np.int64)
        elif rows is not None:
            raise UsageError("the graph gives every row: select_rows has not run")
        results = self.oracle.run(feeds)
        for output, pool in self._updates.items():
            self.pages[pool] = results[output]
        wanted: npt.NDArray[np.float32] = results["logits"]
        return wanted

    def prompt(self, tokens: Sequence[int], *, chunk: int | None = None) -> npt.NDArray[np.float32]:
        """f32 [T, V] of sequence 0 from position 0, fed whole or in steps of ``chunk`` tokens."""
        size = chunk or len(tokens)
        parts = [
            self.step(tokens[at : at + size], range(at, min(at + size, len(tokens))))
            for at in range(0, len(tokens), size)
        ]
        return np.concatenate(parts)


def _proto(body: Sequence[ir.Node], inputs: Iterable[str], outputs: Iterable[str]) -> onnx.ModelProto:
    """A protobuf of the nodes alone; what they read from outside becomes an input of no stated type."""
    used = {node.op_type for node in body if node.domain == ops.DOMAIN}
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in body],
        "oracle",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    imports = [onnx.helper.make_opsetid("", ops.OPSET), onnx.helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    model = onnx.helper.make_model(graph, opset_imports=imports, functions=ops.with_dependencies(used))
    model.ir_version = ops.IR_VERSION
    return model
