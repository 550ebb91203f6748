"""GGUF files with the shapes of real models and random weights: speed does not depend on values.

Each matrix repeats a tile of rows whose elements are about ``1 / sqrt(K)`` large, so that everything stays finite and a
file of a gigabyte is written in seconds. The vocabulary is of bytes and of names that no text contains.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ryzc import formats
from ryzc.formats import AffineFormat, Codes, lanes
from ryzc.templates.kernels import activations as act

TILE = 64
"""Rows that are drawn; the number of rows of every matrix is a multiple of it."""


@dataclass(frozen=True)
class Shape:
    """A model's numbers.

    Attributes:
        architecture: as GGUF calls it; ``qwen3`` has norms on queries and keys, ``bitnet`` before output and down
            projections.
        pre: its pre-tokenizer.
    """

    architecture: str
    pre: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab: int
    context: int
    rope_base: float
    epsilon: float


LLAMA_3_2_1B = Shape("llama", "llama-bpe", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 500000.0, 1e-5)
QWEN3_0_6B = Shape("qwen3", "qwen2", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1000000.0, 1e-6)
BITNET_2B_4T = Shape("bitnet", "llama-bpe", 30, 2560, 20, 5, 128, 6912, 128256, 4096, 500000.0, 1e-5)
"""Microsoft's BitNet b1.58 2B4T, gated by SiLU in place of a squared ReLU, because llama.cpp's ``bitnet`` is."""
BITNET_135M = Shape("bitnet", "llama-bpe", 30, 768, 12, 4, 64, 2048, 49152, 8192, 100000.0, 1e-5)
"""As deep and large as SmolLM2 135M, but 768 wide: its 576 are no multiple of the 256 weights of TQ1_0's blocks."""


def write(path: Path, shape: Shape, mix: str) -> Path:
    """Write a model beside its place and rename it when it is whole.

    Args:
        mix: ``q4_0`` (with a head in Q6_K), ``q8_0``, or ``q4_k_m``: as llama.cpp's quantizer mixes them. ``tq1_0``,
            ``tq2_0``, ``i2_s`` and ik_llama.cpp's ``iq2_bn``: ternary weights of the same values each, one scale a
            matrix, and a head in Q6_K.
    """
    rng = np.random.default_rng(0)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(unfinished, shape.architecture)
    _metadata(writer, shape)
    heads, kv_heads = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    _matrix(writer, rng, "token_embd", "q8_0" if mix == "q8_0" else "q6_k", shape.vocab, shape.hidden)
    _vector(writer, rng, "output_norm", shape.hidden)
    for layer in range(shape.layers):
        at, better = f"blk.{layer}", _better(mix, layer, shape.layers)
        plain = "q4_k" if mix == "q4_k_m" else mix
        _vector(writer, rng, f"{at}.attn_norm", shape.hidden)
        _matrix(writer, rng, f"{at}.attn_q", plain, heads, shape.hidden)
        _matrix(writer, rng, f"{at}.attn_k", plain, kv_heads, shape.hidden)
        _matrix(writer, rng, f"{at}.attn_v", better, kv_heads, shape.hidden)
        if shape.architecture == "qwen3":
            _vector(writer, rng, f"{at}.attn_q_norm", shape.head_dim)
            _vector(writer, rng, f"{at}.attn_k_norm", shape.head_dim)
        _matrix(writer, rng, f"{at}.attn_output", plain, shape.hidden, heads)
        if shape.architecture == "bitnet":
            _vector(writer, rng, f"{at}.attn_sub_norm", heads)
            _vector(writer, rng, f"{at}.ffn_sub_norm", shape.feed_forward)
        _vector(writer, rng, f"{at}.ffn_norm", shape.hidden)
        _matrix(writer, rng, f"{at}.ffn_gate", plain, shape.feed_forward, shape.hidden)
        _matrix(writer, rng, f"{at}.ffn_up", plain, shape.feed_forward, shape.hidden)
        _matrix(writer, rng, f"{at}.ffn_down", better, shape.hidden, shape.feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
    return path


def _better(mix: str, layer: int, layers: int) -> str:
    """The format of the values' and the down projection's matrices: half of them are Q6_K in Q4_K_M."""
    if mix != "q4_k_m":
        return mix
    first, last = layers // 8, 7 * layers // 8
    return "q6_k" if layer < first or layer >= last or (layer - first) % 3 == 2 else "q4_k"


def _metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_freq_base(shape.rope_base)
    if shape.architecture in ("llama", "bitnet"):
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_vocab_size(shape.vocab)
    letters = _byte_letters()
    tokens = [*letters, "Ġt", *(f"<|{i}|>" for i in range(len(letters) + 1, shape.vocab))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(letters) + 1) + [gguf.TokenType.UNUSED] * (len(tokens) - 257))
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(shape.vocab - 1)
    writer.add_add_bos_token(False)


