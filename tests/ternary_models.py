"""Small random BitNet models: the same weights in every form in which checkpoints keep them.

All numbers are exact in float16 and bfloat16 alike, so that no form rounds them: ternary weights have scales of few
bits, and master weights are such that their mean magnitude is the scale and rounding them gives the ternary ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf_writer
import ml_dtypes
import numpy as np
import numpy.typing as npt
from tiny_models import EMPTY_VOCABULARY

from ryzc import formats
from ryzc.sources.checkpoint import Checkpoint, MetadataValue, StoredTensor, Vocabulary

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

FORMATS = ("ternary", "tq1_0", "tq2_0", "f32", "f16", "bf16")
"""Formats of ryzc that keep ternary weights exactly."""
VOCABULARY = Vocabulary("gpt2", "default", ("a", "b"), (1, 1), (), (), {})
FLOAT_TYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Matrix:
    """Ternary weights ``trits int8 [N, K]`` times ``scale``; half of them are 0."""

    trits: I8
    scale: float

    @property
    def weights(self) -> F32:
        """``float32 [N, K]``."""
        return self.trits.astype(np.float32) * np.float32(self.scale)

    @property
    def master(self) -> F32:
        """Weights before rounding: a quarter of the scale where they become 0, and seven quarters elsewhere."""
        signs = np.where(np.arange(self.trits.size).reshape(self.trits.shape) % 3 == 0, np.float32(-1), np.float32(1))
        size = np.where(self.trits == 0, signs * np.float32(0.25), self.trits * np.float32(1.75))
        return size * np.float32(self.scale)

    @property
    def i2_s(self) -> U8:
        """A tensor of bitnet.cpp, its 32 last bytes being the scale and filling."""
        groups = (self.trits + 1).astype(np.uint8).reshape(-1, 4, 32)
        codes = groups[:, 0] << 6 | groups[:, 1] << 4 | groups[:, 2] << 2 | groups[:, 3]
        trailer = np.full(32, 0xA5, np.uint8)
        trailer[:4] = np.array([self.scale], "<f4").view(np.uint8)
        return np.concatenate([codes.reshape(-1), trailer])

    def stored(self, format_: str) -> U8:
        """Rows of a format of ryzc that keeps the weights exactly."""
        if format_ == "ternary":
            ternary = formats.get(format_)
            assert isinstance(ternary, formats.TernaryFormat)
            return ternary.unparse(self.trits, np.full(len(self.trits), self.scale, np.float32))
        if format_ in FLOAT_TYPES:
            return self.weights.astype(FLOAT_TYPES[format_]).view(np.uint8)
        return formats.get(format_).quantize(self.weights)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``hidden`` and ``feed_forward`` are multiples of 256, as TQ1_0 wants them."""

    layers: int = 2
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    vocab: int = 64
    epsilon: float = 1e-5
    rope_base: float = 500000.0
    context: int = 128

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Model:
    """Weights by their names in GGUF, without ``.weight``: ternary matrices of layers, and floats of all else."""

    shape: Shape
    matrices: dict[str, Matrix] = field(default_factory=dict)
    floats: dict[str, F32] = field(default_factory=dict)


