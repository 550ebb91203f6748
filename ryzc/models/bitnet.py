"""BitNet b1.58 (arXiv:2402.17764) from GGUF and Hugging Face checkpoints.

A llama whose linear layers, the head aside, have ternary weights and round what they are given to eight bits by token.
A norm more stands before the output projection of attention, and one before that of the feed-forward. RoPE turns halves
of a head and not neighbours. Two families, told apart by the name that files give the architecture:

* ``bitnet``, which is llama.cpp's: the feed-forward is gated by SiLU, as in the paper's models;
* ``bitnet-b1.58`` and ``bitnet-25``, Microsoft's 2B-4T (arXiv:2504.12285): it is gated by a squared ReLU.

Files may keep weights of -1, 0 and 1 with a tensor ``NAME.scale`` beside them, which multiplies a layer's output.
Scaling of RoPE and biases are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import onnx_ir as ir

from ryzc import formats
from ryzc.errors import SourceError, UnsupportedError
from ryzc.graph import nodes, ops
from ryzc.models import architecture, blocks
from ryzc.models.architecture import INCOMPLETE, NOT_KNOWN, Keys, Weights
from ryzc.sources.checkpoint import Checkpoint

_ACTIVATIONS = {"bitnet": "silu", "bitnet-b1.58": "relu2", "bitnet-25": "relu2"}


@dataclass(frozen=True)
class Config(architecture.Config):
    """A BitNet's numbers.

    Attributes:
        rope_base: the base of RoPE's frequencies.
        activation: of the feed-forward's gate: ``silu`` or ``relu2``.
    """

    rope_base: float
    activation: str

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
        kind = keys.text("rope.scaling.type", "none")
        if kind not in ("none", "linear"):  # converters write "linear" by a factor of 1
            raise UnsupportedError(
                f"{checkpoint.path}: {checkpoint.architecture}.rope.scaling.type {kind!r} is not known", hint=NOT_KNOWN
            )
        keys.must_be("rope.scaling.factor", 1.0, "RoPE scaling is not implemented")
        config = cls(
            name=checkpoint.architecture,
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
            activation=_ACTIVATIONS[checkpoint.architecture],
        )
        keys.finish()
        return config


def graph(config: Config, checkpoint: Checkpoint) -> ir.Model:
    """The semantic graph.

    Raises:
        SourceError: a tensor is missing or has another shape than the configuration says.
        UnsupportedError: a tensor is left over, e.g. a bias.
    """
    model = nodes.new_model(config.name, config.metadata())
    layer_of = _Layers(model.graph, checkpoint)
    g, weights = model.graph, layer_of.weights
    tokens, positions = blocks.token_inputs(g)

    table = weights("token_embd.weight", config.vocab_size, config.hidden)
    inverse = blocks.inverse_frequencies(config.rope_base, config.head_dim)
    angles = blocks.rope_angles(g, positions, inverse, name="rope")

    x = blocks.embedding(g, table, tokens)
    for layer in range(config.layers):
        x = _attention(g, config, layer_of, layer, x, angles, positions)
        x = _feed_forward(g, config, layer_of, layer, x)
    x = blocks.rms_norm(g, x, weights("output_norm.weight", config.hidden), config.epsilon, name="output_norm")
    head = table
    if "output.weight" in weights:
        head = weights("output.weight", config.vocab_size, config.hidden)
    g.outputs.append(blocks.linear(g, x, head, name="logits"))

    weights.finish()
    nodes.drop_unused(g)
    ops.attach(model)
    return model


class _Layers:
    """Norms and linear layers of a checkpoint, by their names in it."""

    def __init__(self, graph: ir.Graph, checkpoint: Checkpoint) -> None:
        self.weights = Weights(graph, checkpoint)
        self._graph = graph
        self._checkpoint = checkpoint

    def norm(self, x: ir.Value, epsilon: float, name: str) -> ir.Value:
        """RMS norm, and its result rounded by token."""
        weight = self.weights(f"{name}.weight", int(nodes.dims(x)[1]))
        normed = blocks.rms_norm(self._graph, x, weight, epsilon, name=name)
        return blocks.round_tokens(self._graph, normed, name=f"{name}.rounded")

    def linear(self, x: ir.Value, n: int, name: str) -> ir.Value:
        """A linear layer of ``n`` rows, times the number that the checkpoint has beside its weights, if any."""
        g = self._graph
        weight = self.weights.layer(f"{name}.weight", n, int(nodes.dims(x)[1]))
        scale = self._checkpoint.tensors.get(f"{name}.scale")
        if scale is None:
            return blocks.linear(g, x, weight, name=name)
        if scale.shape != (1,):
            raise SourceError(
                f"{self._checkpoint.path}: tensor {name}.scale has shape {list(scale.shape)}, not [1]", hint=INCOMPLETE
            )
        self.weights.skip(f"{name}.scale")
        factor = float(formats.get(scale.format).decode(scale.data)[0])
        if not math.isfinite(factor):
            raise SourceError(f"{self._checkpoint.path}: {name}.scale is {factor}", hint=INCOMPLETE)
        return blocks.scaled(g, blocks.linear(g, x, weight, name=f"{name}.unscaled"), factor, name=name)


def _attention(
    g: ir.Graph,
    config: Config,
    layers: _Layers,
    layer: int,
    x: ir.Value,
    angles: tuple[ir.Value, ir.Value],
    positions: ir.Value,
) -> ir.Value:
    at = f"blk.{layer}"
    q_width, k_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    h = layers.norm(x, config.epsilon, f"{at}.attn_norm")
    q = layers.linear(h, q_width, f"{at}.attn_q")
    k = layers.linear(h, k_width, f"{at}.attn_k")
    v = layers.linear(h, k_width, f"{at}.attn_v")
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
        scale=1 / math.sqrt(config.head_dim),
        window=config.windows[layer],
        name=f"{at}.attn",
    )
    y = layers.norm(y, config.epsilon, f"{at}.attn_sub_norm")
    out = layers.linear(y, config.hidden, f"{at}.attn_output")
    return blocks.residual(g, x, out, name=f"{at}.attn_residual")


def _feed_forward(g: ir.Graph, config: Config, layers: _Layers, layer: int, x: ir.Value) -> ir.Value:
    at = f"blk.{layer}"
    h = layers.norm(x, config.epsilon, f"{at}.ffn_norm")
    gate = layers.linear(h, config.feed_forward, f"{at}.ffn_gate")
    up = layers.linear(h, config.feed_forward, f"{at}.ffn_up")
    gated = blocks.swiglu if config.activation == "silu" else blocks.relu2_glu
    y = gated(g, gate, up, name=f"{at}.ffn_gated")
    y = layers.norm(y, config.epsilon, f"{at}.ffn_sub_norm")
    down = layers.linear(y, config.hidden, f"{at}.ffn_down")
    return blocks.residual(g, x, down, name=f"{at}.ffn_residual")
