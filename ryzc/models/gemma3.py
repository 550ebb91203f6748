"""The text model of Gemma 3 (arXiv:2503.19786) from GGUF.

Five of six layers see a sliding window and turn by a base of 10000; every sixth sees all and turns by
``rope.freq_base``. Queries and keys are normed per head before RoPE (halves of a head, not neighbours); each
block lies between two norms; the feed-forward is GeGLU; embeddings are multiplied by ``sqrt(hidden)``.
Gemma's norms multiply by ``1 + w``: the converter has added the 1, so the file's weights are used as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import onnx_ir as ir

from ryzc.errors import UnsupportedError
from ryzc.graph import nodes, ops
from ryzc.models import architecture, blocks
from ryzc.models.architecture import NOT_KNOWN, Keys, Weights
from ryzc.sources.checkpoint import Checkpoint

GLOBAL_EVERY = 6
LAYERS_27B = 62


@dataclass(frozen=True)
class Config(architecture.Config):
    """A Gemma 3's numbers.

    Attributes:
        rope_base: of the layers that see everything.
        rope_base_local: of the layers with a window.
        rope_factor: positions of the layers that see everything are divided by it.
        attention_scale: what scores are multiplied by.
    """

    rope_base: float
    rope_base_local: float
    rope_factor: float
    attention_scale: float

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        keys = Keys(checkpoint)
        vocab_size = architecture.vocabulary_size(checkpoint, "token_embd.weight")
        layers = keys.integer("block_count", high=architecture.MAX_LAYERS)
        hidden = keys.integer("embedding_length")
        heads = keys.integer("attention.head_count")
        kv_heads = keys.integer("attention.head_count_kv", heads)
        head_dim = keys.integer("attention.key_length", high=architecture.MAX_HEAD_DIM)
        window = keys.integer("attention.sliding_window")
        architecture.check_heads(checkpoint, heads, kv_heads, head_dim)
        keys.must_be("vocab_size", vocab_size, f"the embedding table has {vocab_size} rows")
        keys.must_be("attention.value_length", head_dim, f"keys have {head_dim} elements")
        keys.must_be("rope.dimension_count", head_dim, f"only whole heads of {head_dim} are rotated")
        config = cls(
            name="gemma3",
            vocab_size=vocab_size,
            context_length=keys.integer("context_length"),
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            feed_forward=keys.integer("feed_forward_length"),
            epsilon=keys.real("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
            windows=tuple(0 if (i + 1) % GLOBAL_EVERY == 0 else window for i in range(layers)),
            rope_base=keys.real("rope.freq_base", 1e6, low=1.0, high=1e12),
            rope_base_local=keys.real("rope.freq_base_swa", 1e4, low=1.0, high=1e12),
            rope_factor=_rope_factor(checkpoint, keys),
            attention_scale=_attention_scale(layers, hidden, heads, head_dim),
        )
        keys.finish()
        return config


def graph(config: Config, checkpoint: Checkpoint) -> ir.Model:
    """The semantic graph.

    Raises:
        SourceError: a tensor is missing or has another shape than the configuration says.
        UnsupportedError: a tensor is left over.
    """
    model = nodes.new_model("gemma3", config.metadata())
    g = model.graph
    weights = Weights(g, checkpoint)
    tokens, positions = blocks.token_inputs(g)

    everywhere = blocks.inverse_frequencies(config.rope_base, config.head_dim) / config.rope_factor
    nearby = blocks.inverse_frequencies(config.rope_base_local, config.head_dim)
    angles_global = blocks.rope_angles(g, positions, everywhere, name="rope")
    angles_local = blocks.rope_angles(g, positions, nearby, name="rope_local")

    table = weights("token_embd.weight", config.vocab_size, config.hidden)
    x = blocks.scaled(g, blocks.embedding(g, table, tokens), math.sqrt(config.hidden), name="embedding.scaled")
    for layer in range(config.layers):
        angles = angles_local if config.windows[layer] else angles_global
        x = _attention(g, config, weights, layer, x, angles, positions)
        x = _feed_forward(g, config, weights, layer, x)
    x = blocks.rms_norm(g, x, weights("output_norm.weight", config.hidden), config.epsilon, name="output_norm")
    head = table
    if "output.weight" in weights:
        head = weights("output.weight", config.vocab_size, config.hidden)
    g.outputs.append(blocks.linear(g, x, head, name="logits"))

    weights.finish()
    nodes.drop_unused(g)
    ops.attach(model)
    return model


def _attention(
    g: ir.Graph,
    config: Config,
    weights: Weights,
    layer: int,
    x: ir.Value,
    angles: tuple[ir.Value, ir.Value],
    positions: ir.Value,
) -> ir.Value:
    at = f"blk.{layer}"
    hidden, head_dim, epsilon = config.hidden, config.head_dim, config.epsilon
    q_width, k_width = config.heads * head_dim, config.kv_heads * head_dim
    h = blocks.rms_norm(g, x, weights(f"{at}.attn_norm.weight", hidden), epsilon, name=f"{at}.attn_norm")
    q = blocks.linear(g, h, weights(f"{at}.attn_q.weight", q_width, hidden), name=f"{at}.attn_q")
    k = blocks.linear(g, h, weights(f"{at}.attn_k.weight", k_width, hidden), name=f"{at}.attn_k")
    v = blocks.linear(g, h, weights(f"{at}.attn_v.weight", k_width, hidden), name=f"{at}.attn_v")
    q_norm, k_norm = weights(f"{at}.attn_q_norm.weight", head_dim), weights(f"{at}.attn_k_norm.weight", head_dim)
    q = blocks.head_norm(g, q, q_norm, config.heads, epsilon, name=f"{at}.attn_q_norm")
    k = blocks.head_norm(g, k, k_norm, config.kv_heads, epsilon, name=f"{at}.attn_k_norm")
    q = blocks.rope(g, q, angles, config.heads, interleaved=False, name=f"{at}.attn_q.rope")
    k = blocks.rope(g, k, angles, config.kv_heads, interleaved=False, name=f"{at}.attn_k.rope")
    y = blocks.attention(
        g,
        q,
        k,
        v,
        positions,
        heads=config.heads,
        kv_heads=config.kv_heads,
        scale=config.attention_scale,
        window=config.windows[layer],
        name=f"{at}.attn",
    )
    out = blocks.linear(g, y, weights(f"{at}.attn_output.weight", hidden, q_width), name=f"{at}.attn_output")
    post = weights(f"{at}.post_attention_norm.weight", hidden)
    out = blocks.rms_norm(g, out, post, epsilon, name=f"{at}.post_attention_norm")
    return blocks.residual(g, x, out, name=f"{at}.attn_residual")


def _feed_forward(g: ir.Graph, config: Config, weights: Weights, layer: int, x: ir.Value) -> ir.Value:
    at = f"blk.{layer}"
    hidden, width, epsilon = config.hidden, config.feed_forward, config.epsilon
    h = blocks.rms_norm(g, x, weights(f"{at}.ffn_norm.weight", hidden), epsilon, name=f"{at}.ffn_norm")
    gate = blocks.linear(g, h, weights(f"{at}.ffn_gate.weight", width, hidden), name=f"{at}.ffn_gate")
    up = blocks.linear(g, h, weights(f"{at}.ffn_up.weight", width, hidden), name=f"{at}.ffn_up")
    y = blocks.geglu(g, gate, up, name=f"{at}.ffn_gated")
    down = blocks.linear(g, y, weights(f"{at}.ffn_down.weight", hidden, width), name=f"{at}.ffn_down")
    post = weights(f"{at}.post_ffw_norm.weight", hidden)
    down = blocks.rms_norm(g, down, post, epsilon, name=f"{at}.post_ffw_norm")
    return blocks.residual(g, x, down, name=f"{at}.ffn_residual")


def _rope_factor(checkpoint: Checkpoint, keys: Keys) -> float:
    """The linear scaling that Gemma 3 of 4B and more uses on its global layers; 1 where there is none."""
    kind = keys.text("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UnsupportedError(f"{checkpoint.path}: gemma3.rope.scaling.type {kind!r} is not known", hint=NOT_KNOWN)
    factor = keys.real("rope.scaling.factor", None if kind == "linear" else 1.0, low=1.0, high=1e6)
    return factor if kind == "linear" else 1.0


def _attention_scale(layers: int, hidden: int, heads: int, head_dim: int) -> float:
    """``query_pre_attn_scalar ** -0.5``, which GGUF does not store.

    It is the head size in every published size but 27B, where it is ``hidden / heads``.
    """
    return 1 / math.sqrt(hidden / heads if layers == LAYERS_27B else head_dim)
