"""Rotates queries and keys and stores keys and values in the cache.

Optionally each head of q and k is first RMS-normed. Rotation turns pairs ``(a, b)`` by the position's
angles: ``(a cos - b sin, b cos + a sin)``; pairs are neighbours (``interleaved``) or lie half a head
apart. For a cache of codes keys and values are quantized, after queries, keys and values went through the Hadamard
transform where codes have few bits. Source: Su et al., "RoFormer" (2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I8, I16, I32, I64, Function, Value, vec
from ryzc.kv_formats import GROUP, KV_FORMATS
from ryzc.templates.kernels import rms
from ryzc.templates.kernels.hadamard import hadamard
from ryzc.templates.kernels.head_codes import byte_codes, nibble_codes, store_bfloat16, wide_codes
from ryzc.templates.kernels.kernel import Kernel, ask_for_next, begin, context_field, require_multiple, share
from ryzc.templates.kernels.pages import Pages

LANES = 16


@dataclass(frozen=True)
class RopeAppend(Kernel):
    """Parameters.

    Attributes:
        heads, kv_heads, head_dim: of the layer; ``head_dim`` is a multiple of 16.
        interleaved: which elements form a pair.
        page_tokens, page_bytes, dtype: of the cache.
        q_norm: whether q and k are normed; then the operands end with their weights.
        epsilon: of that norm.
    """

    heads: int
    kv_heads: int
    head_dim: int
    interleaved: bool
    page_tokens: int
    page_bytes: int
    dtype: str
    q_norm: bool
    epsilon: float

    @property
    def operands(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("qkv", "cos", "sin", "q", "cache", *(("q_weight", "k_weight") if self.q_norm else ()))

    def __post_init__(self) -> None:
        require_multiple(self, LANES, head_dim=self.head_dim)
        require_multiple(self, self.kv_heads, heads=self.heads)
        if KV_FORMATS[self.dtype].value_bits == 4:
            require_multiple(self, 2 * GROUP, head_dim=self.head_dim)

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        head_bytes, group = 4 * self.head_dim, self.heads // self.kv_heads
        row_bytes = (self.heads + 2 * self.kv_heads) * head_bytes
        pages = Pages(fn, fn.args["cache"], self.head_dim, self.page_tokens, self.page_bytes, self.dtype)
        format_ = KV_FORMATS[self.dtype]
        scratch = fn.stack(F32, self.head_dim)
        start, stop = share(fn, context_field(fn, "token_count") * self.kv_heads)
        with fn.loop(start, stop) as items:
            token, kv_head = items.index // self.kv_heads, items.index % self.kv_heads
            angles = [fn.at(fn.args[o], token * (head_bytes // 2)) for o in ("cos", "sin")]
            qkv = fn.at(fn.args["qkv"], token * row_bytes)

            def of_head(head: Value, qkv: Value = qkv) -> Value:
                x = fn.at(qkv, head * head_bytes)
                ask_for_next(fn, x, row_bytes, 0, head_bytes)
                return x

            keys, slot = self._place(fn, pages, token, kv_head)
            self._ask(pages, keys, slot)
            with fn.loop(0, group) as heads:
                head = kv_head * group + heads.index
                out = fn.at(fn.args["q"], (token * self.heads + head) * head_bytes)
                self._rotate(fn, of_head(head), "q_weight", angles, out)
                if format_.transformed:
                    hadamard(fn, out, self.head_dim, pages.block)
            self._rotate(fn, of_head(kv_head + self.heads), "k_weight", angles, scratch)
            v = of_head(kv_head + (self.heads + self.kv_heads))
            store = self._store_floats
            if format_.coded:
                store = partial(self._store_codes if format_.transformed else self._store_pairs, isa)
            store(pages, scratch, v, keys, slot)
        fn.finish()

    def _ask(self, pages: Pages, keys: Value, slot: Value) -> None:
        """Ask for the lines that a slot's key will be written to, one for each element or word of codes of it."""
        word = 4 if KV_FORMATS[self.dtype].coded else pages.size
        for at in range(0, self.head_dim * pages.key_bits // 8, word):
            pages.fn.prefetch(keys, slot * word, at * self.page_tokens, write=True)

    def _store_floats(self, pages: Pages, k: Value, v: Value, keys: Value, slot: Value) -> None:
        """Store a head's key and value, ``float32 [D]``, in a slot."""
        fn = pages.fn
        with fn.loop(0, self.head_dim) as d:
            element = fn.load(F32, k, d.index << 2, align=4)
            pages.store(element, keys, d.index * (self.page_tokens * pages.size), slot * pages.size)
        values = fn.at(keys, pages.key_region, slot * (self.head_dim * pages.size))
        with fn.loop(0, self.head_dim, LANES) as d:
            pages.store(fn.load(vec(F32, LANES), v, d.index << 2, align=4), values, d.index * pages.size)

    def _store_pairs(self, isa: Isa, pages: Pages, k: Value, v: Value, keys: Value, slot: Value) -> None:
        """Quantize a head's key and value, ``float32 [D]``, to codes of 16 bits, and store them in a slot."""
        fn = pages.fn
        codes, scale = wide_codes(fn, k, self.head_dim)
        for i, vector in enumerate(codes):
            pairs = vector.to_int(I16).bits(vec(I32, LANES // 2))
            for p in range(LANES // 2):
                fn.store(pairs.lane(p), keys, slot << 2, (LANES // 2 * i + p) * 4 * self.page_tokens, align=4)
        store_bfloat16(scale, pages.key_scales(keys), slot << 1)
        codes, scale = wide_codes(fn, v, self.head_dim)
        values = fn.at(keys, pages.key_region)
        isa.store_part(codes, fn.at(values, (slot >> 1) * (4 * self.head_dim)), slot & 1, I16)
        store_bfloat16(scale, pages.value_scales(values), slot << 1)

    def _store_codes(self, isa: Isa, pages: Pages, k: Value, v: Value, keys: Value, slot: Value) -> None:
        """Transform, quantize and store a head's key (in memory that may change) and value in a slot."""
        fn = pages.fn
        hadamard(fn, k, self.head_dim, pages.block)
        store_key = self._store_key_bytes if pages.key_bits == 8 else self._store_key_nibbles
        store_key(pages, k, keys, slot)
        with fn.loop(0, self.head_dim, LANES) as d:
            fn.store(fn.load(vec(F32, LANES), v, d.index << 2, align=4), k, d.index << 2, align=64)
        hadamard(fn, k, self.head_dim, pages.block)
        store_value = self._store_value_bytes if pages.value_bits == 8 else self._store_value_nibbles
        store_value(isa, pages, k, fn.at(keys, pages.key_region), slot)

    def _store_key_bytes(self, pages: Pages, k: Value, keys: Value, slot: Value) -> None:
        fn = pages.fn
        codes, scales = byte_codes(fn, k, self.head_dim, pages.block)
        for i, vector in enumerate(codes):
            self._store_quads(pages, (vector + 128).to_int(I8), keys, slot, i)
        for i, scale in enumerate(scales):
            store_bfloat16(scale, pages.key_scales(keys), slot << 1, 2 * i * self.page_tokens)

    def _store_key_nibbles(self, pages: Pages, k: Value, keys: Value, slot: Value) -> None:
        fn = pages.fn
        with fn.loop(0, pages.groups, 2) as group:
            pair = [nibble_codes(fn, k, group.index << 6, 64 * half) for half in range(2)]
            first = fn.at(keys, group.index * (2 * LANES // 4 * self.page_tokens))
            self._store_quads(pages, (pair[0][0] | (pair[1][0] << 4)).to_int(I8), first, slot, 0)
            for half, (_, scale, zero) in enumerate(pair):
                at: list[Value | int] = [slot, group.index * self.page_tokens, half * self.page_tokens]
                fn.store(scale.to_int(I8), pages.key_scales(keys), *at)
                fn.store(zero.to_int(I8), pages.key_zeros(keys), *at)

    def _store_quads(self, pages: Pages, codes: Value, keys: Value, slot: Value, index: int) -> None:
        """Store the ``index``-th 16 bytes of a key: quads in the slot's column."""
        quads = codes.bits(vec(I32, LANES // 4))
        for i in range(LANES // 4):
            pages.fn.store(quads.lane(i), keys, slot << 2, (LANES * index + 4 * i) * self.page_tokens, align=4)

    def _store_value_bytes(self, isa: Isa, pages: Pages, v: Value, values: Value, slot: Value) -> None:
        fn = pages.fn
        codes, (scale,) = byte_codes(fn, v, self.head_dim, self.head_dim)
        isa.store_part(codes, fn.at(values, (slot >> 2) * (4 * self.head_dim)), slot & 3, I8)
        store_bfloat16(scale, pages.value_scales(values), slot << 1)

    def _store_value_nibbles(self, isa: Isa, pages: Pages, v: Value, values: Value, slot: Value) -> None:
        fn = pages.fn
        place = fn.at(values, (slot >> 2) * (2 * self.head_dim))
        zeros = fn.at(pages.value_zeros(values), (slot >> 2) * (4 * pages.groups), slot & 3)
        with fn.loop(0, pages.groups, 2) as group:
            pair = [nibble_codes(fn, v, group.index << 6, 64 * half) for half in range(2)]
            codes = pair[0][0] | (pair[1][0] << 4)
            isa.store_part([codes], fn.at(place, group.index << 5), slot & 3, I8)
            for half, (_, scale, zero) in enumerate(pair):
                at: list[Value | int] = [slot, group.index * self.page_tokens, half * self.page_tokens]
                fn.store(scale.to_int(I8), pages.value_scales(values), *at)
                fn.store(zero.to_int(I8), zeros, group.index << 2, 4 * half)

    def _place(self, fn: Function, pages: Pages, token: Value, kv_head: Value) -> tuple[Value, Value]:
        """The head's keys in the token's page, and the token's slot there."""
        position, sequence = (
            fn.load(I32, context_field(fn, name), token << 2, align=4).to_int(I64)
            for name in ("positions", "sequences")
        )
        keys = pages.keys(pages.table(sequence), position // self.page_tokens, kv_head)
        return keys, position % self.page_tokens

    def _rotate(self, fn: Function, x: Value, weight: str, angles: list[Value], out: Value) -> None:
        """Norm and rotate a head from ``x`` to ``out``."""
        scale = rms.factor(fn, x, self.head_dim, self.epsilon) if self.q_norm else None
        half = 2 * self.head_dim  # bytes of half a head
        lanes = math.gcd(LANES, self.head_dim // 2)
        pairs = vec(F32, lanes)

        def element(at: Value, offset: int) -> Value:
            value = fn.load(pairs, x, at, offset, align=4)
            if scale is None:
                return value
            return value * scale.splat(lanes) * fn.load(pairs, fn.args[weight], at, offset, align=4)

        with fn.loop(0, self.head_dim // 2, lanes) as pair:
            cos, sin = (fn.load(pairs, a, pair.index << 2, align=4) for a in angles)
            if self.interleaved:
                at = pair.index << 3
                low, high = element(at, 0), element(at, 4 * lanes)
                a = low.shuffle(range(0, 2 * lanes, 2), high)
                b = low.shuffle(range(1, 2 * lanes, 2), high)
            else:
                at = pair.index << 2
                a, b = element(at, 0), element(at, half)
            first, second = fn.fma(a, cos, -(b * sin)), fn.fma(b, cos, a * sin)
            if self.interleaved:
                order = [i for lane in range(lanes) for i in (lane, lanes + lane)]
                fn.store(first.shuffle(order[:lanes], second), out, at, align=4)
                fn.store(first.shuffle(order[lanes:], second), out, at, 4 * lanes, align=4)
            else:
                fn.store(first, out, at, align=4)
                fn.store(second, out, at, half, align=4)


def reference(
    x: npt.NDArray[np.float32],
    cos: npt.NDArray[np.float32],
    sin: npt.NDArray[np.float32],
    *,
    interleaved: bool,
    weight: npt.NDArray[np.float32] | None = None,
    epsilon: float = 0.0,
) -> npt.NDArray[np.float64]:
    """The meaning for heads ``[T, H, D]`` and angles ``[T, D/2]``: normed and rotated, float64."""
    wide = x.astype(np.float64) if weight is None else rms.reference(x, weight, epsilon)
    c, s = cos.astype(np.float64)[:, None], sin.astype(np.float64)[:, None]
    half = x.shape[-1] // 2
    a, b = (wide[..., 0::2], wide[..., 1::2]) if interleaved else (wide[..., :half], wide[..., half:])
    first, second = a * c - b * s, b * c + a * s
    if interleaved:
        return np.stack([first, second], axis=-1).reshape(x.shape)
    return np.concatenate([first, second], axis=-1)


KERNEL = RopeAppend
