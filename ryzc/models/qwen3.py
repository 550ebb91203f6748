"""The dense models of Qwen3 (arXiv:2505.09388) from GGUF.

A llama with heads of a size of their own (``attention.key_length``: 16 heads of 128 elements on a stream of
1024), whose queries and keys are normed per head before RoPE, which turns halves of a head and not
neighbours. No biases. The mixtures of experts call themselves ``qwen3moe``; scaling of RoPE by metadata is
refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import onnx_ir as ir

from ryzc.graph import nodes, ops
from ryzc.models import architecture, blocks
from ryzc.models.architecture import Keys, Weights
from ryzc.sources.checkpoint import Checkpoint


@dataclass(frozen=True)
class Config(architecture.Config):
    """A Qwen3's numbers.

    Attributes:
        rope_base: the base of RoPE's frequencies.
    """

    rope_base: float

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        keys = Keys(checkpoint)
        vocab_size = architecture.vocabulary_size(checkpoint, "token_embd.weight")
        layers = keys.integer("block_count", high=architecture.MAX_LAYERS)
        heads = keys.integer("attention.head_count")
        kv_heads = keys.integer("attention.head_count_kv", heads)
        head_dim = keys.integer("attention.key_length", high=architecture.MAX_HEAD_DIM)
        architecture.check_heads(checkpoint, heads, kv_heads, head_dim)
        keys.must_be("vocab_size", vocab_size, f"the embedding table has {vocab_size} rows")
        keys.must_be("attention.value_length", head_dim, f"keys have {head_dim} elements")
        keys.must_be("rope.dimension_count", head_dim, f"only whole heads of {head_dim} are rotated")
        keys.must_be("rope.scaling.type", "none", "RoPE scaling by metadata is not implemented")
        config = cls(
            name="qwen3",
            vocab_size=vocab_size,
            context_length=keys.integer("context_length"),
            layers=layers,
            hidden=keys.integer("embedding_length"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            feed_forward=keys.integer("feed_forward_length"),
            epsilon=keys.real("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
            windows=(0,) * layers,
            rope_base=keys.real("rope.freq_base", low=1.0, high=1e12),
        )
        keys.finish()
        return config


def graph(config: Config, checkpoint: Checkpoint) -> ir.Model:
    """The semantic graph.

    Raises:
        SourceError: a tensor is missing or has another shape than the configuration says.
        UnsupportedError: a tensor is left over, e.g. a bias.
    """
    model = nodes.new_model("qwen3", config.metadata())
    g = model.graph
    weights = Weights(g, checkpoint)
    tokens, positions = blocks.token_inputs(g)

    table = weights("token_embd.weight", config.vocab_size, config.hidden)
    inverse = blocks.inverse_frequencies(config.rope_base, config.head_dim)
    angles = blocks.rope_angles(g, positions, inverse, name="rope")

    x = blocks.embedding(g, table, tokens)
    for layer in range(config.layers):
        x = _attention(g, config, weights, layer, x, angles, positions)
        x = _feed_forward(g, config, weights, layer, x)
    x = blocks.rms_norm(g, x, weights("output_norm.weight", config.hidden), config.epsilon, name="output_norm")
    head = table
    if "output.weight" in weights:
        head = weights("output.weight", config.vocab_size, config.hidden)
    g.outputs.append(blocks.linear(g, x, head, name="logits"))

    weights.finish()
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
        scale=1 / math.sqrt(head_dim),
        window=config.windows[layer],
        name=f"{at}.attn",
    )
    out = blocks.linear(g, y, weights(f"{at}.attn_output.weight", hidden, q_width), name=f"{at}.attn_output")
    return blocks.residual(g, x, out, name=f"{at}.attn_residual")


def _feed_forward(g: ir.Graph, config: Config, weights: Weights, layer: int, x: ir.Value) -> ir.Value:
    at = f"blk.{layer}"
    hidden, width = config.hidden, config.feed_forward
    h = blocks.rms_norm(g, x, weights(f"{at}.ffn_norm.weight", hidden), config.epsilon, name=f"{at}.ffn_norm")
    gate = blocks.linear(g, h, weights(f"{at}.ffn_gate.weight", width, hidden), name=f"{at}.ffn_gate")
    up = blocks.linear(g, h, weights(f"{at}.ffn_up.weight", width, hidden), name=f"{at}.ffn_up")
    y = blocks.swiglu(g, gate, up, name=f"{at}.ffn_gated")
    down = blocks.linear(g, y, weights(f"{at}.ffn_down.weight", hidden, width), name=f"{at}.ffn_down")
    return blocks.residual(g, x, down, name=f"{at}.ffn_residual")