def _byte_letters() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself where it is printable, else one above 255."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _vector(writer: gguf.GGUFWriter, rng: np.random.Generator, name: str, size: int) -> None:
    writer.add_tensor(f"{name}.weight", (1 + 0.1 * rng.standard_normal(size)).astype(np.float32))


def _matrix(
    writer: gguf.GGUFWriter, rng: np.random.Generator, name: str, format_: str, rows: int, columns: int
) -> None:
    if format_ in _UNKNOWN:
        _UNKNOWN[format_](writer, rng, name, rows, columns)
        return
    tile = stored(rng, format_, columns)
    repeated = np.broadcast_to(tile, (rows // TILE, *tile.shape))
    kind = gguf.GGMLQuantizationType[format_.upper()]
    writer.add_tensor(f"{name}.weight", repeated, raw_shape=(rows, tile.shape[1]), raw_dtype=kind)


class _Type(IntEnum):
    """Tensor types that the ``gguf`` package does not know."""

    I2_S = 36
    IQ2_BN = 135


def _i2_s(writer: gguf.GGUFWriter, rng: np.random.Generator, name: str, rows: int, columns: int) -> None:
    """As bitnet.cpp stores a matrix: 128 codes in 32 bytes, 32 of them in bits 6 and 7, and so on downwards."""
    codes = _ternary_codes(rng, columns)
    quarters = codes.q.reshape(-1, 4, 32)
    packed = np.bitwise_or.reduce(quarters << np.array([6, 4, 2, 0], np.uint8)[:, None], axis=1).reshape(-1)
    trailer = np.zeros(32, np.uint8)
    trailer[:4] = codes.d[:1, 0].astype("<f4").view(np.uint8)
    raw = np.concatenate([*[packed] * (rows // TILE), trailer])
    _raw(writer, name, rows, columns, raw, _Type.I2_S)


def _iq2_bn(writer: gguf.GGUFWriter, rng: np.random.Generator, name: str, rows: int, columns: int) -> None:
    """As ik_llama.cpp stores a matrix: rows of a float32 scale and 64 codes in 16 bytes, the first in the low bits."""
    codes = _ternary_codes(rng, columns)
    quarters = codes.q.reshape(TILE, -1, 4, 16)
    packed = np.bitwise_or.reduce(quarters << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2).reshape(TILE, -1)
    tile = np.concatenate([codes.d[:, :1].astype("<f4").view(np.uint8), packed], axis=1)
    _raw(writer, name, rows, columns, np.concatenate([tile] * (rows // TILE)).reshape(-1), _Type.IQ2_BN)


def _ternary_codes(rng: np.random.Generator, columns: int) -> Codes:
    fmt = formats.get("tq2_0")
    assert isinstance(fmt, AffineFormat)
    return fmt.parse(stored(rng, "tq2_0", columns))


def _raw(writer: gguf.GGUFWriter, name: str, rows: int, columns: int, raw: npt.NDArray[np.uint8], kind: Any) -> None:
    writer.add_tensor_info(f"{name}.weight", (rows, columns), np.dtype(np.int8), raw.nbytes, raw_dtype=kind)
    writer.tensors[-1][f"{name}.weight"].tensor = raw


_UNKNOWN = {"i2_s": _i2_s, "iq2_bn": _iq2_bn}


def layer(
    fmt: AffineFormat, rows: int, columns: int, tokens: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8], int]:
    """What a linear kernel alone reads: packed weights of so many rows, codes and records of tokens, and their unit."""
    weights = np.tile(stored(np.random.default_rng(0), fmt.name, columns), (rows // TILE, 1))
    x, scales = act.quantize(np.random.default_rng(1).standard_normal((tokens, columns)).astype(np.float32))
    unit = fmt.zero or 1
    return lanes.pack(fmt, weights).reshape(-1), act.rows(x), act.rows(act.records(x, scales, unit)), unit


def stored(rng: np.random.Generator, format_: str, columns: int) -> npt.NDArray[np.uint8]:
    """``uint8 [TILE, row_bytes]``: random codes of a format, weights of mean 0 and deviation ``1 / sqrt(columns)``."""
    fmt = formats.get(format_)
    assert isinstance(fmt, AffineFormat)
    levels = 3 if format_ in ("tq1_0", "tq2_0") else 1 << sum(fmt.planes)
    factor = 1 << max(0, fmt.scale_bits - 1)  # of scales, and as large a one of minima
    scale = math.sqrt(12 / (levels**2 - 1) / columns)

    def groups(bits: int) -> npt.NDArray[np.int8] | None:
        return np.full((TILE, columns // fmt.group), factor // 2, np.int8) if bits else None

    d = np.full((TILE, columns // fmt.block), scale / max(1, factor // 2), np.float16)
    codes = Codes(
        q=rng.integers(0, levels, (TILE, columns)).astype(np.uint8),
        d=d,
        s=groups(fmt.scale_bits),
        m=d * np.float16(levels / 2) if fmt.min_sign else None,
        t=groups(fmt.min_bits),
    )
    return fmt.unparse(codes)
