"""Small random BitNet models: the same weights in every form in which checkpoints keep them.

All numbers are exact in float16 and bfloat16 alike, so that no form rounds them: ternary weights have scales of few
bits, and master weights are such that their mean magnitude is the scale and rounding them gives the ternary ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf_writer
import ml_dtypes
import numpy as np
import numpy.typing as npt
import tiny_vocabularies
from tiny_models import EMPTY_VOCABULARY

from ryzc import formats
from ryzc.sources import tokenizers
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

    @property
    def packed(self) -> U8:
        """As transformers packs rows: ``uint8 [N / 4, K]``."""
        codes = (self.trits + 1).astype(np.uint8).reshape(4, -1, self.trits.shape[1])
        return codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6

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


# -- directories as transformers reads them ----------------------------------------------------------------------------

TORCH_TYPES = {"uint8": "U8", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}
QUANTIZATION = {
    "offline": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    "online": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
    "bitlinear": {"quant_method": "bitnet", "modules_to_not_convert": None},
    "plain": None,
    "stretched": None,
}
"""``quantization_config`` of each form that :func:`write_hf` writes."""


def hf_config(shape: Shape, model_type: str, form: str) -> dict[str, object]:
    """``config.json`` of a model of type ``bitnet`` or ``llama``."""
    config: dict[str, object] = {
        "architectures": [{"bitnet": "BitNetForCausalLM", "llama": "LlamaForCausalLM"}[model_type]],
        "model_type": model_type,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": {"bitnet": "relu2", "llama": "silu"}[model_type],
        "rms_norm_eps": shape.epsilon,
        "rope_theta": shape.rope_base,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if form == "stretched":
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    if QUANTIZATION[form] is not None:
        config["quantization_config"] = QUANTIZATION[form]
    return config


def write_hf(path: Path, made: Model, form: str, model_type: str = "bitnet") -> Path:
    """The model as a directory that transformers loads.

    Args:
        form: a key of :data:`QUANTIZATION`: ``offline`` and ``bitlinear`` are packed, ``online`` has master weights in
            bfloat16, ``plain`` is a llama of the rounded weights, and ``stretched`` one with RoPE as Llama 3.1 has it.
    """
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    for name, values in made.floats.items():
        tensors[f"{_hf_name(name)}.weight"] = values.astype(ml_dtypes.bfloat16)
    for name, matrix in made.matrices.items():
        rotated = model_type == "llama" and name.endswith(("attn_q", "attn_k"))
        ours = Matrix(_halves(matrix.trits, made.shape.head_dim), matrix.scale) if rotated else matrix
        weight = f"{_hf_name(name)}.weight"
        if form in ("online", "plain", "stretched"):
            tensors[weight] = (ours.master if form == "online" else ours.weights).astype(ml_dtypes.bfloat16)
            continue
        tensors[weight] = ours.packed
        scale = np.float32(ours.scale)
        tensors[f"{weight}_scale"] = np.array([scale if form == "offline" else np.float32(1) / scale], np.float32)
    path.mkdir(exist_ok=True)
    write_safetensors(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps(hf_config(made.shape, model_type, form)))
    (path / "tokenizer.json").write_text(tokenizers.build(tiny_vocabularies.bpe()))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return path


def write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Path:
    """A safetensors file, by its specification."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": TORCH_TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def _hf_name(name: str) -> str:
    if not name.startswith("blk."):
        return HF_NAMES[name]
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}"


def _halves(rows: I8, head_dim: int) -> I8:
    """Rows of heads from neighbours that turn together to halves that do."""
    turned = np.empty_like(rows)
    for head in range(0, len(rows), head_dim):
        for i in range(head_dim // 2):
            turned[head + i] = rows[head + 2 * i]
            turned[head + head_dim // 2 + i] = rows[head + 2 * i + 1]
    return turned
