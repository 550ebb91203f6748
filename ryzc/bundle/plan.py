"""The plan: what a compiled model does in a step, as data.

The compiler writes it, the step function is generated from it, the runtime sizes its memory by it
and ``ryzc inspect`` prints it. It holds no code and no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ryzc.kv_formats import key_bytes, value_bytes

LAYOUTS = ("tiles", "gated", "plain", "planes", "planes_gated", "dense", "dense_gated", "lookup", "lookup_gated")
"""Of packed weights, see :class:`PackedWeight`."""

Parameter: TypeAlias = str | int | float | bool | tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True)
class KernelSpec:
    """A kernel as its family makes it: the same spec gives the same code on the same target.

    Attributes:
        symbol: the function's name in the shared object.
        family: a file of :mod:`ryzc.templates.kernels`, e.g. ``linear``.
        parameters: shapes, formats and options, by the family's parameter names.
    """

    symbol: str
    family: str
    parameters: Mapping[str, Parameter]


@dataclass(frozen=True)
class Operand:
    """A pointer that the step hands to a kernel.

    Attributes:
        space: ``arena``, ``weights`` or ``kv``: whose base it is relative to.
        offset: bytes from that base (in ``kv``: from the start of a page).
        name: the buffer, the packed weight, or the layer's cache.
    """

    space: str
    offset: int
    name: str


@dataclass(frozen=True)
class Call:
    """One kernel call; all threads make it and split its work among them.

    Attributes:
        kernel: a :attr:`KernelSpec.symbol`.
        operands: in the order of the kernel's arguments.
        node: the graph node it came from.
    """

    kernel: str
    operands: tuple[Operand, ...]
    node: str


@dataclass(frozen=True)
class Buffer:
    """A region of the arena, alive from its first phase to its last, both included."""

    name: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class PackedWeight:
    """A matrix or vector in ``weights.safetensors``.

    Attributes:
        name: its name in the file.
        sources: names of the tensors of the source, in order of their rows.
        format: a weight format's name.
        rows, columns: logical shape; a vector has one row.
        layout: ``tiles`` (:mod:`ryzc.formats.lanes`), ``gated`` (tiles of 16 rows of the first source
            and 16 of the second) or ``plain`` (as stored); of ternary weights ``planes``, ``dense``
            or ``lookup`` (:mod:`ryzc.formats.trits`), with ``_gated`` added where tiles hold rows of two sources.
        offset: bytes from the start of the data section.
        bytes: packed size.
    """

    name: str
    sources: tuple[str, ...]
    format: str
    rows: int
    columns: int
    layout: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class KVSpec:
    """How keys and values are kept.

    A page holds ``page_tokens`` tokens of every layer. Within a page, layer ``i`` starts at
    ``i * layer_bytes``; there, each head has its keys as ``[head_dim, page_tokens]`` and then its values as
    ``[page_tokens, head_dim]``.

    Codes of 16 bits lie in pairs, keys as ``[head_dim / 2, page_tokens, 2]`` and values as
    ``[page_tokens / 2, head_dim, 2]``, and after either come their scales ``[page_tokens]``.

    Codes of 8 and 4 bits went through a Hadamard transform of blocks before. Keys of 8 bits are the bytes
    ``code + 128`` in ``[head_dim / 4, page_tokens, 4]``, then their scales ``[head_dim / block, page_tokens]``;
    values of 8 bits are signed codes in ``[page_tokens / 4, head_dim, 4]``, then their scales ``[page_tokens]``.
    Codes of 4 bits lie so too, two to a byte: element ``i`` of 32 in the low half, ``i + 16`` in the high half.
    After them come, as bytes, scales ``[head_dim / 16, page_tokens]``, and zero points: those of keys lie as
    scales do, those of values in ``[page_tokens / 4, head_dim / 16, 4]``.

    Attributes:
        dtype: a name of :data:`ryzc.kv_formats.KV_FORMATS`.
        windows: per layer how many tokens back attention reaches, itself included; 0 is all.
        page_bytes: bytes of a page, a multiple of 64.
    """

    layers: int
    kv_heads: int
    head_dim: int
    page_tokens: int
    dtype: str
    windows: tuple[int, ...]
    page_bytes: int

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's keys and values in one layer."""
        return self.kv_heads * (key_bytes(self.dtype, self.head_dim) + value_bytes(self.dtype, self.head_dim))

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer in a page."""
        return self.token_bytes * self.page_tokens


@dataclass(frozen=True)
class Plan:
    """A compiled model's step.

    Attributes:
        abi: :data:`ryzc.bundle.abi.VERSION` it was made for.
        architecture: e.g. ``llama``.
        activations: ``int8`` (blocks of 32) or ``f32`` in linear layers.
        vocab_size: token ids are below it.
        logits_stride: elements between rows of logits.
        context_length: positions the model was trained for.
        max_tokens, max_rows, max_candidates: bounds of a step, see the ABI.
        arena_bytes: scratch that a step needs.
        macs_per_token: multiply-accumulates of the linear layers for one token, the head left out.
        head_macs: the same for one row of the head.
        phases: calls between barriers; calls of a phase touch disjoint outputs.
    """

    abi: int
    architecture: str
    activations: str
    vocab_size: int
    logits_stride: int
    context_length: int
    max_tokens: int
    max_rows: int
    max_candidates: int
    arena_bytes: int
    macs_per_token: int
    head_macs: int
    kv: KVSpec
    kernels: tuple[KernelSpec, ...]
    weights: tuple[PackedWeight, ...]
    buffers: tuple[Buffer, ...]
    phases: tuple[tuple[Call, ...], ...]
    notes: Mapping[str, Parameter] = field(default_factory=dict)
