"""Directories of Hugging Face checkpoints: ``config.json``, ``tokenizer.json`` and ``*.safetensors``.

Read are the models that transformers calls ``llama`` (RoPE plain, or stretched as Llama 3.1's) and ``bitnet``. What
comes out has the names, keys and order of rows of GGUF, so that an architecture is written once: queries and keys of a
llama turn neighbours there, and halves of a head here. As everywhere, a key or tensor that is not known is an error.

``quantization_config`` of method ``bitnet`` makes all linear layers but the head BitNet's (transformers,
``integrations/bitnet.py``):

=================  ===============  ========================================================================
``linear_class``   mode             weights
=================  ===============  ========================================================================
``bitlinear``      any              packed, see :mod:`.packed_rows`; outputs are *divided* by ``weight_scale``
``autobitlinear``  ``offline``      packed; outputs are *multiplied* by ``weight_scale``
``autobitlinear``  ``online``       floats, rounded by their mean magnitude at each use
=================  ===============  ========================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from ryzc import formats
from ryzc.errors import SourceError, UnsupportedError
from ryzc.sources import files, hf_tokenizer, packed_rows, safetensors
from ryzc.sources.checkpoint import Checkpoint, MetadataValue, StoredTensor
from ryzc.sources.safetensors import RawTensor

T = TypeVar("T", int, float, str, bool, dict[str, Any])

CONFIG: Final = "config.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
GENERATION_CONFIG: Final = "generation_config.json"
TEMPLATE: Final = "chat_template.jinja"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

MAX_CONFIG: Final = 1 << 24
MAX_TOKENIZER: Final = 1 << 28
MAX_SHARDS: Final = 4096
NOT_KNOWN: Final = "ryzc compiles only what it fully understands; please report the model"
INCOMPLETE: Final = "the directory may be incomplete; fetch the model again"

_FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_PACKED = "U8"

_ARCHITECTURES = {
    ("llama", "silu"): "llama",
    ("bitnet", "relu2"): "bitnet-b1.58",
    ("bitnet", "silu"): "bitnet",
}
"""Files of :mod:`ryzc.models` by ``model_type`` and ``hidden_act``."""

_IGNORED = {
    *("architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path"),
    *("use_cache", "initializer_range", "attention_dropout", "pretraining_tp", "bos_token_id", "pad_token_id"),
}
"""Keys that say nothing about the mathematics of inference, or what other files say."""

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d{1,6})\.(.+)\.weight")
_MAX_HEAD_DIM = 1 << 16
_SCALE = "_scale"
"""Behind the name of a packed weight."""


@dataclass(frozen=True)
class _BitLinear:
    """How linear layers are BitNet's.

    Attributes:
        packed: whether weights are; else they are floats to be rounded.
        divides: whether ``weight_scale`` is what outputs are divided by.
    """

    packed: bool
    divides: bool


def is_checkpoint(path: Path) -> bool:
    """Whether a directory claims to be such a checkpoint."""
    return (path / CONFIG).is_file() and ((path / WEIGHTS).is_file() or (path / INDEX).is_file())


def read(path: str | Path) -> Checkpoint:
    """Open a directory.

    Raises:
        SourceError: a file is missing or damaged, or they contradict each other.
        UnsupportedError: the model is of another type, or holds something that ryzc does not know.
    """
    path = Path(path)
    keys = _Keys(path / CONFIG)
    architecture = _architecture(keys)
    metadata, rope = _metadata(keys, architecture)
    bit_linear = _bit_linear(keys, architecture)
    tied = keys.take("tie_word_embeddings", bool, False)
    ends = keys.ids("eos_token_id")
    keys.finish()

    raw = _weights(path)
    tensors = _tensors(path, raw, bit_linear)
    if architecture == "llama":
        _turn_neighbours(path, tensors, metadata)
    if rope.factors is not None:
        name = "rope_freqs.weight"
        tensors[name] = StoredTensor(name, "f32", rope.factors.shape, rope.factors.view(np.uint8))
    if tied:
        tensors.pop("output.weight", None)
    elif "output.weight" not in tensors:
        raise SourceError(f"{path}: lm_head.weight is missing", hint=INCOMPLETE)

    generation, settings = _Keys(path / GENERATION_CONFIG, needed=False), _object(path / TOKENIZER_CONFIG)
    ends += generation.ids("eos_token_id")
    return Checkpoint(
        path=path,
        architecture=architecture,
        metadata=metadata,
        tensors=tensors,
        vocabulary=hf_tokenizer.vocabulary(files.text(path / hf_tokenizer.FILE, MAX_TOKENIZER), settings, ends, path),
        chat_template=_template(path, settings),
        provenance={"file": path.resolve().name, "bytes": sum(tensor.data.size for tensor in raw.values())},
        bit_linear=None if bit_linear is None else "packed" if bit_linear.packed else "master",
        generation=generation.numbers(),
    )


class _Keys:
    """An object in a file of JSON, each key read once and by type; :meth:`finish` complains about the rest.

    A key whose value is null counts as absent.
    """

    def __init__(self, path: Path, *, needed: bool = True, inside: dict[str, Any] | None = None) -> None:
        self.path = path
        found = inside if inside is not None else _object(path, needed=needed)
        self._unread = {key: value for key, value in found.items() if value is not None}

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """A value of a type; required where there is no default.

        Raises:
            SourceError: it is missing, or of another type.
        """
        value = self._unread.pop(key, default)
        if value is None:
            raise SourceError(f"{self.path}: lacks {key}", hint=INCOMPLETE)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise SourceError(f"{self.path}: {key} is {str(value)[:60]!r}, no {kind.__name__}", hint=INCOMPLETE)
        return value

    def ids(self, key: str) -> list[int]:
        """One token id or a list of them; empty where there is none."""
        value = self._unread.pop(key, [])
        found = value if isinstance(value, list) else [value]
        if not all(type(id_) is int for id_ in found):
            raise SourceError(f"{self.path}: {key} is no token id", hint=INCOMPLETE)
        return found

    def must_be(self, key: str, *values: object) -> None:
        """A key that may be absent, or have one of these values, because nothing else is implemented."""
        found = self._unread.pop(key, None)
        if found is not None and found not in values:
            raise UnsupportedError(f"{self.path}: {key} is {str(found)[:60]}, which is not implemented", hint=NOT_KNOWN)

    def numbers(self) -> dict[str, int | float]:
        """The numbers among what is left."""
        return {key: value for key, value in self._unread.items() if type(value) in (int, float)}

    def finish(self) -> None:
        """Raise if a key is left that nobody asked for."""
        left = sorted(self._unread.keys() - _IGNORED)
        if left:
            shown = ", ".join(f"{key} = {str(self._unread[key])[:60]}" for key in left[:5])
            raise UnsupportedError(f"{self.path}: holds {shown}, which ryzc does not know", hint=NOT_KNOWN)


def _object(path: Path, *, needed: bool = False) -> dict[str, Any]:
    """The object in a file; empty where it is not needed and not there."""
    if not needed and not path.exists():
        return {}
    return files.json_object(files.text(path, MAX_CONFIG), str(path))


def _architecture(keys: _Keys) -> str:
    kind = keys.take("model_type", str)
    activation = keys.take("hidden_act", str, "relu2" if kind == "bitnet" else "silu")
    if (kind, activation) not in _ARCHITECTURES:
        raise UnsupportedError(
            f"{keys.path}: a model of type {kind!r} with activation {activation!r} is not known",
            hint="ryzc reads llama and bitnet from directories, and more as GGUF",
        )
    return _ARCHITECTURES[kind, activation]


def _metadata(keys: _Keys, architecture: str) -> tuple[dict[str, MetadataValue], _Rope]:
    """The model's numbers by GGUF's keys, and its RoPE."""
    keys.must_be("attention_bias", False)
    keys.must_be("mlp_bias", False)
    hidden, heads = keys.take("hidden_size", int), keys.take("num_attention_heads", int)
    head_dim = keys.take("head_dim", int, hidden // max(1, heads))
    rope = _rope(keys, architecture, head_dim)
    numbers: dict[str, MetadataValue] = {
        "block_count": keys.take("num_hidden_layers", int),
        "context_length": keys.take("max_position_embeddings", int),
        "embedding_length": hidden,
        "feed_forward_length": keys.take("intermediate_size", int),
        "attention.head_count": heads,
        "attention.head_count_kv": keys.take("num_key_value_heads", int, heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": keys.take("rms_norm_eps", float, 1e-6),
        "rope.dimension_count": head_dim,
        "rope.freq_base": rope.base,
        "vocab_size": keys.take("vocab_size", int),
    }
    return {"general.architecture": architecture, **{f"{architecture}.{key}": v for key, v in numbers.items()}}, rope


@dataclass(frozen=True)
class _Rope:
    """RoPE's base, and what frequencies are divided by: ``float32 [D / 2]``, or ``None`` for all 1."""

    base: float
    factors: npt.NDArray[np.float32] | None


