"""Rotates queries and keys and stores keys and values in the cache.

Optionally each head of q and k is first RMS-normed. Rotation turns pairs ``(a, b)`` by the position's
angles: ``(a cos - b sin, b cos + a sin)``; pairs are neighbours (``interleaved``) or lie half a head
apart. For a cache of int8 queries, keys and values then go through the Hadamard transform, and keys and values
are quantized. Source: Su et al., "RoFormer" (2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I8, I32, I64, Function, Value, vec
from ryzc.templates.kernels import rms
from ryzc.templates.kernels.hadamard import hadamard
from ryzc.templates.kernels.kernel import Kernel, begin, context_field, require_multiple, share
from ryzc.templates.kernels.pages import Pages
from ryzc.templates.kernels.quantize_head import quantize_head

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

    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        fn = begin(module, symbol, self.operands)
        head_bytes, group = 4 * self.head_dim, self.heads // self.kv_heads
        row_heads = self.heads + 2 * self.kv_heads
        pages = Pages(fn, fn.args["cache"], self.head_dim, self.page_tokens, self.page_bytes, self.dtype)
        scratch = fn.stack(F32, self.head_dim)
        start, stop = share(fn, context_field(fn, "token_count") * self.kv_heads)
        with fn.loop(start, stop) as items:
            token, kv_head = items.index // self.kv_heads, items.index % self.kv_heads
            angles = [fn.at(fn.args[o], token * (head_bytes // 2)) for o in ("cos", "sin")]
            qkv = fn.at(fn.args["qkv"], token * (row_heads * head_bytes))
            with fn.loop(0, group) as heads:
                head = kv_head * group + heads.index
                out = fn.at(fn.args["q"], (token * self.heads + head) * head_bytes)
                self._rotate(fn, fn.at(qkv, head * head_bytes), "q_weight", angles, out)
                if self.dtype == "int8":
                    hadamard(fn, out, self.head_dim)
            self._rotate(fn, fn.at(qkv, (kv_head + self.heads) * head_bytes), "k_weight", angles, scratch)
            keys, slot = self._place(fn, pages, token, kv_head)
            v = fn.at(qkv, (kv_head + (self.heads + self.kv_heads)) * head_bytes)
            store = self._store_codes if self.dtype == "int8" else self._store_floats
            store(pages, scratch, v, keys, slot)
        fn.finish()

    def _store_floats(self, pages: Pages, k: Value, v: Value, keys: Value, slot: Value) -> None:
        """Store a head's key and value, ``float32 [D]``, in a slot."""
        fn = pages.fn
        with fn.loop(0, self.head_dim) as d:
            element = fn.load(F32, k, d.index << 2, align=4)
            pages.store(element, keys, d.index * (self.page_tokens * pages.size), slot * pages.size)
        values = fn.at(keys, pages.half_bytes, slot * (self.head_dim * pages.size))
        with fn.loop(0, self.head_dim, LANES) as d:
            pages.store(fn.load(vec(F32, LANES), v, d.index << 2, align=4), values, d.index * pages.size)

    def _store_codes(self, pages: Pages, k: Value, v: Value, keys: Value, slot: Value) -> None:
        """Transform, quantize and store a head's key (in memory that may change) and value in a slot."""
        fn = pages.fn
        values = fn.at(keys, pages.half_bytes)
        hadamard(fn, k, self.head_dim)
        key, scale = quantize_head(fn, k, self.head_dim)
        for first, codes in zip(range(0, self.head_dim, LANES), key, strict=True):
            quads = (codes + 128).to_int(I8).bits(vec(I32, LANES // 4))
            for i in range(LANES // 4):
                fn.store(quads.lane(i), keys, slot << 2, (first + 4 * i) * self.page_tokens, align=4)
        fn.store(scale, pages.scales(keys), slot << 2, align=4)
        with fn.loop(0, self.head_dim, LANES) as d:
            fn.store(fn.load(vec(F32, LANES), v, d.index << 2, align=4), k, d.index << 2, align=64)
        hadamard(fn, k, self.head_dim)
        # Four tokens share a quad of values, and other threads may write its other bytes.
        place = fn.at(values, (slot >> 2) * (4 * self.head_dim), slot & 3)
        value, scale = quantize_head(fn, k, self.head_dim)
        for first, codes in zip(range(0, self.head_dim, LANES), value, strict=True):
            for i in range(LANES):
                fn.store(codes.to_int(I8).lane(i), place, 4 * (first + i))
        fn.store(scale, pages.scales(values), slot << 2, align=4)

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
