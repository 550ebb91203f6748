"""Addresses in the paged KV cache, see :class:`ryzc.bundle.plan.KVSpec` for the layout of a page."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from ryzc.codegen.vector import F16, F32, I32, I64, Function, Value, vec
from ryzc.kv_formats import GROUP, KV_FORMATS, block, key_bytes, value_bytes
from ryzc.templates.kernels.kernel import context_field

_FLOATS = {"f16": (F16, 2), "f32": (F32, 4)}


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
        """LLVM type of a stored float."""
        return _FLOATS[self.dtype][0]

    @property
    def size(self) -> int:
        """Bytes of a stored float."""
        return _FLOATS[self.dtype][1]

    @property
    def key_bits(self) -> int:
        """Bits of a key's element."""
        return KV_FORMATS[self.dtype].key_bits

    @property
    def value_bits(self) -> int:
        """Bits of a value's element."""
        return KV_FORMATS[self.dtype].value_bits

    @property
    def block(self) -> int:
        """Elements that are transformed together."""
        return block(self.head_dim)

    @property
    def groups(self) -> int:
        """Groups of a head where codes have 4 bits."""
        return self.head_dim // GROUP

    @property
    def key_region(self) -> int:
        """Bytes of a head's keys in a page."""
        return key_bytes(self.dtype, self.head_dim) * self.page_tokens

    @property
    def head_region(self) -> int:
        """Bytes of a head in a page, keys and then values."""
        return self.key_region + value_bytes(self.dtype, self.head_dim) * self.page_tokens

    def key_scales(self, keys: Value) -> Value:
        """Scales of a head's keys where these are codes."""
        return self.fn.at(keys, self.head_dim * self.key_bits // 8 * self.page_tokens)

    def key_zeros(self, keys: Value) -> Value:
        """Zero points of a head's keys of 4 bits."""
        return self.fn.at(self.key_scales(keys), self.groups * self.page_tokens)

    def value_scales(self, values: Value) -> Value:
        """Scales of a head's values where these are codes."""
        return self.fn.at(values, self.head_dim * self.value_bits // 8 * self.page_tokens)

    def value_zeros(self, values: Value) -> Value:
        """Zero points of a head's values of 4 bits."""
        return self.fn.at(self.value_scales(values), self.groups * self.page_tokens)

    def table(self, sequence: Value) -> Value:
        """The page table's row of a sequence."""
        stride = context_field(self.fn, "page_table_stride")
        return self.fn.at(context_field(self.fn, "page_table"), (sequence * stride) << 2)

    def keys(self, table: Value, page: Value, kv_head: Value) -> Value:
        """A head's keys in the ``page``-th page of a sequence; its values follow after ``key_region`` bytes."""
        index = self.fn.load(I32, table, page << 2, align=4).to_int(I64)
        return self.fn.at(self.cache, index * self.page_bytes, kv_head * self.head_region)

    def load(self, pointer: Value, lanes: int, *offsets: Value | int) -> Value:
        """Stored floats as float32."""
        raw = self.fn.load(vec(self.element, lanes), pointer, *offsets, align=self.size)
        return raw.to_float() if self.dtype == "f16" else raw

    def store(self, value: Value, pointer: Value, *offsets: Value | int) -> None:
        """Float32 to stored floats, rounded to nearest even."""
        self.fn.store(value.to_float(F16) if self.dtype == "f16" else value, pointer, *offsets, align=self.size)
