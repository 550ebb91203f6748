"""Directories of safetensors: read as they are meant, and refused where they are damaged or not understood."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st
from ternary_models import Matrix, Shape, model, write_hf, write_safetensors
from tokenizers import Tokenizer as Library

import ryzc
from ryzc import models, sources
from ryzc.errors import RyzcError, SourceError, UnsupportedError
from ryzc.runtime.tokenizer import Tokenizer
from ryzc.sources import hf_directory, packed_rows, safetensors, tokenizers
from ryzc.sources.checkpoint import Checkpoint

SMALL = Shape(layers=1, hidden=64, heads=2, kv_heads=1, feed_forward=96, vocab=272)


def small(path: Path, form: str = "offline", model_type: str = "bitnet") -> Path:
    return write_hf(path / "model", model(1, SMALL, sub_norms=model_type == "bitnet"), form, model_type)


def change(path: Path, name: str = "config.json", /, **keys: Any) -> Path:
    """Keys of a JSON file set, or removed where the value is ``...``."""
    found = json.loads((path / name).read_text()) if (path / name).exists() else {}
    found = {key: value for key, value in {**found, **keys}.items() if value is not ...}
    (path / name).write_text(json.dumps(found))
    return path


# -- weights -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(rows=st.sampled_from([4, 8, 20]), seed=st.integers(0, 2**31), scale=st.floats(-4, 4, width=32))
def test_packed_rows_mean_what_the_rule_for_one_weight_says(rows: int, seed: int, scale: float) -> None:
    packed = np.zeros((rows // 4, 32), np.uint8)
    trits = np.random.default_rng(seed).integers(-1, 2, (rows, 32)).astype(np.int8)
    for r in range(rows):
        part, at = divmod(r, rows // 4)
        for k in range(32):
            packed[at, k] |= (int(trits[r, k]) + 1) << 2 * part
    assert np.array_equal(packed_rows.to_ternary(packed, scale), Matrix(trits, scale).stored("ternary"))


def test_packing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = Matrix(np.random.default_rng(0).integers(-1, 2, (64, 64)).astype(np.int8), 0.75)
    monkeypatch.setattr(packed_rows, "_CHUNK", 192)
    assert np.array_equal(packed_rows.to_ternary(matrix.packed, 0.75), matrix.stored("ternary"))


def test_shards_are_one_model(tmp_path: Path) -> None:
    whole = sources.open(small(tmp_path))
    raw = safetensors.read(tmp_path / "model" / "model.safetensors")
    kinds: dict[str, Any] = {"U8": np.uint8, "F32": np.float32, "BF16": np.uint16}
    arrays = {name: t.data.view(kinds[t.dtype]).reshape(t.shape) for name, t in raw.items()}
    names = sorted(arrays)
    (tmp_path / "model" / "model.safetensors").unlink()
    placed = {}
    for part, chosen in enumerate((names[::2], names[1::2])):
        file = f"model-{part + 1}-of-2.safetensors"
        placed |= dict.fromkeys(chosen, file)
        halves = {name: arrays[name] for name in chosen}
        _write_with_types(tmp_path / "model" / file, halves, {name: raw[name].dtype for name in chosen})
    change(tmp_path / "model", "model.safetensors.index.json", weight_map=placed)
    joined = sources.open(tmp_path / "model")
    assert joined.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert np.array_equal(joined.tensors[name].data, tensor.data)
    change(tmp_path / "model", "model.safetensors.index.json", weight_map={**placed, "x": "../x.safetensors"})
    with pytest.raises(SourceError, match="weight_map"):
        sources.open(tmp_path / "model")


def _write_with_types(path: Path, arrays: dict[str, Any], types: dict[str, str]) -> None:
    """As ``write_safetensors``, for arrays of uint16 that are bfloat16."""
    import ml_dtypes

    write_safetensors(path, {n: a.view(ml_dtypes.bfloat16) if types[n] == "BF16" else a for n, a in arrays.items()})


def header(entries: object, body: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(start: int = 0, stop: int = 4, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [start, stop], **changes}


HOSTILE = {
    "empty": b"",
    "three bytes": b"abc",
    "a header past the end": (2**63).to_bytes(8, "little") + b"{}",
    "no JSON": header(b"{"),
    "no object": header([]),
    "nested": header(b"[" * 100_000),
    "a digit too many": header(b'{"a":' + b"9" * 10_000 + b"}"),
    "no UTF-8": header(b"\xff{}"),
    "keys twice": header(b'{"a":{},"a":{}}'),
    "no entry": header({"a": 3}),
    "an unknown type": header({"a": entry(dtype="F7")}, bytes(4)),
    "a negative size": header({"a": entry(shape=[-1])}, bytes(4)),
    "a size that is a truth": header({"a": entry(shape=[True])}, bytes(4)),
    "an endless shape": header({"a": entry(shape=[2**61, 2**61])}, bytes(4)),
    "another size": header({"a": entry(shape=[2])}, bytes(4)),
    "a gap": header({"a": entry(4, 8)}, bytes(8)),
    "an overlap": header({"a": entry(), "b": entry(2, 6)}, bytes(6)),
    "past the end": header({"a": entry()}, bytes(3)),
    "a tail": header({"a": entry()}, bytes(5)),
    "many dimensions": header({"a": entry(shape=[1] * 9)}, bytes(4)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_are_refused_soon(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(HOSTILE[name])
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(SourceError, match=r"x\.safetensors") as caught:
        safetensors.read(tmp_path / "x.safetensors")
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.hint
    assert seconds < 1
    assert peak < 8 << 20


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 4000), value=st.integers(0, 255))
def test_a_damaged_byte_ends_in_a_clear_error_or_nowhere(
    at: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = small(tmp_path_factory.mktemp("damaged"))
    raw = bytearray((path / "model.safetensors").read_bytes())
    raw[at] = value
    (path / "model.safetensors").write_bytes(raw)
    with contextlib.suppress(RyzcError):
        models.load(sources.open(path))


# -- what the configuration says ---------------------------------------------------------------------------------------


def test_numbers_and_flags(tmp_path: Path) -> None:
    path = small(tmp_path)
    change(path, "generation_config.json", temperature=0.6, top_p=0.9, do_sample=True, eos_token_id=[1, 2])
    (path / "chat_template.jinja").write_text("{{ messages }}")
    read = sources.open(path)
    assert (read.architecture, read.bit_linear) == ("bitnet-b1.58", "packed")
    assert read.metadata["bitnet-b1.58.attention.head_count_kv"] == 1
    assert read.generation == {"temperature": 0.6, "top_p": 0.9}
    assert read.chat_template == "{{ messages }}"
    assert tokenizers.settings(read.vocabulary)["eos_ids"] == [1, 2]
    assert models.load(read).config.activation == "relu2"  # type: ignore[attr-defined]
    assert sources.open(change(path, hidden_act="silu")).architecture == "bitnet"
    (path / "chat_template.jinja").unlink()
    change(path, "tokenizer_config.json", chat_template=[{"name": "default", "template": "one"}])
    assert sources.open(path).chat_template == "one"


def test_rope_is_read_from_old_and_new_keys(tmp_path: Path) -> None:
    path = change(small(tmp_path, "plain", "llama"), rope_theta=5e5)
    assert sources.open(path).metadata["llama.rope.freq_base"] == 5e5
    change(path, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 7e5})
    assert sources.open(path).metadata["llama.rope.freq_base"] == 7e5
    change(path, rope_parameters=None)
    assert sources.open(path).metadata["llama.rope.freq_base"] == 1e4


@pytest.mark.parametrize("wrong", [{"factor": 0.0}, {"low_freq_factor": 4.0}, {"original_max_position_embeddings": 0}])
def test_numbers_of_stretched_positions_are_checked(wrong: dict[str, Any], tmp_path: Path) -> None:
    path = small(tmp_path, "stretched", "llama")
    assert sources.open(path).tensors["rope_freqs.weight"].shape == (16,)
    scaling = json.loads((path / "config.json").read_text())["rope_scaling"]
    with pytest.raises(SourceError, match="contradict"):
        sources.open(change(path, rope_scaling={**scaling, **wrong}))
    with pytest.raises(SourceError, match="lacks factor"):
        sources.open(change(path, rope_scaling={"rope_type": "llama3", "original_max_position_embeddings": 16}))


BITNET = {"quant_method": "bitnet"}
REFUSED: dict[str, tuple[dict[str, Any], type[RyzcError], str]] = {
    "another type": ({"model_type": "mamba"}, UnsupportedError, "mamba"),
    "another activation": ({"hidden_act": "gelu"}, UnsupportedError, "gelu"),
    "no type": ({"model_type": ...}, SourceError, "lacks model_type"),
    "text for a number": ({"hidden_size": "64"}, SourceError, "hidden_size"),
    "no heads": ({"num_attention_heads": 0}, SourceError, "head_count"),
    "a bias": ({"attention_bias": True}, UnsupportedError, "attention_bias"),
    "scaled positions": ({"rope_scaling": {"type": "yarn"}}, UnsupportedError, "rope_type 'yarn'"),
    "scaled positions by new keys": ({"rope_parameters": {"rope_type": "llama3"}}, UnsupportedError, "'llama3'"),
    "scaling that is not known": ({"rope_scaling": {"factor": 8.0}}, UnsupportedError, "factor = 8.0"),
    "an unknown key": ({"logit_scale": 2.0}, UnsupportedError, "logit_scale = 2.0"),
    "no method": ({"quantization_config": ...}, UnsupportedError, "may be BitNet's or plain"),
    "another method": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, UnsupportedError, "gptq"),
    "norms in layers": ({"quantization_config": {**BITNET, "use_rms_norm": True}}, UnsupportedError, "use_rms_norm"),
    "a layer left out": (
        {"quantization_config": {**BITNET, "modules_to_not_convert": ["model.layers.0"]}},
        UnsupportedError,
        "modules_to_not_convert",
    ),
    "an unknown class": ({"quantization_config": {**BITNET, "linear_class": "x"}}, UnsupportedError, "'x'"),
    "packed, but online": (
        {"quantization_config": {**BITNET, "linear_class": "autobitlinear", "quantization_mode": "online"}},
        UnsupportedError,
        "is packed",
    ),
    "no head": ({"tie_word_embeddings": False}, SourceError, "lm_head"),
    "an odd end": ({"eos_token_id": "x"}, SourceError, "eos_token_id"),
    "another vocabulary": ({"vocab_size": 300}, UnsupportedError, "vocab_size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name: str, tmp_path: Path) -> None:
    keys, kind, told = REFUSED[name]
    with pytest.raises(kind, match=told) as caught:
        models.load(sources.open(change(small(tmp_path), **keys)))
    assert caught.value.hint


def _without(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_without("tokenizer.json"), "no such file"),
        (_without("model.safetensors"), "without a GGUF file"),
        (_without("config.json"), "no config.json"),
        (lambda path: (path / "config.json").write_text("[]"), "no JSON object"),
        (lambda path: (path / "tokenizer.json").write_text("{}"), "its model is not BPE"),
    ],
)
def test_files_that_are_missing_or_damaged(damage: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    path = small(tmp_path)
    damage(path)
    with pytest.raises((SourceError, UnsupportedError), match=told) as caught:
        sources.open(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("model.layers.0.mlp.up_proj.weight_scale", np.array([np.inf], np.float32), "its scale is inf"),
        ("model.layers.0.mlp.up_proj.weight_scale", np.zeros(2, np.float32), "no number"),
        ("model.layers.0.mlp.up_proj.weight", np.full((24, 64), 3, np.uint8), "no ternary weight"),
        ("model.layers.0.mlp.up_proj.weight", np.zeros((24, 60), np.uint8), "multiples of 32"),
        ("model.layers.0.mlp.up_proj.weight", np.zeros((12, 64), np.uint8), r"shape \[48, 64\]"),
        ("model.layers.0.mlp.up_proj.weight", np.zeros((96, 64), np.float32), "has a scale, but is not packed"),
        ("model.layers.0.mlp.down_proj2.weight", np.zeros((96, 64), np.float32), "down_proj2.weight"),
        ("model.layers.0.mlp.up_proj.bias", np.zeros(96, np.float32), "up_proj.bias"),
    ],
)
def test_strange_tensors_are_refused(name: str, array: Any, told: str, tmp_path: Path) -> None:
    path = small(tmp_path)
    raw = safetensors.read(path / "model.safetensors")
    kinds: dict[str, Any] = {"U8": np.uint8, "F32": np.float32, "BF16": np.uint16}
    arrays = {n: t.data.view(kinds[t.dtype]).reshape(t.shape).copy() for n, t in raw.items()}
    types = {**{n: t.dtype for n, t in raw.items()}, name: "as it is"}
    _write_with_types(tmp_path / "new.safetensors", {**arrays, name: array}, types)
    (tmp_path / "new.safetensors").replace(path / "model.safetensors")
    with pytest.raises(RyzcError, match=told):
        models.load(sources.open(path))


# -- the tokenizer -----------------------------------------------------------------------------------------------------

TEXTS = ("hello world", " <tool>x</s>", "é\n\n 7", "")


def template(bos: int, times: int = 1) -> dict[str, Any]:
    """What puts ``<s>`` before a text."""
    first: dict[str, Any] = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    texts: list[dict[str, Any]] = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [*[first] * times, texts[0]],
        "pair": texts,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
    }


@pytest.mark.parametrize("make", [tiny_vocabularies.bpe, tiny_vocabularies.spm])
@pytest.mark.parametrize("begins", [False, True])
def test_tokenizers_encode_as_the_library_does(make: Callable[[], Any], begins: bool, tmp_path: Path) -> None:
    vocabulary = make()
    document = json.loads(tokenizers.build(vocabulary))
    if begins:
        document["post_processor"] = template(vocabulary.special["bos"])
    path = small(tmp_path)
    (path / "tokenizer.json").write_text(json.dumps(document))
    read = sources.open(path).vocabulary
    settings_ = tokenizers.settings(read)
    assert (settings_["add_bos"], settings_["add_eos"]) == (begins, False)
    assert settings_["add_space_prefix"] == (vocabulary.model == "llama")
    ours, library = Tokenizer(tokenizers.build(read), settings_), Library.from_str(json.dumps(document))
    before = Tokenizer(tokenizers.build(vocabulary), tokenizers.settings(vocabulary))
    for text in TEXTS:
        assert ours.encode(text) == library.encode(text).ids
        if vocabulary.model == "gpt2":  # the other has ids of its own in what was built
            assert ours.encode(text, add_special=False) == before.encode(text, add_special=False)
            assert ours.decode(ours.encode(text)) == before.decode(before.encode(text))
    assert ours.is_control(vocabulary.special["eos"])
    assert not ours.is_control(20)


def test_more_around_a_text_than_a_token_is_refused(tmp_path: Path) -> None:
    path = small(tmp_path)
    document = json.loads((path / "tokenizer.json").read_text())
    document["post_processor"] = template(0, times=2)
    (path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedError, match="more around a text"):
        sources.open(path)


# -- the way through the compiler --------------------------------------------------------------------------------------


def test_a_directory_becomes_a_bundle(tmp_path: Path) -> None:
    path = small(tmp_path, "plain", "llama")
    change(path, "generation_config.json", temperature=0.5)
    bundle = ryzc.build(path, tmp_path / "out.ryzc")
    assert json.loads((bundle / "generation_config.json").read_text()) == {"temperature": 0.5}
    assert Tokenizer.load(bundle).vocab_size == 264
    assert sources.stem(path) == "model"


def test_the_digest_of_a_directory_is_that_of_what_is_read(tmp_path: Path) -> None:
    path = small(tmp_path)
    before = sources.digest(path)
    (path / "README.md").write_text("words")
    assert sources.digest(path) == before
    change(path, rms_norm_eps=1e-4)
    assert sources.digest(path) != before


def test_checkpoints_are_told_by_their_files(tmp_path: Path) -> None:
    path = small(tmp_path)
    assert hf_directory.is_checkpoint(path)
    assert isinstance(sources.open(str(path)), Checkpoint)
    (path / "config.json").unlink()
    assert not hf_directory.is_checkpoint(path)
