"""A checkpoint that says something we do not implement, or not enough, is refused by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tiny_models import gemma3, llama, qwen3, stored

from ryzc import models
from ryzc.errors import SourceError, UnsupportedError, UserError
from ryzc.sources.checkpoint import Checkpoint, Vocabulary


def changed(checkpoint: Checkpoint, **metadata: Any) -> Checkpoint:
    """With keys set (dots spelt ``__``), or removed where the value is ``None``."""
    keys = {key.replace("__", "."): value for key, value in metadata.items()}
    merged = {**checkpoint.metadata, **keys}
    return dataclasses.replace(checkpoint, metadata={k: v for k, v in merged.items() if v is not None})


def with_tensor(checkpoint: Checkpoint, name: str, *shape: int) -> Checkpoint:
    tensor = stored(np.random.default_rng(0), name, "q4_1", shape)
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, name: tensor})


def test_architectures_are_found_by_file_name() -> None:
    assert models.names() == ("bitnet", "bitnet-25", "bitnet-b1.58", "gemma3", "llama", "qwen3")
    with pytest.raises(UnsupportedError, match="mamba9") as error:
        models.get("mamba9")
    assert "gemma3, llama, qwen3" in str(error.value.hint)
    with pytest.raises(UnsupportedError):
        models.get("architecture")


@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        ({"llama__mystery": 3}, UnsupportedError, "llama.mystery = 3"),
        ({"other.key": 3}, UnsupportedError, "other.key"),
        ({"llama__expert_count": 8}, UnsupportedError, "experts"),
        ({"llama__rope__scaling__type": "yarn"}, UnsupportedError, "scaling"),
        ({"llama__rope__scaling__factor": 2.0}, UnsupportedError, "rope.scaling.factor"),
        ({"llama__rope__dimension_count": 8}, UnsupportedError, "whole heads"),
        ({"llama__attention__value_length": 8}, UnsupportedError, "value_length"),
        ({"llama__attention__head_count_kv": [1, 2]}, UnsupportedError, "layer to layer"),
        ({"llama__attention__sliding_window": 4096}, UnsupportedError, "sliding_window"),
        ({"llama__vocab_size": 41}, UnsupportedError, "vocab_size"),
        ({"llama__block_count": None}, SourceError, "lacks llama.block_count"),
        ({"llama__block_count": 0}, SourceError, "outside"),
        ({"llama__block_count": 1 << 40}, SourceError, "outside"),
        ({"llama__block_count": "two"}, SourceError, "not a whole number"),
        ({"llama__block_count": True}, SourceError, "not a whole number"),
        ({"llama__block_count": 3}, SourceError, "blk.2.attn_norm.weight is missing"),
        ({"llama__block_count": 1}, UnsupportedError, "9 tensors"),
        ({"llama__attention__head_count": 3}, SourceError, "do not fit"),
        ({"llama__attention__layer_norm_rms_epsilon": math.nan}, SourceError, "outside"),
        ({"llama__rope__freq_base": math.inf}, SourceError, "outside"),
        ({"llama__feed_forward_length": 97}, SourceError, r"ffn_gate.weight has shape \[96, 64\]"),
        ({"llama__attention__key_length": 1 << 30}, SourceError, "outside"),
        ({"llama__embedding_length": 1 << 62}, SourceError, "outside"),
    ],
)
def test_llama_metadata(metadata: Mapping[str, Any], kind: type[UserError], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        models.load(changed(llama(), **metadata))
    assert "tiny-llama.gguf" in str(error.value)
    assert error.value.hint


def test_llama_ignores_what_says_nothing_about_the_mathematics() -> None:
    checkpoint = changed(llama(), general__file_type=3, quantize__imatrix__file="x", llama__rope__freq_base=None)
    config = models.load(checkpoint).config
    assert (config.layers, config.windows, config.vocab_size, config.head_dim) == (2, (0, 0), 40, 16)


@pytest.mark.parametrize(
    ("name", "shape"), [("blk.0.attn_q.bias", (64,)), ("blk.1.ffn_gate_inp.weight", (8, 64)), ("stray", (3,))]
)
def test_llama_stray_tensors(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match=name):
        models.load(with_tensor(llama(), name, *shape))


def test_missing_tensors() -> None:
    for name in llama(factors=True, tied=False).tensors:
        whole = llama(factors=True, tied=False)
        less = dataclasses.replace(whole, tensors={k: v for k, v in whole.tensors.items() if k != name})
        if name in ("output.weight", "rope_freqs.weight"):
            models.load(less)
            continue
        with pytest.raises(SourceError, match=name):
            models.load(less)


def test_rope_factors_are_checked() -> None:
    with pytest.raises(SourceError, match=r"rope_freqs.weight has shape \[7\]"):
        models.load(with_tensor(llama(), "rope_freqs.weight", 7))
    checkpoint = llama(factors=True)
    tensor = checkpoint.tensors["rope_freqs.weight"]
    zero = dataclasses.replace(tensor, data=np.zeros_like(tensor.data))
    with pytest.raises(SourceError, match="not positive"):
        models.load(dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, tensor.name: zero}))


def test_a_tokenizer_larger_than_the_table() -> None:
    vocabulary = Vocabulary("gpt2", "default", ["x"] * 41, [1] * 41, (), (), {})
    with pytest.raises(SourceError, match="41 tokens"):
        models.load(dataclasses.replace(llama(), vocabulary=vocabulary))


@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        ({"gemma3__attention__sliding_window": None}, SourceError, "sliding_window"),
        ({"gemma3__attention__key_length": None}, SourceError, "key_length"),
        ({"gemma3__final_logit_softcapping": 30.0}, UnsupportedError, "softcapping"),
        ({"gemma3__rope__scaling__type": "yarn"}, UnsupportedError, "yarn"),
        ({"gemma3__rope__scaling__type": "linear"}, SourceError, "rope.scaling.factor"),
        ({"gemma3__attention__value_length": 8}, UnsupportedError, "value_length"),
    ],
)
def test_gemma3_metadata(metadata: Mapping[str, Any], kind: type[UserError], message: str) -> None:
    with pytest.raises(kind, match=message):
        models.load(changed(gemma3(layers=1), **metadata))


def test_gemma3_windows_and_scale() -> None:
    config = models.load(gemma3(layers=7)).config
    assert config.windows == (5, 5, 5, 5, 5, 0, 5)
    from ryzc.models.gemma3 import _attention_scale

    assert _attention_scale(18, 640, 4, 256) == 1 / 16
    assert _attention_scale(62, 5376, 32, 128) == 168**-0.5


@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        ({"qwen3__attention__key_length": None}, SourceError, "key_length"),
        ({"qwen3__attention__key_length": 31}, SourceError, "do not fit"),
        ({"qwen3__attention__key_length": 64}, UnsupportedError, "value_length"),
        ({"qwen3__attention__head_count_kv": 3}, SourceError, "do not fit"),
        ({"qwen3__rope__freq_base": None}, SourceError, "freq_base"),
        ({"qwen3__rope__scaling__type": "yarn"}, UnsupportedError, "scaling"),
        ({"qwen3__rope__dimension_count": 16}, UnsupportedError, "whole heads"),
        ({"qwen3__expert_count": 128}, UnsupportedError, "expert_count"),
        ({"qwen3__pooling_type": 3}, UnsupportedError, "pooling_type"),
    ],
)
def test_qwen3_metadata(metadata: Mapping[str, Any], kind: type[UserError], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        models.load(changed(qwen3(), **metadata))
    assert "tiny-qwen3.gguf" in str(error.value)
    assert error.value.hint


def test_qwen3_tensors() -> None:
    whole = qwen3(tied=False)
    for name in whole.tensors:
        less = dataclasses.replace(whole, tensors={k: v for k, v in whole.tensors.items() if k != name})
        if name == "output.weight":
            models.load(less)
            continue
        with pytest.raises(SourceError, match=name):
            models.load(less)
    with pytest.raises(UnsupportedError, match=r"blk.0.attn_q.bias"):  # Qwen2 has them
        models.load(with_tensor(qwen3(), "blk.0.attn_q.bias", 128))
    with pytest.raises(SourceError, match=r"attn_k_norm.weight has shape \[64\]"):
        models.load(with_tensor(qwen3(), "blk.1.attn_k_norm.weight", 64))
