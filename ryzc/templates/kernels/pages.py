"""Addresses in the paged KV cache, see :class:`ryzc.bundle.plan.KVSpec` for the layout of a page."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from ryzc.bundle.plan import kv_vector_bytes
from ryzc.codegen.vector import F16, F32, I8, I32, I64, Function, Value, vec
from ryzc.templates.kernels.kernel import context_field

_TYPES = {"f16": (F16, 2), "f32": (F32, 4), "int8": (I8, 1)}


@dataclass(frozen=True)
class Pages:
    """One layer's cache, whose first page starts at ``cache``."""

    fn: Function
    cache: Value
    head_dim: int
    page_tokens: int
    page_bytes: int
    dtype: str

    @property
    def element(self) -> ir.Type:
        """LLVM type of a stored element."""
        return _TYPES[self.dtype][0]

    @property
    def size(self) -> int:
        """Bytes of a stored element."""
        return _TYPES[self.dtype][1]

    @property
    def half_bytes(self) -> int:
        """Bytes of a head's keys, or of its values, in a page."""
        return kv_vector_bytes(self.dtype, self.head_dim) * self.page_tokens

    def scales(self, half: Value) -> Value:
        """float32 ``[page_tokens]``: the scales of a head's keys or values where these are int8."""
        return self.fn.at(half, self.head_dim * self.page_tokens)

    def table(self, sequence: Value) -> Value:
        """The page table's row of a sequence."""
        stride = context_field(self.fn, "page_table_stride")
        return self.fn.at(context_field(self.fn, "page_table"), (sequence * stride) << 2)

    def keys(self, table: Value, page: Value, kv_head: Value) -> Value:
        """A head's keys ``[head_dim, page_tokens]`` in the ``page``-th page of a sequence."""
        index = self.fn.load(I32, table, page << 2, align=4).to_int(I64)
        return self.fn.at(self.cache, index * self.page_bytes, kv_head * (2 * self.half_bytes))

    def load(self, pointer: Value, lanes: int, *offsets: Value | int) -> Value:
        """Stored floats as float32."""
        raw = self.fn.load(vec(self.element, lanes), pointer, *offsets, align=self.size)
        return raw.to_float() if self.dtype == "f16" else raw

    def store(self, value: Value, pointer: Value, *offsets: Value | int) -> None:
        """Float32 to stored floats, rounded to nearest even."""
        self.fn.store(value.to_float(F16) if self.dtype == "f16" else value, pointer, *offsets, align=self.size)
