"""Tensors of bitnet.cpp: read into rows of our own, weight by weight, or refused."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import gguf_writer
import numpy as np
import pytest
from gguf_writer import Tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from ternary_models import VOCABULARY, Matrix, Shape, model, write_gguf

from ryzc import formats
from ryzc.errors import SourceError
from ryzc.sources import gguf, i2_s

KEYS: dict[str, gguf_writer.Value] = {"general.architecture": "llama", **gguf_writer.vocabulary_keys(VOCABULARY)}
SMALL = Shape(layers=1, feed_forward=256)


@settings(max_examples=40)
@given(
    shape=st.sampled_from([(1, 128), (4, 32), (3, 384), (2, 2, 64), (5, 256)]),
    scale=st.floats(-4, 4, width=32),
    seed=st.integers(0, 2**31),
)
def test_every_weight_lies_where_bitnet_cpp_puts_it(shape: tuple[int, ...], scale: float, seed: int) -> None:
    """The codes come from the rule for one element, not from one for whole arrays."""
    trits = np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)
    raw = np.zeros(trits.size // 4 + 32, np.uint8)
    for at, trit in enumerate(trits.reshape(-1)):
        group, j = divmod(at, 128)
        raw[32 * group + j % 32] |= (int(trit) + 1) << 6 - 2 * (j // 32)
    raw[-32:-28] = np.frombuffer(struct.pack("<f", scale), np.uint8)
    rows = i2_s.to_ternary(raw, shape)
    assert rows.shape == (*shape[:-1], 4 + shape[-1] // 4)
    assert np.array_equal(formats.get("ternary").decode(rows), trits.astype(np.float32) * np.float32(scale))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = Matrix(np.random.default_rng(0).integers(-1, 2, (64, 256)).astype(np.int8), 0.75)
    monkeypatch.setattr(i2_s, "_CHUNK", 96)
    assert np.array_equal(i2_s.to_ternary(matrix.i2_s, (64, 256)), matrix.stored("ternary"))


def test_a_file_becomes_ternary_rows_and_says_what_its_layers_are(tmp_path: Path) -> None:
    made = model(5, SMALL)
    for architecture in ("bitnet-b1.58", "llama"):
        read = gguf.read(write_gguf(tmp_path / f"{architecture}.gguf", made, "i2_s", architecture))
        assert read.bit_linear == "packed"
        for name, matrix in made.matrices.items():
            tensor = read.tensors[f"{name}.weight"]
            assert (tensor.format, tensor.shape) == ("ternary", matrix.trits.shape)
            assert np.array_equal(tensor.data, matrix.stored("ternary"))
    assert gguf.read(write_gguf(tmp_path / "tq2_0.gguf", made, "tq2_0", "llama")).bit_linear is None


def one(path: Path, shape: tuple[int, ...], data: bytes) -> Path:
    return gguf_writer.write(path, KEYS, [Tensor("w", "i2_s", shape, data)])


SCALE = struct.pack("<f", 0.5)


@pytest.mark.parametrize(
    ("shape", "data", "told"),
    [
        ((4, 128), bytes(128) + struct.pack("<f", float("nan")) + bytes(28), "its scale is nan"),
        ((4, 128), bytes(128) + struct.pack("<f", float("inf")) + bytes(28), "its scale is inf"),
        ((4, 128), bytes(127) + b"\xc0" + SCALE + bytes(28), "no ternary weight"),
        ((4, 128), bytes(127) + b"\x03" + SCALE + bytes(28), "no ternary weight"),
        ((4, 128), bytes(128), "past the file's"),
        ((4, 128), bytes(128) + SCALE + bytes(92), "nothing accounts for them"),
        ((3, 32), bytes(24) + SCALE + bytes(28), "not whole groups"),
        ((32, 20), bytes(160) + SCALE + bytes(28), "not whole groups"),
        ((2**40, 128), bytes(128) + SCALE + bytes(28), "past the file's"),
        ((2**62, 2**62, 128), bytes(128) + SCALE + bytes(28), "past the file's"),
    ],
)
def test_hostile_tensors_are_refused_soon(shape: tuple[int, ...], data: bytes, told: str, tmp_path: Path) -> None:
    path = one(tmp_path / "w.gguf", shape, data)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(SourceError, match=told):
        gguf.read(path)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 1 << 20
