"""The planner: what is known while the final graph becomes kernel calls.

It keeps, for each value of the graph, the buffer that holds it, and for each buffer the phases in
which it is alive. How a node becomes calls is in :mod:`ryzc.lower.nodes`, one function a node kind;
:mod:`ryzc.lower.walk` takes them in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ryzc.bundle import abi
from ryzc.bundle.plan import Call, KernelSpec, KVSpec, Operand, PackedWeight, Parameter, Plan
from ryzc.errors import InternalError, UnsupportedError
from ryzc.formats import trits
from ryzc.lower.arena import ALIGNMENT, Request, place
from ryzc.lower.weights import Produce
from ryzc.templates.kernels.kernel import Kernel

MAX_TOKENS = 512
MAX_ROWS = 64
MAX_CANDIDATES = 256
LOGITS_MULTIPLE = 128


class ModelFacts(Protocol):
    """What the planner asks of an architecture's config; see :class:`ryzc.models.Config`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def windows(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Lowered:
    """A plan and the weights that it names, in order, each with a function that packs it."""

    plan: Plan
    weights: list[tuple[PackedWeight, Produce]]


@dataclass
class Handle:
    """A buffer being planned: elements of ``width`` bytes, ``columns`` a row."""

    name: str
    rows: int
    row_bytes: int
    first: int
    last: int
    pinned: bool = False


