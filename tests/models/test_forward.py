"""The semantic graphs against forward passes written on their own in numpy, loop by loop, in float64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import available, gemma3, llama, qwen3

from ryzc import formats, models
from ryzc.graph import oracle
from ryzc.sources.checkpoint import Checkpoint

F64 = npt.NDArray[np.float64]


class Plain:
    """A checkpoint's numbers and the pieces that all forward passes need."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        meta = {key.split(".", 1)[1]: value for key, value in checkpoint.metadata.items()}
        self.layers = int(meta["block_count"])  # type: ignore[arg-type]
        self.heads = int(meta["attention.head_count"])  # type: ignore[arg-type]
        self.kv_heads = int(meta["attention.head_count_kv"])  # type: ignore[arg-type]
        self.head_dim = int(meta["attention.key_length"])  # type: ignore[arg-type]
        self.epsilon = float(meta["attention.layer_norm_rms_epsilon"])  # type: ignore[arg-type]

    def __call__(self, name: str) -> F64:
        tensor = self.checkpoint.tensors[name]
        return formats.get(tensor.format).decode(tensor.data).astype(np.float64)

    def norm(self, x: F64, weight: F64) -> F64:
        normed: F64 = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.epsilon) * weight
        return normed

    def attend(self, q: F64, k: F64, v: F64, window: int, scale: float) -> F64:
        """q [T, H, D], k, v [T, Hk, D] -> [T, H * D], one head and token at a time."""
        out = np.zeros_like(q)
        for head in range(self.heads):
            shared = head // (self.heads // self.kv_heads)
            for i in range(len(q)):
                first = 0 if window == 0 else max(0, i - window + 1)
                scores = k[first : i + 1, shared] @ q[i, head] * scale
                weights = np.exp(scores - scores.max())
                out[i, head] = weights @ v[first : i + 1, shared] / weights.sum()
        return out.reshape(len(q), -1)

    def split(self, x: F64, heads: int) -> F64:
        return x.reshape(len(x), heads, self.head_dim)


def rotate(x: F64, frequencies: F64, pairs: list[tuple[int, int]]) -> F64:
    out = x.copy()
    for position in range(len(x)):
        for (a, b), frequency in zip(pairs, frequencies, strict=True):
            cos, sin = math.cos(position * frequency), math.sin(position * frequency)
            out[position, :, a] = x[position, :, a] * cos - x[position, :, b] * sin
            out[position, :, b] = x[position, :, a] * sin + x[position, :, b] * cos
    return out