def model(seed: int = 0, shape: Shape | None = None, *, sub_norms: bool = True) -> Model:
    """A random model; without ``sub_norms`` it is a llama."""
    s, rng = shape or Shape(), np.random.default_rng(seed)
    made = Model(s)

    def matrix(name: str, n: int, k: int) -> None:
        trits = np.zeros(n * k, np.int8)
        trits[: n * k // 2] = rng.choice(np.array([-1, 1], np.int8), n * k // 2)
        scale = int(rng.integers(16, 32)) / 32 / 2 ** int(np.log2(k) / 2)
        made.matrices[name] = Matrix(rng.permutation(trits).reshape(n, k), scale)

    def norm(name: str, width: int) -> None:
        made.floats[name] = (1 + rng.integers(-16, 17, width) / 64).astype(np.float32)

    made.floats["token_embd"] = (rng.integers(-96, 97, (s.vocab, s.hidden)) / 64).astype(np.float32)
    norm("output_norm", s.hidden)
    for i in range(s.layers):
        norm(f"blk.{i}.attn_norm", s.hidden)
        norm(f"blk.{i}.ffn_norm", s.hidden)
        if sub_norms:
            norm(f"blk.{i}.attn_sub_norm", s.hidden)
            norm(f"blk.{i}.ffn_sub_norm", s.feed_forward)
        matrix(f"blk.{i}.attn_q", s.hidden, s.hidden)
        matrix(f"blk.{i}.attn_k", s.kv_heads * s.head_dim, s.hidden)
        matrix(f"blk.{i}.attn_v", s.kv_heads * s.head_dim, s.hidden)
        matrix(f"blk.{i}.attn_output", s.hidden, s.hidden)
        matrix(f"blk.{i}.ffn_gate", s.feed_forward, s.hidden)
        matrix(f"blk.{i}.ffn_up", s.feed_forward, s.hidden)
        matrix(f"blk.{i}.ffn_down", s.hidden, s.feed_forward)
    return made


def metadata(shape: Shape, architecture: str) -> dict[str, MetadataValue]:
    """What a GGUF file says of the model."""
    keys: dict[str, MetadataValue] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.layer_norm_rms_epsilon": shape.epsilon,
        "rope.freq_base": shape.rope_base,
        "rope.dimension_count": shape.head_dim,
        "vocab_size": shape.vocab,
    }
    return {"general.architecture": architecture, **{f"{architecture}.{k}": v for k, v in keys.items()}}


def checkpoint(
    made: Model, architecture: str = "bitnet", *, mix: tuple[str, ...] = ("tq2_0",), scales: bool = False, seed: int = 0
) -> Checkpoint:
    """The model as a GGUF file's reader gives it.

    Args:
        mix: formats that layers draw theirs from; ``master`` is float32 before rounding.
        scales: whether weights are -1, 0 and 1, with a tensor ``.scale`` beside them.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, StoredTensor] = {}

    def put(name: str, format_: str, shape: tuple[int, ...], stored: U8) -> None:
        tensors[name] = StoredTensor(name, format_, shape, stored)

    for name, values in made.floats.items():
        put(f"{name}.weight", "f32", values.shape, values.view(np.uint8))
    for name, matrix in made.matrices.items():
        format_ = str(rng.choice(list(mix)))
        plain = Matrix(matrix.trits, 1.0) if scales else matrix
        if format_ == "master":
            put(f"{name}.weight", "f32", plain.trits.shape, plain.master.view(np.uint8))
        else:
            put(f"{name}.weight", format_, plain.trits.shape, plain.stored(format_))
        if scales:
            put(f"{name}.scale", "f32", (1,), np.array([matrix.scale], np.float32).view(np.uint8))
    keys: Mapping[str, MetadataValue] = metadata(made.shape, architecture)
    bit_linear = None if architecture.startswith("bitnet") else "packed"
    return Checkpoint(
        Path(f"tiny-{architecture}.gguf"), architecture, keys, tensors, EMPTY_VOCABULARY, bit_linear=bit_linear
    )


def write_gguf(
    path: Path, made: Model, format_: str, architecture: str = "bitnet", vocabulary: Vocabulary = VOCABULARY
) -> Path:
    """The model as a GGUF file; ``format_`` is of layers: ``i2_s``, or one of GGUF's in :data:`FORMATS`."""
    tensors = [gguf_writer.Tensor(f"{name}.weight", "f32", v.shape, v.tobytes()) for name, v in made.floats.items()]
    for name, matrix in made.matrices.items():
        data = matrix.i2_s if format_ == "i2_s" else matrix.stored(format_)
        tensors.append(gguf_writer.Tensor(f"{name}.weight", format_, matrix.trits.shape, data))
    keys = {**metadata(made.shape, architecture), **gguf_writer.vocabulary_keys(vocabulary)}
    return gguf_writer.write(path, keys, tensors)
