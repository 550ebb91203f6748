"""Small random checkpoints of each architecture, in any mix of weight formats, for tests of several rooms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc import formats
from ryzc.formats import AffineFormat, Codes
from ryzc.sources.checkpoint import Checkpoint, MetadataValue, StoredTensor, Vocabulary

EMPTY_VOCABULARY = Vocabulary("gpt2", "default", (), (), (), (), {})
FLOATS = {"f32": np.float32, "f16": np.float16}


def available() -> list[str]:
    """Formats that :func:`stored` can write."""
    return [name for name in formats.names() if name in FLOATS or isinstance(formats.get(name), AffineFormat)]


def stored(rng: np.random.Generator, name: str, format_: str, shape: tuple[int, ...]) -> StoredTensor:
    """A random tensor whose elements are of the order of ``1 / sqrt(K)`` (vectors: near 1)."""
    k = shape[-1]
    if len(shape) == 1:
        values = 1 + 0.1 * rng.standard_normal(shape)
        return StoredTensor(name, "f32", shape, values.astype(np.float32).view(np.uint8))
    if format_ in FLOATS:
        values = rng.standard_normal(shape) / math.sqrt(k)
        return StoredTensor(name, format_, shape, values.astype(FLOATS[format_]).view(np.uint8))
    fmt = formats.get(format_)
    assert isinstance(fmt, AffineFormat)
    codes = random_codes(rng, fmt, shape[0], k, 1 / math.sqrt(k))
    return StoredTensor(name, format_, shape, fmt.unparse(codes))


def random_codes(rng: np.random.Generator, fmt: AffineFormat, n: int, k: int, size: float) -> Codes:
    """Codes over their whole range, with scales that make the weights about as large as ``size``."""
    levels = 3 if fmt.name in ("tq1_0", "tq2_0") else 1 << sum(fmt.planes)

    def factors(bits: int, zero: int) -> npt.NDArray[np.int8] | None:
        if not bits:
            return None
        low, high = (-128, 128) if bits == 8 else (-zero, (1 << bits) - zero)
        return rng.integers(low, high, (n, k // fmt.group)).astype(np.int8)

    s, t = factors(fmt.scale_bits, fmt.scale_zero), factors(fmt.min_bits, 0)
    largest = 1.0 if s is None else float(np.abs(s.astype(np.float32)).max() + 1)
    d = size * 4 / levels / largest * rng.uniform(0.5, 1.0, (n, k // fmt.block))
    m = None
    if fmt.min_sign:
        largest = 1.0 if t is None else float(t.max() + 1)
        m = (-fmt.min_sign * size * 2 / largest * rng.uniform(0.5, 1.0, (n, k // fmt.block))).astype(np.float16)
    q = rng.integers(0, levels, (n, k)).astype(np.uint8)
    return Codes(q=q, d=d.astype(np.float16), s=s, m=m, t=t)


def hollow(rng: np.random.Generator, name: str, format_: str, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor of zeros, one row of which is all of its memory: for plans of models of any size."""
    del rng
    if len(shape) == 1:
        return StoredTensor(name, "f32", shape, np.ones(shape, np.float32).view(np.uint8))
    row = np.zeros(formats.get(format_).row_bytes(shape[1]), np.uint8)
    return StoredTensor(name, format_, shape, np.broadcast_to(row, (shape[0], len(row))))


Make: TypeAlias = Callable[[np.random.Generator, str, str, tuple[int, ...]], StoredTensor]