def _rope(keys: _Keys, architecture: str, head_dim: int) -> _Rope:
    """Older versions write ``rope_theta`` and ``rope_scaling``, newer ones all of it into ``rope_parameters``."""
    base = keys.take("rope_theta", float, 10000.0 if architecture == "llama" else 500000.0)
    scaling = _Keys(keys.path, inside=keys.take("rope_scaling", dict, {}))
    parameters = keys.take("rope_parameters", dict, {})
    if parameters:
        scaling.finish()
        scaling = _Keys(keys.path, inside=parameters)
    base = scaling.take("rope_theta", float, base)
    kind = scaling.take("rope_type", str, scaling.take("type", str, "default"))
    factors = None
    if kind == "llama3" and architecture == "llama":
        factors = _llama3_factors(scaling, base, head_dim)
    elif kind != "default":
        raise UnsupportedError(f"{keys.path}: rope_type {kind!r} is not implemented", hint=NOT_KNOWN)
    scaling.finish()
    return _Rope(base, factors)


def _llama3_factors(scaling: _Keys, base: float, head_dim: int) -> npt.NDArray[np.float32]:
    """Llama 3.1's: long waves are stretched, short ones left alone, and those between in between (arXiv:2407.21783)."""
    factor, context = scaling.take("factor", float), scaling.take("original_max_position_embeddings", int)
    low, high = scaling.take("low_freq_factor", float), scaling.take("high_freq_factor", float)
    if not (factor > 0 and context > 0 and base > 0 and 0 < low < high and 0 < head_dim <= _MAX_HEAD_DIM):
        raise SourceError(f"{scaling.path}: numbers of rope_type llama3 contradict each other", hint=INCOMPLETE)
    turns = context * base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / (2 * math.pi)
    short = ((turns - low) / (high - low)).clip(0, 1)
    factors: npt.NDArray[np.float32] = (1 / ((1 - short) / factor + short)).astype(np.float32)
    return factors