def forward_llama(checkpoint: Checkpoint, ids: list[int]) -> F64:
    w = Plain(checkpoint)
    frequencies = np.array([10000.0 ** (-2 * i / w.head_dim) for i in range(w.head_dim // 2)])
    if "rope_freqs.weight" in checkpoint.tensors:
        frequencies /= w("rope_freqs.weight")
    pairs = [(2 * i, 2 * i + 1) for i in range(w.head_dim // 2)]
    x = w("token_embd.weight")[ids]
    for i in range(w.layers):
        h = w.norm(x, w(f"blk.{i}.attn_norm.weight"))
        q = rotate(w.split(h @ w(f"blk.{i}.attn_q.weight").T, w.heads), frequencies, pairs)
        k = rotate(w.split(h @ w(f"blk.{i}.attn_k.weight").T, w.kv_heads), frequencies, pairs)
        v = w.split(h @ w(f"blk.{i}.attn_v.weight").T, w.kv_heads)
        x = x + w.attend(q, k, v, 0, w.head_dim**-0.5) @ w(f"blk.{i}.attn_output.weight").T
        h = w.norm(x, w(f"blk.{i}.ffn_norm.weight"))
        gate = h @ w(f"blk.{i}.ffn_gate.weight").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w(f"blk.{i}.ffn_up.weight").T)) @ w(f"blk.{i}.ffn_down.weight").T
    head = "output.weight" if "output.weight" in checkpoint.tensors else "token_embd.weight"
    return w.norm(x, w("output_norm.weight")) @ w(head).T


def forward_gemma3(checkpoint: Checkpoint, ids: list[int]) -> F64:
    w = Plain(checkpoint)
    window = int(checkpoint.metadata["gemma3.attention.sliding_window"])  # type: ignore[arg-type]
    factor = float(checkpoint.metadata.get("gemma3.rope.scaling.factor", 1.0))  # type: ignore[arg-type]
    half = w.head_dim // 2
    near = np.array([1e4 ** (-i / half) for i in range(half)])
    far = np.array([1e6 ** (-i / half) for i in range(half)]) / factor
    pairs = [(i, i + half) for i in range(half)]
    table = w("token_embd.weight")
    x = table[ids] * math.sqrt(table.shape[1])
    for i in range(w.layers):
        everything = i % 6 == 5
        frequencies = far if everything else near
        h = w.norm(x, w(f"blk.{i}.attn_norm.weight"))
        q = w.norm(w.split(h @ w(f"blk.{i}.attn_q.weight").T, w.heads), w(f"blk.{i}.attn_q_norm.weight"))
        k = w.norm(w.split(h @ w(f"blk.{i}.attn_k.weight").T, w.kv_heads), w(f"blk.{i}.attn_k_norm.weight"))
        v = w.split(h @ w(f"blk.{i}.attn_v.weight").T, w.kv_heads)
        q, k = rotate(q, frequencies, pairs), rotate(k, frequencies, pairs)
        y = w.attend(q, k, v, 0 if everything else window, w.head_dim**-0.5) @ w(f"blk.{i}.attn_output.weight").T
        x = x + w.norm(y, w(f"blk.{i}.post_attention_norm.weight"))
        h = w.norm(x, w(f"blk.{i}.ffn_norm.weight"))
        gate = h @ w(f"blk.{i}.ffn_gate.weight").T
        gelu = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        y = (gelu * (h @ w(f"blk.{i}.ffn_up.weight").T)) @ w(f"blk.{i}.ffn_down.weight").T
        x = x + w.norm(y, w(f"blk.{i}.post_ffw_norm.weight"))
    return w.norm(x, w("output_norm.weight")) @ table.T


def forward_qwen3(checkpoint: Checkpoint, ids: list[int]) -> F64:
    w = Plain(checkpoint)
    half = w.head_dim // 2
    frequencies = np.array([1e6 ** (-i / half) for i in range(half)])
    pairs = [(i, i + half) for i in range(half)]
    x = w("token_embd.weight")[ids]
    for i in range(w.layers):
        h = w.norm(x, w(f"blk.{i}.attn_norm.weight"))
        q = w.norm(w.split(h @ w(f"blk.{i}.attn_q.weight").T, w.heads), w(f"blk.{i}.attn_q_norm.weight"))
        k = w.norm(w.split(h @ w(f"blk.{i}.attn_k.weight").T, w.kv_heads), w(f"blk.{i}.attn_k_norm.weight"))
        v = w.split(h @ w(f"blk.{i}.attn_v.weight").T, w.kv_heads)
        q, k = rotate(q, frequencies, pairs), rotate(k, frequencies, pairs)
        x = x + w.attend(q, k, v, 0, w.head_dim**-0.5) @ w(f"blk.{i}.attn_output.weight").T
        h = w.norm(x, w(f"blk.{i}.ffn_norm.weight"))
        gate = h @ w(f"blk.{i}.ffn_gate.weight").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w(f"blk.{i}.ffn_up.weight").T)) @ w(f"blk.{i}.ffn_down.weight").T
    head = "output.weight" if "output.weight" in checkpoint.tensors else "token_embd.weight"
    return w.norm(x, w("output_norm.weight")) @ w(head).T


def close(got: npt.NDArray[np.float32], wanted: F64) -> None:
    """float32 against float64: the largest error, over the largest logit, stays near float32's precision."""
    error = np.abs(got - wanted)
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error[worst] <= 2e-5 * np.abs(wanted).max(), f"worst at {worst}: {got[worst]} against {wanted[worst]}"


MIXES = st.lists(st.sampled_from(sorted(available())), min_size=1, max_size=3, unique=True)


def hidden_for(mix: list[str]) -> int:
    """The least width that is whole blocks of every format in the mix."""
    return max(64, *(formats.get(name).block for name in mix))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    layers=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1), (2, 2)]),
    head_dim=st.sampled_from([32, 64]),
    mix=MIXES,
    tied=st.booleans(),
    factors=st.booleans(),
    length=st.integers(1, 9),
)
def test_llama_is_what_numpy_computes(
    seed: int,
    layers: int,
    heads: tuple[int, int],
    head_dim: int,
    mix: list[str],
    tied: bool,
    factors: bool,
    length: int,
) -> None:
    hidden = hidden_for(mix)
    heads = (heads[0] * (hidden // 64), heads[1])
    checkpoint = llama(
        seed,
        layers=layers,
        hidden=hidden,
        heads=heads[0],
        kv_heads=heads[1],
        head_dim=head_dim if hidden == 64 else 64,
        feed_forward=hidden * 2,
        mix=mix,
        tied=tied,
        factors=factors,
    )
    ids = np.random.default_rng(seed).integers(0, 40, length).tolist()
    close(oracle.logits(models.load(checkpoint).ir_model, ids), forward_llama(checkpoint, ids))


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    layers=st.sampled_from([1, 5, 7]),
    window=st.integers(1, 12),
    heads=st.sampled_from([(4, 1), (4, 2), (4, 4)]),
    mix=MIXES,
    factor=st.sampled_from([None, 8.0]),
    length=st.integers(1, 14),
)
def test_gemma3_is_what_numpy_computes(
    seed: int, layers: int, window: int, heads: tuple[int, int], mix: list[str], factor: float | None, length: int
) -> None:
    hidden = hidden_for(mix)
    checkpoint = gemma3(
        seed,
        layers=layers,
        hidden=hidden,
        heads=heads[0],
        kv_heads=heads[1],
        head_dim=64,
        feed_forward=hidden,
        window=window,
        mix=mix,
        rope_factor=factor,
    )
    ids = np.random.default_rng(seed).integers(0, 40, length).tolist()
    close(oracle.logits(models.load(checkpoint).ir_model, ids), forward_gemma3(checkpoint, ids))


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    layers=st.integers(1, 3),
    heads=st.sampled_from([(4, 1), (4, 2), (8, 8)]),
    mix=MIXES,
    tied=st.booleans(),
    length=st.integers(1, 9),
)
def test_qwen3_is_what_numpy_computes(
    seed: int, layers: int, heads: tuple[int, int], mix: list[str], tied: bool, length: int
) -> None:
    hidden = hidden_for(mix)
    checkpoint = qwen3(
        seed,
        layers=layers,
        hidden=hidden,
        heads=heads[0],
        kv_heads=heads[1],
        head_dim=64,
        feed_forward=hidden * 2,
        mix=mix,
        tied=tied,
    )
    ids = np.random.default_rng(seed).integers(0, 40, length).tolist()
    close(oracle.logits(models.load(checkpoint).ir_model, ids), forward_qwen3(checkpoint, ids))


@pytest.mark.parametrize("far", [0, 200])
def test_positions_matter_only_by_their_differences(far: int) -> None:
    """RoPE is relative: the same tokens further on give the same logits."""
    model = models.load(llama(1)).ir_model
    ids = np.array([3, 1, 4, 1, 5])
    here = oracle.evaluate(model, {"tokens": ids, "positions": np.arange(5)})["logits"]
    there = oracle.evaluate(model, {"tokens": ids, "positions": np.arange(5) + far})["logits"]
    close(there, here.astype(np.float64))
