"""The llama architecture (arXiv:2302.13971; grouped queries: arXiv:2307.09288) from GGUF.

Of the models that GGUF files call ``llama``: Llama 1 to 3, SmolLM 1 and 2, TinyLlama, Mistral 7B without
sliding window, and others of the same mathematics. Converters reorder the rows of ``attn_q`` and ``attn_k``
so that RoPE turns neighbouring elements. Llama 3.1's frequency scaling comes as the tensor
``rope_freqs.weight``; scaling by metadata, biases and experts are refused. Llamas whose linear layers were trained as
BitNet's (arXiv:2402.17764) round what these are given by token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import onnx_ir as ir

from ryzc import formats
from ryzc.errors import SourceError
from ryzc.graph import nodes, ops
from ryzc.models import architecture, blocks
from ryzc.models.architecture import INCOMPLETE, Keys, Weights
from ryzc.sources.checkpoint import Checkpoint


@dataclass(frozen=True)
class Config(architecture.Config):
    """A llama's numbers.

    Attributes:
        rope_base: the base of RoPE's frequencies.
        bit_linear: whether linear layers but the head are BitNet's.
    """

    rope_base: float
    bit_linear: bool

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        keys = Keys(checkpoint)
        vocab_size = architecture.vocabulary_size(checkpoint, "token_embd.weight")
        layers = keys.integer("block_count", high=architecture.MAX_LAYERS)
        hidden = keys.integer("embedding_length")
        heads = keys.integer("attention.head_count")
        kv_heads = keys.integer("attention.head_count_kv", heads)
        head_dim = keys.integer("attention.key_length", max(1, hidden // heads), high=architecture.MAX_HEAD_DIM)
        architecture.check_heads(checkpoint, heads, kv_heads, head_dim)
        keys.must_be("vocab_size", vocab_size, f"the embedding table has {vocab_size} rows")
        keys.must_be("attention.value_length", head_dim, f"keys have {head_dim} elements")
        keys.must_be("rope.dimension_count", head_dim, f"only whole heads of {head_dim} are rotated")
        keys.must_be("rope.scaling.type", "none", "RoPE scaling by metadata is not implemented")
        keys.must_be("tensor_data_layout", "Meta AI original pth", "the order of the rows is not known")
        keys.must_be("expert_count", 0, "experts are not implemented")
        keys.must_be("expert_used_count", 0, "experts are not implemented")
        config = cls(
            name="llama",
            vocab_size=vocab_size,
            context_length=keys.integer("context_length"),
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            feed_forward=keys.integer("feed_forward_length"),
            epsilon=keys.real("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
            windows=(0,) * layers,
            rope_base=keys.real("rope.freq_base", 10000.0, low=1.0, high=1e12),
            bit_linear=checkpoint.bit_linear is not None,
        )
        keys.finish()
        return config


def graph(config: Config, checkpoint: Checkpoint) -> ir.Model:
    """The semantic graph.

    Raises:
        SourceError: a tensor is missing or has another shape than the configuration says.
        UnsupportedError: a tensor is left over, e.g. a bias.
    """
    model = nodes.new_model("llama", config.metadata())
    g = model.graph
    weights = Weights(g, checkpoint)
    tokens, positions = blocks.token_inputs(g)

    table = weights("token_embd.weight", config.vocab_size, config.hidden)
    factors = _rope_factors(config, checkpoint, weights)
    inverse = blocks.inverse_frequencies(config.rope_base, config.head_dim, factors)
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
    q_width, k_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    h = blocks.rms_norm(g, x, weights(f"{at}.attn_norm.weight", config.hidden), config.epsilon, name=f"{at}.attn_norm")
    h = _layer_input(g, config, h)
    q = blocks.linear(g, h, _matrix(config, weights, f"{at}.attn_q", q_width, config.hidden), name=f"{at}.attn_q")
    k = blocks.linear(g, h, _matrix(config, weights, f"{at}.attn_k", k_width, config.hidden), name=f"{at}.attn_k")
    v = blocks.linear(g, h, _matrix(config, weights, f"{at}.attn_v", k_width, config.hidden), name=f"{at}.attn_v")
    q = blocks.rope(g, q, angles, config.heads, interleaved=True, name=f"{at}.attn_q.rope")
    k = blocks.rope(g, k, angles, config.kv_heads, interleaved=True, name=f"{at}.attn_k.rope")
    y = blocks.attention(
        g,
        q,
        k,
        v,
        positions,
        heads=config.heads,
        kv_heads=config.kv_heads,
        scale=1 / math.sqrt(config.head_dim),
        window=config.windows[layer],
        name=f"{at}.attn",
    )
    y = _layer_input(g, config, y)
    matrix = _matrix(config, weights, f"{at}.attn_output", config.hidden, q_width)
    out = blocks.linear(g, y, matrix, name=f"{at}.attn_output")
    return blocks.residual(g, x, out, name=f"{at}.attn_residual")


def _feed_forward(g: ir.Graph, config: Config, weights: Weights, layer: int, x: ir.Value) -> ir.Value:
    at = f"blk.{layer}"
    hidden, width = config.hidden, config.feed_forward
    h = blocks.rms_norm(g, x, weights(f"{at}.ffn_norm.weight", hidden), config.epsilon, name=f"{at}.ffn_norm")
    h = _layer_input(g, config, h)
    gate = blocks.linear(g, h, _matrix(config, weights, f"{at}.ffn_gate", width, hidden), name=f"{at}.ffn_gate")
    up = blocks.linear(g, h, _matrix(config, weights, f"{at}.ffn_up", width, hidden), name=f"{at}.ffn_up")
    y = _layer_input(g, config, blocks.swiglu(g, gate, up, name=f"{at}.ffn_gated"))
    down = blocks.linear(g, y, _matrix(config, weights, f"{at}.ffn_down", hidden, width), name=f"{at}.ffn_down")
    return blocks.residual(g, x, down, name=f"{at}.ffn_residual")


def _layer_input(g: ir.Graph, config: Config, x: ir.Value) -> ir.Value:
    """What linear layers are given: rounded by token where they are BitNet's."""
    return blocks.round_tokens(g, x, name=f"{nodes.name_of(x)}.rounded") if config.bit_linear else x


def _matrix(config: Config, weights: Weights, name: str, n: int, k: int) -> ir.Value:
    """The weight of a linear layer, which is rounded where it is BitNet's and not ternary yet."""
    return (weights.layer if config.bit_linear else weights)(f"{name}.weight", n, k)


def _rope_factors(config: Config, checkpoint: Checkpoint, weights: Weights) -> np.ndarray | None:
    """What ``rope_freqs.weight`` divides the frequencies by; ``None`` where there is no such tensor."""
    name = "rope_freqs.weight"
    tensor = checkpoint.tensors.get(name)
    if tensor is None:
        return None
    if tensor.shape != (config.head_dim // 2,):
        raise SourceError(
            f"{checkpoint.path}: tensor {name} has shape {list(tensor.shape)}, not [{config.head_dim // 2}]",
            hint=INCOMPLETE,
        )
    factors = formats.get(tensor.format).decode(tensor.data)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise SourceError(f"{checkpoint.path}: {name} holds factors that are not positive numbers", hint=INCOMPLETE)
    weights.skip(name)
    return factors
