"""A trained model as a GGUF file of the architecture ``bitnet-b1.58``, ready for ``ryzc build`` and ``ryzc run``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from ryzc import formats
from ryzc.formats.weight_format import AffineFormat, Codes
from ryzc.sources.checkpoint import StoredTensor
from ryzc.training import gguf
from ryzc.training.model import BitLinear, Shape, Tensor, ternarize
from ryzc.training.trainer import EMBEDDING_FORMAT, Training

ARCHITECTURE = "bitnet-b1.58"
TERNARY_FORMAT = "tq2_0"
MOSTLY_TQ2_0 = 37
"""llama.cpp's number for files whose matrices are mostly TQ2_0."""


def write(training: Training, path: Path, *, name: str, license_: str = "") -> None:
    """Write what was trained; the embedding must be settled (:meth:`.Training.settle`).

    Args:
        training: the model, its vocabulary and how it came about, which the metadata tells.
        path: the file.
        name: of the model.
        license_: of weights and text, as an SPDX expression; nothing is stated where it is empty.

    Raises:
        OSError: it cannot be written.
    """
    shape = training.shape
    metadata: dict[str, gguf.Value] = {
        "general.architecture": ARCHITECTURE,
        "general.name": name,
        "general.file_type": MOSTLY_TQ2_0,
        **({"general.license": license_} if license_ else {}),
        "general.training.corpus.sha256": training.corpus.sha256,
        "general.training.steps": training.step,
        "general.training.held_out_tokens": training.held_out_tokens(),
        "general.training.held_out_loss": training.held_out_loss(),
        **{f"general.training.recipe.{key}": value for key, value in asdict(training.recipe).items()},
        **{f"{ARCHITECTURE}.{key}": value for key, value in _sizes(shape).items()},
        **gguf.vocabulary_keys(training.vocabulary),
    }
    gguf.write(path, metadata, tensors(training))


def _sizes(shape: Shape) -> dict[str, gguf.Value]:
    return {
        "vocab_size": shape.vocabulary,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "block_count": shape.layers,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.layer_norm_rms_epsilon": shape.norm_epsilon,
        "rope.dimension_count": shape.head_width,
        "rope.freq_base": shape.rope_base,
    }


def tensors(training: Training) -> list[StoredTensor]:
    """The model's tensors as a file stores them, by the names of GGUF, which are the modules'."""
    model = training.model
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, BitLinear)}
    stored = []
    for name, weight in model.state_dict().items():
        shape = tuple(weight.shape)
        if name in linear:
            stored.append(StoredTensor(name, TERNARY_FORMAT, shape, _ternary(weight)))
        else:
            kind = EMBEDDING_FORMAT if len(shape) == 2 else "f32"
            floats = np.ascontiguousarray(weight.cpu().numpy(), np.float32)
            data = formats.get(kind).quantize(floats.reshape(-1, shape[-1])).reshape(*shape[:-1], -1)
            stored.append(StoredTensor(name, kind, shape, data))
    return stored


def _ternary(weight: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A matrix in TQ2_0, every block under the matrix's one scale."""
    format_ = formats.get(TERNARY_FORMAT)
    assert isinstance(format_, AffineFormat)
    codes, scale = ternarize(weight)
    q = (codes.cpu().numpy() + format_.zero).astype(np.uint8)
    blocks = (q.shape[0], q.shape[1] // format_.block)
    return format_.unparse(Codes(q=q, d=np.full(blocks, float(scale), np.float16)))