def llama(
    seed: int = 0,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    feed_forward: int = 96,
    vocab: int = 40,
    mix: Sequence[str] = ("q4_1",),
    tied: bool = True,
    factors: bool = False,
    make: Make = stored,
) -> Checkpoint:
    """A llama; each matrix draws its format from ``mix``."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, StoredTensor] = {}

    def put(name: str, *shape: int) -> None:
        tensors[name] = make(rng, name, str(rng.choice(list(mix))), shape)

    put("token_embd.weight", vocab, hidden)
    put("output_norm.weight", hidden)
    if not tied:
        put("output.weight", vocab, hidden)
    if factors:
        put("rope_freqs.weight", head_dim // 2)
    for i in range(layers):
        put(f"blk.{i}.attn_norm.weight", hidden)
        put(f"blk.{i}.attn_q.weight", heads * head_dim, hidden)
        put(f"blk.{i}.attn_k.weight", kv_heads * head_dim, hidden)
        put(f"blk.{i}.attn_v.weight", kv_heads * head_dim, hidden)
        put(f"blk.{i}.attn_output.weight", hidden, heads * head_dim)
        put(f"blk.{i}.ffn_norm.weight", hidden)
        put(f"blk.{i}.ffn_gate.weight", feed_forward, hidden)
        put(f"blk.{i}.ffn_up.weight", feed_forward, hidden)
        put(f"blk.{i}.ffn_down.weight", hidden, feed_forward)
    metadata: dict[str, MetadataValue] = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": 256,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": head_dim,
        "llama.vocab_size": vocab,
    }
    return Checkpoint(Path("tiny-llama.gguf"), "llama", metadata, tensors, EMPTY_VOCABULARY)


def gemma3(
    seed: int = 0,
    *,
    layers: int = 6,
    hidden: int = 64,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 16,
    feed_forward: int = 96,
    vocab: int = 40,
    window: int = 5,
    mix: Sequence[str] = ("q4_1",),
    rope_factor: float | None = None,
    make: Make = stored,
) -> Checkpoint:
    """A Gemma 3; its sixth layer sees everything, the others ``window`` tokens."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, StoredTensor] = {}

    def put(name: str, *shape: int) -> None:
        tensors[name] = make(rng, name, str(rng.choice(list(mix))), shape)

    put("token_embd.weight", vocab, hidden)
    put("output_norm.weight", hidden)
    for i in range(layers):
        put(f"blk.{i}.attn_norm.weight", hidden)
        put(f"blk.{i}.attn_q.weight", heads * head_dim, hidden)
        put(f"blk.{i}.attn_k.weight", kv_heads * head_dim, hidden)
        put(f"blk.{i}.attn_v.weight", kv_heads * head_dim, hidden)
        put(f"blk.{i}.attn_q_norm.weight", head_dim)
        put(f"blk.{i}.attn_k_norm.weight", head_dim)
        put(f"blk.{i}.attn_output.weight", hidden, heads * head_dim)
        put(f"blk.{i}.post_attention_norm.weight", hidden)
        put(f"blk.{i}.ffn_norm.weight", hidden)
        put(f"blk.{i}.ffn_gate.weight", feed_forward, hidden)
        put(f"blk.{i}.ffn_up.weight", feed_forward, hidden)
        put(f"blk.{i}.ffn_down.weight", hidden, feed_forward)
        put(f"blk.{i}.post_ffw_norm.weight", hidden)
    metadata: dict[str, MetadataValue] = {
        "general.architecture": "gemma3",
        "gemma3.block_count": layers,
        "gemma3.context_length": 256,
        "gemma3.embedding_length": hidden,
        "gemma3.feed_forward_length": feed_forward,
        "gemma3.attention.head_count": heads,
        "gemma3.attention.head_count_kv": kv_heads,
        "gemma3.attention.key_length": head_dim,
        "gemma3.attention.value_length": head_dim,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.sliding_window": window,
        "gemma3.rope.freq_base": 1000000.0,
    }
    if rope_factor is not None:
        metadata["gemma3.rope.scaling.type"] = "linear"
        metadata["gemma3.rope.scaling.factor"] = rope_factor
    return Checkpoint(Path("tiny-gemma3.gguf"), "gemma3", metadata, tensors, EMPTY_VOCABULARY)


def qwen3(
    seed: int = 0,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    feed_forward: int = 96,
    vocab: int = 40,
    mix: Sequence[str] = ("q4_1",),
    tied: bool = True,
    make: Make = stored,
) -> Checkpoint:
    """A Qwen3; its heads together are wider than its stream."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, StoredTensor] = {}

    def put(name: str, *shape: int) -> None:
        tensors[name] = make(rng, name, str(rng.choice(list(mix))), shape)

    put("token_embd.weight", vocab, hidden)
    put("output_norm.weight", hidden)
    if not tied:
        put("output.weight", vocab, hidden)
    for i in range(layers):
        put(f"blk.{i}.attn_norm.weight", hidden)
        put(f"blk.{i}.attn_q.weight", heads * head_dim, hidden)
        put(f"blk.{i}.attn_k.weight", kv_heads * head_dim, hidden)
        put(f"blk.{i}.attn_v.weight", kv_heads * head_dim, hidden)
        put(f"blk.{i}.attn_q_norm.weight", head_dim)
        put(f"blk.{i}.attn_k_norm.weight", head_dim)
        put(f"blk.{i}.attn_output.weight", hidden, heads * head_dim)
        put(f"blk.{i}.ffn_norm.weight", hidden)
        put(f"blk.{i}.ffn_gate.weight", feed_forward, hidden)
        put(f"blk.{i}.ffn_up.weight", feed_forward, hidden)
        put(f"blk.{i}.ffn_down.weight", hidden, feed_forward)
    metadata: dict[str, MetadataValue] = {
        "general.architecture": "qwen3",
        "qwen3.block_count": layers,
        "qwen3.context_length": 256,
        "qwen3.embedding_length": hidden,
        "qwen3.feed_forward_length": feed_forward,
        "qwen3.attention.head_count": heads,
        "qwen3.attention.head_count_kv": kv_heads,
        "qwen3.attention.key_length": head_dim,
        "qwen3.attention.value_length": head_dim,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3.rope.freq_base": 1000000.0,
    }
    return Checkpoint(Path("tiny-qwen3.gguf"), "qwen3", metadata, tensors, EMPTY_VOCABULARY)