@dataclass
class Planner:
    """State of the walk."""

    facts: ModelFacts
    max_tokens: int
    max_rows: int
    activations: str
    max_candidates: int
    ternary: Mapping[tuple[int, int], str] | str = trits.USUAL
    page_tokens: int = 0
    kv_dtype: str = ""
    phases: list[list[Call]] = field(default_factory=list)
    kernels: dict[tuple[str, tuple[tuple[str, Parameter], ...]], KernelSpec] = field(default_factory=dict)
    handles: dict[ir.Value, tuple[Handle, ...]] = field(default_factory=dict)
    all_handles: list[Handle] = field(default_factory=list)
    packed: dict[str, tuple[PackedWeight, Produce]] = field(default_factory=dict)
    token_local: bool = False
    macs_per_token: int = 0
    head_macs: int = 0
    row_values: set[ir.Value] = field(default_factory=set)
    _symbols: set[str] = field(default_factory=set)

    # --- phases -----------------------------------------------------------------------------

    def phase(self, *, token_local: bool = False) -> int:
        """Start a phase, or stay in the last one where both split their work by token alike.

        ``token_local`` calls read and write only rows of the tokens that the same thread owns, so
        they need no barrier between them.
        """
        if not (token_local and self.token_local and self.phases):
            self.phases.append([])
        self.token_local = token_local
        return len(self.phases) - 1

    def call(self, kernel: Kernel, family: str, symbol: str, operands: Sequence[Operand], node: ir.Node) -> None:
        """Add a call to the current phase."""
        spec = self._spec(kernel, family, symbol)
        expected = len(kernel.operands)
        if len(operands) != expected:
            raise InternalError(f"{node.name}: kernel {symbol} takes {expected} operands, not {len(operands)}")
        self.phases[-1].append(Call(spec.symbol, tuple(operands), str(node.name)))

    def _spec(self, kernel: Kernel, family: str, symbol: str) -> KernelSpec:
        parameters = {f.name: getattr(kernel, f.name) for f in fields(kernel)}  # type: ignore[arg-type]
        key = (family, tuple(sorted(parameters.items())))
        if key not in self.kernels:
            unique, i = symbol, 2
            while unique in self._symbols:
                unique, i = f"{symbol}_{i}", i + 1
            self._symbols.add(unique)
            self.kernels[key] = KernelSpec(unique, family, parameters)
        return self.kernels[key]

    # --- buffers ----------------------------------------------------------------------------

    def buffer(self, name: str, row_bytes: int, *, rows: int | None = None) -> Handle:
        """A new buffer, first written in the current phase."""
        now = len(self.phases) - 1
        handle = Handle(f"{name}.{len(self.all_handles)}", rows or self.max_tokens, row_bytes, now, now)
        self.all_handles.append(handle)
        return handle

    def define(self, value: ir.Value, *handles: Handle) -> None:
        """Say which buffers hold a value."""
        self.handles[value] = handles

    def use(self, value: ir.Value | None, index: int = 0) -> Operand:
        """The operand for a value's buffer, kept alive up to the current phase."""
        if value is None or value not in self.handles:
            raise InternalError(f"value {value.name if value else None} is read before a kernel writes it")
        return self.operand(self.handles[value][index])

    def operand(self, handle: Handle) -> Operand:
        """The operand for a buffer, kept alive up to the current phase."""
        handle.last = max(handle.last, len(self.phases) - 1)
        return Operand("arena", 0, handle.name)

    def rows_of(self, value: ir.Value | None) -> tuple[int, str]:
        """How many rows a value can have, and the context field that counts them."""
        if value in self.row_values:
            return self.max_rows, "row_count"
        return self.max_tokens, "token_count"

    # --- weights ----------------------------------------------------------------------------

    def ternary_layout(self, rows: int, columns: int) -> str:
        """How packed ternary weights of a shape lie."""
        return self.ternary if isinstance(self.ternary, str) else self.ternary.get((rows, columns), trits.USUAL)

    def weight(self, packed: PackedWeight, produce: Produce) -> Operand:
        """The operand for a packed weight; equal names are packed once."""
        known = self.packed.setdefault(packed.name, (packed, produce))
        if known[0] != packed:
            raise InternalError(f"weight {packed.name} is packed in two ways")
        return Operand("weights", 0, packed.name)

    def plain(self, value: ir.Value | None) -> Operand:
        """The operand for a vector constant, kept as it is: float32 norms, float64 frequencies."""
        if value is None or value.const_value is None:
            raise InternalError(f"{value.name if value else 'a missing input'} is no constant")
        tensor = value.const_value

        def produce() -> npt.NDArray[np.uint8]:
            return np.ascontiguousarray(tensor.numpy()).view(np.uint8).reshape(-1)

        columns = int(tensor.size)
        kinds = {ir.DataType.FLOAT: ("f32", 4), ir.DataType.DOUBLE: ("f64", 8)}
        if tensor.dtype not in kinds:
            raise UnsupportedError(f"{value.name}: vectors of type {tensor.dtype} are not supported")
        kind, width = kinds[tensor.dtype]
        name = str(value.name)
        return self.weight(PackedWeight(name, (name,), kind, 1, columns, "plain", 0, columns * width), produce)

    # --- finish -----------------------------------------------------------------------------

    def finish(self, architecture: str, kv: KVSpec, notes: Mapping[str, Parameter]) -> Lowered:
        """Place buffers and weights and resolve every operand."""
        end = len(self.phases) - 1
        requests = [
            Request(h.name, h.rows * h.row_bytes, 0 if h.pinned else h.first, end if h.pinned else h.last)
            for h in self.all_handles
        ]
        buffers, arena_bytes = place(requests)
        at = {("arena", b.name): b.offset for b in buffers}
        offset, weights = 0, []
        for packed, produce in self.packed.values():
            weights.append((replace(packed, offset=offset), produce))
            at["weights", packed.name] = offset
            offset += -(-packed.bytes // ALIGNMENT) * ALIGNMENT

        def resolve(operand: Operand) -> Operand:
            base = at.get((operand.space, operand.name), 0)
            return replace(operand, offset=base + operand.offset)

        plan = Plan(
            abi=abi.VERSION,
            architecture=architecture,
            activations=self.activations,
            vocab_size=self.facts.vocab_size,
            logits_stride=logits_stride(self.facts.vocab_size),
            context_length=self.facts.context_length,
            max_tokens=self.max_tokens,
            max_rows=self.max_rows,
            max_candidates=self.max_candidates,
            arena_bytes=arena_bytes,
            macs_per_token=self.macs_per_token,
            head_macs=self.head_macs,
            kv=kv,
            kernels=tuple(self.kernels.values()),
            weights=tuple(w for w, _ in weights),
            buffers=tuple(buffers),
            phases=tuple(
                tuple(replace(c, operands=tuple(resolve(o) for o in c.operands)) for c in phase)
                for phase in self.phases
            ),
            notes=dict(notes),
        )
        return Lowered(plan, weights)


def logits_stride(vocab_size: int) -> int:
    """Elements between rows of logits."""
    return -(-vocab_size // LOGITS_MULTIPLE) * LOGITS_MULTIPLE


Handler = Callable[[Planner, ir.Node], None]


def kv_spec(facts: ModelFacts, page_tokens: int, dtype: str) -> KVSpec:
    """The KV layout of a model."""
    windows = tuple(int(w) for w in facts.windows)
    spec = KVSpec(len(windows), facts.kv_heads, facts.head_dim, page_tokens, dtype, windows, 0)
    return replace(spec, page_bytes=-(-spec.layer_bytes * spec.layers // ALIGNMENT) * ALIGNMENT)


def attribute(node: ir.Node, name: str) -> Any:
    """An attribute's plain value.

    Raises:
        InternalError: where the node lacks it.
    """
    found = node.attributes.get(name)
    if found is None:
        raise InternalError(f"{node.op_type} {node.name} lacks attribute {name}")
    return found.value
