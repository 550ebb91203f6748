"""BitNet b1.58 in PyTorch: weights of -1, 0 and 1 from the first step on.

The architecture is that of BitNet b1.58 2B4T (arXiv:2504.12285): pre-norm blocks of grouped-query attention with
rotary positions and of a feed-forward part gated by a squared ReLU, a further norm before the last linear layer of
each ("sub-norm"), and an embedding that is also the head. Every linear layer but the head multiplies ternary weights
with activations of 8 bits (arXiv:2402.17764):

    scale_w = mean |W|                        one for the matrix, held in float16
    w       = clip(round(W / mean |W|), -1, 1)
    scale_x = max |x| / 127                   one for the token
    c       = clip(round(x / scale_x), -128, 127)
    y       = (c · w) scale_x scale_w

Gradients pass through both roundings as if they were not there (straight-through estimator), to float32 master
weights that only training keeps. The arithmetic is that of ``BitNetForCausalLM`` of transformers, except that the
weights' scale is rounded to float16 in training already, because the file cannot hold more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from ryzc.errors import UsageError

Tensor: TypeAlias = Any
"""``torch.Tensor``; PyTorch is optional, so types do not come from it."""

BLOCK = 256
"""Ternary weights are stored in blocks of so many (TQ2_0)."""

EPSILON = 1e-5
"""The least scale of weights or largest activation of a token, so that nothing is divided by zero."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        vocabulary: tokens.
        context: positions it is trained for.
        layers: blocks.
        hidden: width of the residual stream.
        heads: of queries; each is ``hidden / heads`` wide.
        kv_heads: of keys and values.
        feed_forward: width inside of the feed-forward part.
        rope_base: of the rotary positions.
        norm_epsilon: of the norms.
    """

    vocabulary: int
    context: int = 512
    layers: int = 6
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 768
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden % BLOCK or self.feed_forward % BLOCK:
            raise UsageError(
                f"the widths {self.hidden} and {self.feed_forward} are not both multiples of {BLOCK}",
                hint=f"ternary weights are stored in blocks of {BLOCK}",
            )
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise UsageError(
                f"{self.heads} heads, {self.kv_heads} of keys and values, do not fit a width of {self.hidden}",
                hint="the width is a multiple of twice the heads, and the heads one of --kv-heads",
            )

    @property
    def head_width(self) -> int:
        """Elements of a head."""
        return self.hidden // self.heads


class BitProduct(torch.autograd.Function):
    """The product of rounded activations and ternary weights, and its straight-through gradients.

    With ``narrow`` the factors of all three products are bfloat16, which holds codes and ternary weights exactly; the
    forward product's result is then rounded to bfloat16 too. Without, all integer sums are exact in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, narrow: bool) -> Tensor:
        """float32 [..., K] times [N, K] -> float32 [..., N]."""
        kind = torch.bfloat16 if narrow else torch.float32
        ternary, scale = ternarize(weight)
        codes, steps = round_tokens(x)
        codes, ternary = codes.to(kind), ternary.to(kind)
        ctx.save_for_backward(codes, steps, ternary, scale)
        return functional.linear(codes, ternary).float() * (steps * scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of what both roundings were given."""
        codes, steps, ternary, scale = ctx.saved_tensors
        towards_x = ((gradient * scale).to(codes.dtype) @ ternary).float()
        rows = (gradient * steps).to(codes.dtype).flatten(0, -2)
        return towards_x, (rows.t() @ codes.flatten(0, -2)).float(), None


def ternarize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as codes and scale.

    Returns:
        Codes -1, 0, 1 as float32, and the float32 scale, a value that float16 can hold.
    """
    mean = weight.abs().mean().clamp(min=EPSILON)
    return (weight / mean).round().clamp(-1, 1), mean.half().float()


def round_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as codes of 8 bits, still float32, and the step of each token, float32 [..., 1]."""
    largest = x.abs().amax(-1, keepdim=True).clamp(min=EPSILON)
    return (x * (127 / largest)).round().clamp(-128, 127), largest / 127


class BitLinear(nn.Module):
    """A linear layer without bias that computes as the module's head says.

    Attributes:
        weight: master weights, float32 [outputs, inputs].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor, narrow: bool) -> Tensor:
        return BitProduct.apply(x, self.weight, narrow)


class Norm(nn.Module):
    """Root-mean-square norm with a weight an element."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Block(nn.Module):
    """Attention and feed-forward; modules have the names of GGUF's tensors."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, inner, kv = shape.hidden, shape.feed_forward, shape.kv_heads * shape.head_width
        self.attn_norm = Norm(hidden, shape.norm_epsilon)
        self.attn_q = BitLinear(hidden, hidden)
        self.attn_k = BitLinear(hidden, kv)
        self.attn_v = BitLinear(hidden, kv)
        self.attn_sub_norm = Norm(hidden, shape.norm_epsilon)
        self.attn_output = BitLinear(hidden, hidden)
        self.ffn_norm = Norm(hidden, shape.norm_epsilon)
        self.ffn_gate = BitLinear(hidden, inner)
        self.ffn_up = BitLinear(hidden, inner)
        self.ffn_sub_norm = Norm(inner, shape.norm_epsilon)
        self.ffn_down = BitLinear(inner, hidden)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], narrow: bool) -> Tensor:
        x = x + self.attend(self.attn_norm(x), rotation, narrow)
        return x + self.feed(self.ffn_norm(x), narrow)

    def attend(self, x: Tensor, rotation: tuple[Tensor, Tensor], narrow: bool) -> Tensor:
        """Causal grouped-query attention over float32 [B, T, hidden]."""
        q, k, v = (
            layer(x, narrow).unflatten(-1, (-1, self.shape.head_width)).transpose(1, 2)
            for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, rotation), rotate(k, rotation)
        if narrow:
            q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.attn_output(self.attn_sub_norm(mixed.float().transpose(1, 2).flatten(2)), narrow)

    def feed(self, x: Tensor, narrow: bool) -> Tensor:
        """relu(gate)² · up, normed and projected back."""
        gated = functional.relu(self.ffn_gate(x, narrow)).square() * self.ffn_up(x, narrow)
        return self.ffn_down(self.ffn_sub_norm(gated), narrow)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: element ``i`` of a head turns with element ``i + width / 2``."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class BitNet(nn.Module):
    """A language model; made with weights of a normal distribution from ``seed``.

    Args:
        shape: its sizes.
        seed: of the first weights.
    """

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blk = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.output_norm = Norm(shape.hidden, shape.norm_epsilon)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.dim() == 2:
                    weight.normal_(0.0, 0.02, generator=generator)
        turns = shape.rope_base ** (-torch.arange(0, shape.head_width, 2).float() / shape.head_width)
        angles = torch.outer(torch.arange(shape.context).float(), turns)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, narrow: bool = False) -> Tensor:
        """Logits.

        Args:
            ids: int64 [B, T], T at most the context.
            narrow: multiply in bfloat16, see :class:`BitProduct`.

        Returns:
            float32 [B, T, vocabulary].
        """
        rotation = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, rotation, narrow)
        x, head = self.output_norm(x), self.token_embd.weight
        if narrow:
            return functional.linear(x.bfloat16(), head.bfloat16()).float()
        return functional.linear(x, head)
