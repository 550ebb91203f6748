"""The writer against the reader, and against the tests' own writer of the specification."""

from __future__ import annotations

from pathlib import Path

import gguf_writer
import numpy as np

from ryzc import sources
from ryzc.sources.checkpoint import StoredTensor
from ryzc.training import gguf, text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vocabulary = text.vocabulary(["one two three two three three"], 262)
    tensors = [
        StoredTensor("a.weight", "tq2_0", (3, 512), rng.integers(0, 256, (3, 132), np.uint8)),
        StoredTensor("b.weight", "f32", (5,), rng.integers(0, 256, (20,), np.uint8)),
    ]
    keys = {"general.architecture": "bitnet-b1.58", "x.int": 7, "x.float": 0.5, "x.bool": True, "x.text": "é"}
    path = tmp_path / "a.gguf"
    gguf.write(path, {**keys, **gguf.vocabulary_keys(vocabulary)}, tensors)
    found = sources.open(path)
    assert found.metadata == keys
    assert found.vocabulary == vocabulary
    assert list(found.tensors) == [t.name for t in tensors]
    for tensor in tensors:
        assert found.tensors[tensor.name].format == tensor.format
        assert found.tensors[tensor.name].shape == tensor.shape
        assert (found.tensors[tensor.name].data == tensor.data).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_bytes_are_those_of_the_specification(tmp_path: Path) -> None:
    keys = {"general.architecture": "x", "n": 3, "f": 1.5, "list": [1, 2, 3], "texts": ["a", "b"], "yes": True}
    stored = np.arange(66, dtype=np.uint8).reshape(1, 66)
    gguf.write(tmp_path / "a.gguf", keys, [StoredTensor("t", "tq2_0", (1, 256), stored)])
    wanted = gguf_writer.encode(
        {**keys, "n": gguf_writer.Typed("u32", 3), "list": gguf_writer.Typed("i32", [1, 2, 3])},
        [gguf_writer.Tensor("t", "tq2_0", (1, 256), stored)],
    )
    assert (tmp_path / "a.gguf").read_bytes() == wanted
