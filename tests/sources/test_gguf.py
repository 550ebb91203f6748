"""Reading sound GGUF files: the real models against the gguf package, and random ones written by the tests."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as oracle
import gguf_writer
import numpy as np
import pytest
import tiny_models
from gguf_writer import Tensor, Typed
from hypothesis import given
from hypothesis import strategies as st

from ryzc import formats, sources
from ryzc.errors import SourceError, UnsupportedError, UsageError
from ryzc.sources import Checkpoint, gguf

TOKENIZER: dict[str, gguf_writer.Value] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b"],
    "tokenizer.ggml.token_type": Typed("i32", [1, 1]),
    "tokenizer.ggml.merges": Typed("string", []),
}
LEAST: dict[str, gguf_writer.Value] = {"general.architecture": "llama", **TOKENIZER}


def agrees_with_the_oracle(path: Path) -> None:
    ours, theirs = gguf.read(path), oracle.GGUFReader(path)
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        stored = ours.tensors[tensor.name]
        assert stored.shape == tuple(int(d) for d in reversed(tensor.shape))
        assert stored.format == oracle.GGMLQuantizationType(tensor.tensor_type).name.lower()
        assert stored.data.shape[:-1] == stored.shape[:-1]
        assert stored.data.tobytes() == tensor.data.tobytes()
    values = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert set(ours.metadata) == {name for name in values if not name.startswith("tokenizer.")}
    for name, value in ours.metadata.items():
        assert value == (tuple(values[name]) if isinstance(values[name], list) else values[name]), name
    vocabulary, prefix = ours.vocabulary, "tokenizer.ggml."
    for listed, key in ((vocabulary.tokens, "tokens"), (vocabulary.types, "token_type")):
        assert list(listed) == values[prefix + key], key
    assert list(vocabulary.scores) == values.get(prefix + "scores", [])
    assert list(vocabulary.merges) == values.get(prefix + "merges", [])
    assert vocabulary.model == values[prefix + "model"]
    assert vocabulary.pre == values.get(prefix + "pre", "default")
    assert vocabulary.add_bos == values.get(prefix + "add_bos_token")
    assert vocabulary.add_eos == values.get(prefix + "add_eos_token")
    assert vocabulary.add_space_prefix == values.get(prefix + "add_space_prefix")
    stated = {key.removeprefix(prefix): id_ for key, id_ in values.items() if key.endswith("_token_id")}
    assert {f"{role}_token_id": id_ for role, id_ in vocabulary.special.items()} == stated
    assert ours.chat_template == values.get("tokenizer.chat_template")
    assert ours.architecture == values["general.architecture"]


def test_smollm2_as_the_oracle_reads_it(smollm2_path: Path) -> None:
    agrees_with_the_oracle(smollm2_path)


@pytest.mark.slow
def test_gemma3_as_the_oracle_reads_it(gemma3_path: Path) -> None:
    agrees_with_the_oracle(gemma3_path)


def test_smollm2_opens_fast_and_is_not_copied(smollm2_path: Path) -> None:
    times = []
    for _ in range(5):
        start = time.process_time()
        checkpoint = gguf.read(smollm2_path)
        times.append(time.process_time() - start)
    assert min(times) < 0.3
    tensor = checkpoint.tensors["token_embd.weight"]
    assert not tensor.data.flags.owndata
    assert not tensor.data.flags.writeable
    assert checkpoint.provenance == {"file": smollm2_path.name, "bytes": smollm2_path.stat().st_size}


def test_written_by_the_gguf_package(tmp_path: Path) -> None:
    path, rng = tmp_path / "theirs.gguf", np.random.default_rng(1)
    writer = oracle.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.eps", 1e-5)
    writer.add_float64("llama.double", 0.1)
    writer.add_bool("llama.flag", True)
    writer.add_int64("llama.negative", -(2**62))
    writer.add_array("llama.list", [1, -2, 3])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "é", ""])
    writer.add_token_types([1, 1, 3])
    writer.add_token_merges(["a é"])
    values = rng.standard_normal((6, 64)).astype(np.float32)
    writer.add_tensor("w", values)
    writer.add_tensor(
        "q", oracle.quantize(values, oracle.GGMLQuantizationType.Q8_0), raw_dtype=oracle.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("half", values[0].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    agrees_with_the_oracle(path)
    assert np.array_equal(gguf.read(path).tensors["w"].data.view(np.float32), values)


def test_the_oracle_reads_what_the_test_writer_writes(tmp_path: Path) -> None:
    model = tiny_models.llama(mix=("q4_1", "q6_k", "f16"), hidden=256, head_dim=64, feed_forward=256)
    path = gguf_writer.write_checkpoint(tmp_path / "ours.gguf", model)
    agrees_with_the_oracle(path)


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma3])
def test_a_written_model_comes_back(make: Callable[[], Checkpoint], tmp_path: Path) -> None:
    model = make()
    read = sources.open(gguf_writer.write_checkpoint(tmp_path / "tiny.gguf", model))
    assert read.architecture == model.architecture
    assert set(read.tensors) == set(model.tensors)
    for name, tensor in model.tensors.items():
        assert read.tensors[name].format == tensor.format
        assert read.tensors[name].shape == tensor.shape
        assert np.array_equal(read.tensors[name].data, tensor.data)
    assert read.metadata.keys() == model.metadata.keys()


# -- random files ------------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "string": _TEXT,
    "bool": st.booleans(),
    "f32": st.floats(width=32, allow_nan=False),
    "f64": st.floats(allow_nan=False),
}
for _bits in (8, 16, 32, 64):
    _SCALARS[f"u{_bits}"] = st.integers(0, 2**_bits - 1)
    _SCALARS[f"i{_bits}"] = st.integers(-(2 ** (_bits - 1)), 2 ** (_bits - 1) - 1)


@st.composite
def typed(draw: st.DrawFn) -> Typed:
    kind = draw(st.sampled_from(sorted(_SCALARS)))
    return Typed(kind, draw(st.one_of(_SCALARS[kind], st.lists(_SCALARS[kind], max_size=5))))


@st.composite
def tensors(draw: st.DrawFn) -> list[Tensor]:
    made = []
    for name in draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), unique=True, max_size=5)):
        format_ = draw(st.sampled_from([name for name in formats.names() if name in gguf.GGML_TYPES.values()]))
        fmt = formats.get(format_)
        shape = (*draw(st.lists(st.integers(1, 3), max_size=3)), fmt.block * draw(st.integers(1, 3)))
        size = fmt.row_bytes(shape[-1]) * int(np.prod(shape[:-1]))
        made.append(Tensor(name, format_, shape, np.random.default_rng(draw(st.integers(0, 99))).bytes(size)))
    return made


@given(
    metadata=st.dictionaries(_TEXT.map(lambda t: "x." + t), typed(), max_size=6),
    stored=tensors(),
    version=st.sampled_from([2, 3]),
    alignment=st.sampled_from([None, 8, 16, 32, 64, 4096]),
)
def test_random_files_come_back(
    metadata: dict[str, Typed], stored: list[Tensor], version: int, alignment: int | None, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / f"random-{os.getpid()}.gguf"
    path.unlink(missing_ok=True)  # a mapped file must not be cut short
    gguf_writer.write(path, {**LEAST, **metadata}, stored, version=version, alignment=alignment)
    read = gguf.read(path)
    expected: dict[str, Any] = {"general.architecture": "llama"} | {
        k: tuple(v.value) if isinstance(v.value, list) else v.value for k, v in metadata.items()
    }
    if alignment is not None:
        expected["general.alignment"] = alignment
    assert read.metadata == expected
    assert {k: type(v) for k, v in read.metadata.items()} == {k: type(v) for k, v in expected.items()}
    assert list(read.tensors) == [t.name for t in stored]
    for tensor in stored:
        found = read.tensors[tensor.name]
        row_bytes = formats.get(tensor.format).row_bytes(tensor.shape[-1])
        assert (found.name, found.format, found.shape) == (tensor.name, tensor.format, tensor.shape)
        assert found.data.shape == (*tensor.shape[:-1], row_bytes)
        assert found.data.tobytes() == tensor.raw


def test_tensors_may_lie_in_any_order(tmp_path: Path) -> None:
    infos = gguf_writer.info("second", (8,), 0, 32) + gguf_writer.info("first", (8,), 0, 0)
    head = gguf_writer.header(2, len(LEAST)) + b"".join(gguf_writer.pair(k, v) for k, v in LEAST.items()) + infos
    path = tmp_path / "order.gguf"
    path.write_bytes(gguf_writer.pad(head) + bytes(32) + b"\1" * 32)
    read = gguf.read(path)
    assert list(read.tensors) == ["second", "first"]
    assert read.tensors["second"].data.tolist() == [1] * 32
    assert read.tensors["first"].data.tolist() == [0] * 32


# -- naming a source ---------------------------------------------------------------------------------------------------


def test_open_says_what_it_takes() -> None:
    with pytest.raises(SourceError, match="no such file") as caught:
        sources.open("nothing-of-this-name")
    for part in ("GGUF", "smollm2", "gemma3-270m", "hf:ORG/REPO"):
        assert part in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "/dev/null/x", "\udcff"])
def test_open_with_odd_names(name: str) -> None:
    with pytest.raises(SourceError):
        sources.open(name)
    with pytest.raises(SourceError):
        gguf.read(name)


def test_open_a_hub_address_of_the_wrong_form() -> None:
    with pytest.raises(UsageError, match="hub address"):
        sources.open("hf:nobody")


@pytest.mark.parametrize(
    ("inside", "told"),
    [("model.safetensors", "no config.json"), ("readme.txt", "without a GGUF"), ("m.gguf", "is a directory")],
)
def test_open_a_directory(inside: str, told: str, tmp_path: Path) -> None:
    (tmp_path / inside).touch()
    with pytest.raises(UnsupportedError, match=told) as caught:
        sources.open(tmp_path)
    assert caught.value.hint


def test_a_directory_of_a_samples_name_does_not_hide_the_sample(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sources.locate("smollm2") == smollm2_path


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sources.digest(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(SourceError):
        sources.digest(tmp_path / "y")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="no regular file"):
        sources.open(tmp_path / "pipe")


def test_a_device_is_refused() -> None:
    with pytest.raises(SourceError, match="no regular file"):
        gguf.read("/dev/zero")