def _bit_linear(keys: _Keys, architecture: str) -> _BitLinear | None:
    found = keys.take("quantization_config", dict, {})
    if not found and architecture == "llama":
        return None
    if not found:
        raise UnsupportedError(
            f"{keys.path}: lacks quantization_config, so its linear layers may be BitNet's or plain ones",
            hint="say which: BitNet's have quant_method bitnet, linear_class autobitlinear, quantization_mode online",
        )
    inside = _Keys(keys.path, inside=found)
    inside.must_be("quant_method", "bitnet")
    inside.must_be("use_rms_norm", False)
    inside.must_be("modules_to_not_convert", [], ["lm_head"])
    inside.take("rms_norm_eps", float, 0.0)
    linear, mode = inside.take("linear_class", str, "bitlinear"), inside.take("quantization_mode", str, "offline")
    inside.finish()
    if linear not in ("bitlinear", "autobitlinear") or mode not in ("online", "offline"):
        raise UnsupportedError(f"{keys.path}: layers of {linear!r}, {mode!r}, are not known", hint=NOT_KNOWN)
    return _BitLinear(packed=(linear, mode) != ("autobitlinear", "online"), divides=linear == "bitlinear")


def _weights(path: Path) -> dict[str, RawTensor]:
    """The tensors of all files, by name."""
    names = [WEIGHTS]
    if (path / INDEX).exists():
        placed = _object(path / INDEX).get("weight_map")
        if not isinstance(placed, dict) or not all(_is_shard(name) for name in placed.values()):
            raise SourceError(f"{path / INDEX}: weight_map is not from tensors to files beside it", hint=INCOMPLETE)
        names = sorted(set(placed.values()))
    tensors: dict[str, RawTensor] = {}
    for name in names:
        found = safetensors.read(path / name)
        twice = tensors.keys() & found.keys()
        if twice:
            raise SourceError(f"{path / name}: tensor {min(twice)!r} is in another file too", hint=INCOMPLETE)
        tensors |= found
    return tensors


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]{1,200}\.safetensors", name) is not None


def _tensors(path: Path, raw: Mapping[str, RawTensor], bit_linear: _BitLinear | None) -> dict[str, StoredTensor]:
    """The tensors by GGUF's names; those that have none there keep theirs."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in raw.items():
        if name.removesuffix(_SCALE) in raw and name.endswith(_SCALE):
            continue  # read with the weight that it belongs to
        new = _new_name(name)
        if tensor.dtype == _PACKED:
            if bit_linear is None or not bit_linear.packed:
                raise UnsupportedError(f"{path}: {name} is packed, which {CONFIG} does not say", hint=NOT_KNOWN)
            found[new] = _unpacked(path, name, new, tensor, _scale(path, raw, name, bit_linear))
        elif tensor.dtype not in _FORMATS:
            raise UnsupportedError(f"{path}: {name} is stored as {tensor.dtype}, which is no weight", hint=NOT_KNOWN)
        elif f"{name}{_SCALE}" in raw:
            raise UnsupportedError(f"{path}: {name} has a scale, but is not packed", hint=NOT_KNOWN)
        elif bit_linear is not None and bit_linear.packed and new.startswith("blk.") and len(tensor.shape) > 1:
            raise UnsupportedError(f"{path}: {name} is not packed, which {CONFIG} says", hint=NOT_KNOWN)
        elif not tensor.shape or not min(tensor.shape):
            raise SourceError(f"{path}: {name} has shape {list(tensor.shape)}", hint=INCOMPLETE)
        else:
            data = tensor.data.reshape(*tensor.shape[:-1], -1)
            found[new] = StoredTensor(new, _FORMATS[tensor.dtype], tensor.shape, data)
    return found


def _new_name(name: str) -> str:
    layer = _LAYER_NAME.fullmatch(name)
    if layer is not None and layer[2] in _LAYER:
        return f"blk.{int(layer[1])}.{_LAYER[layer[2]]}.weight"
    return _OUTSIDE.get(name, name)


def _scale(path: Path, raw: Mapping[str, RawTensor], name: str, bit_linear: _BitLinear) -> float:
    """What the weights of -1, 0 and 1 are multiplied by, float32."""
    scale = raw.get(f"{name}{_SCALE}")
    if scale is None or scale.dtype not in _FORMATS or scale.data.size != safetensors.SIZES[scale.dtype]:
        raise SourceError(f"{path}: {name}{_SCALE} is missing, or no number", hint=INCOMPLETE)
    value = formats.get(_FORMATS[scale.dtype]).decode(scale.data)[0]
    if bit_linear.divides:
        with np.errstate(divide="ignore"):
            value = np.float32(1) / value
    return float(value)


def _unpacked(path: Path, name: str, new: str, tensor: RawTensor, scale: float) -> StoredTensor:
    block = formats.get("ternary").block
    if len(tensor.shape) != 2 or not min(tensor.shape) or tensor.shape[1] % block:
        raise UnsupportedError(
            f"{path}: {name} has shape {list(tensor.shape)}; rows must be multiples of {block}", hint=NOT_KNOWN
        )
    try:
        rows = packed_rows.to_ternary(tensor.data.reshape(tensor.shape), scale)
    except ValueError as error:
        raise SourceError(f"{path}: {name}: {error}", hint=files.DAMAGED) from error
    return StoredTensor(new, "ternary", (len(rows), tensor.shape[1]), rows)


def _turn_neighbours(path: Path, tensors: dict[str, StoredTensor], metadata: Mapping[str, MetadataValue]) -> None:
    """Put rows of queries and keys in the order of GGUF's llamas: ``0, D/2, 1, D/2 + 1, ...`` of each head."""
    head_dim = metadata["llama.attention.key_length"]
    for name, tensor in tensors.items():
        if re.fullmatch(r"blk\.\d+\.attn_[qk]\.weight", name) is None:
            continue
        if not isinstance(head_dim, int) or head_dim < 2 or head_dim % 2 or tensor.shape[0] % head_dim:
            raise SourceError(f"{path}: {tensor.shape[0]} rows are not heads of {head_dim} elements", hint=INCOMPLETE)
        halves = tensor.data.reshape(-1, 2, head_dim // 2, tensor.data.shape[-1])
        data = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.data.shape)
        tensors[name] = StoredTensor(name, tensor.format, tensor.shape, data)


def _template(path: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or an entry of the tokenizer's settings; of several, the default."""
    if (path / TEMPLATE).exists():
        return files.text(path / TEMPLATE, MAX_CONFIG)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
