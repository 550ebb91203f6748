"""Prefixes on disk: what comes back is what was saved, and anything else is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import tiny_chat
from hypothesis import given
from hypothesis import strategies as st

from ryzc.bundle import Bundle
from ryzc.bundle.manifest import FileEntry
from ryzc.errors import UserError
from ryzc.runtime.kv import PagePool, saved
from ryzc.runtime.kv.saved import SavedPrefixes
from ryzc.runtime.step import CompiledModel

PAGE, PAGE_BYTES, IDENTITY = 4, 192, "1" * 64


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's speed is not under test."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Side:
    """A pool, its bytes, and what saves them."""

    def __init__(self, pages: int = 8, identity: str = IDENTITY, row: int = 6) -> None:
        self.table = np.zeros((2, row), np.int32)
        self.kv = np.zeros(pages * PAGE_BYTES, np.uint8)
        self.pool = PagePool(pages, PAGE, self.table)
        self.saved = SavedPrefixes(self.pool, self.kv, PAGE_BYTES, identity)

    def bytes_of(self, page: int) -> npt.NDArray[np.uint8]:
        return self.kv[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]

    def run(self, ids: list[int], salt: str = "") -> None:
        done = self.pool.adopt(0, ids, salt)
        self.pool.resize(0, len(ids))
        for i in range(done // PAGE, -(-len(ids) // PAGE)):
            self.bytes_of(self.table[0, i])[:] = content(ids[: (i + 1) * PAGE])
        self.pool.publish(0, ids, salt)
        self.pool.release(0)

    def holds(self, ids: list[int], salt: str = "") -> int:
        """How many tokens are found, and hold what they must."""
        pages = self.pool.find(ids, salt)
        for i, page in enumerate(pages):
            np.testing.assert_array_equal(self.bytes_of(page), content(ids[: (i + 1) * PAGE]))
        return len(pages) * PAGE


def content(ids: list[int]) -> npt.NDArray[np.uint8]:
    """The bytes of a page, which depend on all tokens up to its end."""
    return np.random.default_rng([token + 1000 for token in ids]).integers(0, 256, PAGE_BYTES).astype(np.uint8)


IDS = list(range(100, 115))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    side = Side()
    side.run(IDS)
    assert side.saved.save(tmp_path / "prefix.kv", IDS) == 12
    return tmp_path / "prefix.kv"


def test_a_prefix_comes_back(file: Path) -> None:
    side = Side()
    side.run([7] * 9)  # so that pages have other numbers
    restored = side.saved.restore(file, 1)
    assert restored.tolist() == IDS[:12]
    assert side.holds(IDS) == 12
    assert side.holds([7] * 9) == 8
    assert (side.pool.used, side.pool.cached) == (0, 5)
    assert side.pool.queried_tokens == 9, "a restored prefix is nobody's prompt"
    side.pool.check_integrity()


def test_what_is_there_already_stays(file: Path) -> None:
    side = Side()
    side.run([*IDS[:8], 1, 2, 3, 4])
    assert len(side.saved.restore(file, 0)) == 12
    assert side.pool.cached == 4
    assert side.holds(IDS) == 12
    assert len(side.saved.restore(file, 0)) == 12
    assert side.pool.cached == 4


def test_as_much_comes_back_as_there_is_room_for(file: Path) -> None:
    small = Side(pages=2)
    assert small.saved.restore(file, 0).tolist() == IDS[:8]
    assert small.holds(IDS) == 8
    short = Side(row=1)
    assert short.saved.restore(file, 0).tolist() == IDS[:4]
    full = Side(pages=4)
    full.pool.resize(0, 16)
    assert full.saved.restore(file, 1).tolist() == []
    full.pool.check_integrity()


def test_a_file_is_replaced_whole_or_not_at_all(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, side = file.read_bytes(), Side()
    side.run([5] * 8)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(UserError, match="cannot be written: No space left") as caught:
            side.saved.save(file, [5] * 8)
    assert caught.value.hint
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
    assert side.saved.save(file, [5] * 8) == 8
    assert list(file.parent.iterdir()) == [file]
    assert len(Side().saved.restore(file, 0)) == 8
    with pytest.raises(UserError, match="cannot be written"):
        side.saved.save(file / "below", [5] * 8)


def test_equal_prefixes_give_equal_files(file: Path, tmp_path: Path) -> None:
    side = Side()
    side.run([3] * 5)
    side.run(IDS)
    side.saved.save(tmp_path / "again.kv", np.array(IDS, np.int32))
    assert (tmp_path / "again.kv").read_bytes() == file.read_bytes()


def test_nothing_to_save_is_said(tmp_path: Path) -> None:
    side = Side()
    side.run(IDS, salt="a")
    for ids, salt in ((IDS, ""), (IDS[:3], "a"), ([], "a")):
        with pytest.raises(UserError, match="nothing to save"):
            side.saved.save(tmp_path / "x", ids, salt)
    assert not list(tmp_path.iterdir())


def refused(path: Path, side: Side | None = None, salt: str = "") -> str:
    """Why a file is refused; nothing has changed then."""
    side = side or Side()
    side.run([7] * 9)
    table, kv, found = side.table.copy(), side.kv.copy(), side.pool.find([7] * 9)
    with pytest.raises(UserError) as caught:
        side.saved.restore(path, 1, salt)
    assert caught.value.hint
    assert str(path) in str(caught.value)
    np.testing.assert_array_equal(side.table, table)
    np.testing.assert_array_equal(side.kv, kv)
    assert side.pool.find([7] * 9) == found
    assert (side.pool.used, side.pool.cached) == (0, 2)
    side.pool.check_integrity()
    return str(caught.value)


def test_foreign_files_are_refused(file: Path, tmp_path: Path) -> None:
    assert "another model" in refused(file, Side(identity="2" * 64))
    assert "another salt" in refused(file, salt="a")
    assert "cannot be read: No such file" in refused(tmp_path / "missing")
    assert "cannot be read: Is a directory" in refused(tmp_path)
    text = tmp_path / "text"
    text.write_text("hello")
    assert "not a saved prefix" in refused(text)
    text.write_bytes(b"")
    assert "not a saved prefix" in refused(text)
    busy = Side()
    busy.pool.resize(0, 1)
    with pytest.raises(UserError, match="sequence 0 is in use"):
        busy.saved.restore(file, 0)


def test_every_damaged_byte_is_seen(file: Path) -> None:
    whole = file.read_bytes()
    damaged = file.with_name("damaged")
    generator = np.random.default_rng(0)
    header = whole.index(b"}") + 1
    for at in [*range(header), *generator.integers(header, len(whole), 60).tolist(), len(whole) - 1]:
        content = bytearray(whole)
        content[at] ^= 1 << int(generator.integers(8))
        damaged.write_bytes(content)
        reason = refused(damaged)
        assert "damaged" in reason or (at < 8 and "not a saved prefix" in reason)


def test_every_other_length_is_seen(file: Path) -> None:
    whole, cut = file.read_bytes(), file.with_name("cut")
    for size in [*range(24), *range(24, len(whole), 37), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        assert "damaged" in refused(cut) or size < 8
    cut.write_bytes(whole + b"\0")
    assert "damaged" in refused(cut)


def forged(file: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A file whose checksum is right, but not its header."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[8:16], "little")
    header = json.loads(whole[16 : 16 + length])
    change(header)
    text = json.dumps(header).encode()
    body = whole[:8] + len(text).to_bytes(8, "little") + text + whole[16 + length : -32]
    path = file.with_name("forged")
    path.write_bytes(body + hashlib.sha256(body).digest())
    return path


@given(value=st.integers(-(1 << 70), 1 << 70) | st.none() | st.booleans() | st.text() | st.floats(), data=st.data())
def test_no_header_leads_astray(tmp_path_factory: pytest.TempPathFactory, value: object, data: st.DataObject) -> None:
    side, file = Side(), tmp_path_factory.getbasetemp() / "forged-from.kv"
    side.run(IDS)
    side.saved.save(file, IDS)
    key = data.draw(st.sampled_from(["version", "identity", "salt", "page_tokens", "page_bytes", "pages", "more"]))
    path = forged(file, lambda header: header.update({key: value}))
    if value != {"version": 1, "page_tokens": PAGE, "page_bytes": PAGE_BYTES, "pages": 3}.get(key):
        refused(path)
    refused(forged(file, lambda header: header.pop("pages")))


def test_versions_are_told_apart(file: Path) -> None:
    assert "version 2 is not 1" in refused(forged(file, lambda header: header.update(version=2)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(tiny_chat.write(tmp_path_factory.mktemp("saved") / "tiny.ryzc"))


def test_a_model_is_what_its_bits_depend_on(bundle: Bundle) -> None:
    manifest = bundle.manifest
    ours = saved.identity(bundle)
    assert len(ours) == 64

    def identity(**changes: Any) -> str:
        return saved.identity(cast(Bundle, SimpleNamespace(manifest=replace(manifest, **changes))))

    def with_file(name: str) -> str:
        return identity(files={**manifest.files, name: FileEntry(1, "0" * 64)})

    assert identity(provenance={"file": "other.gguf"}) == with_file("chat_template.jinja") == ours
    for name in ("weights.safetensors", "plan.json", *(f"kernels/{target}.so" for target in manifest.targets)):
        assert with_file(name) != ours
    assert identity(abi=99) != ours
    assert identity(kv=replace(manifest.kv, dtype="f32")) != ours


class Running:
    """A compiled model and its pool."""

    def __init__(self, bundle: Bundle) -> None:
        self.model = CompiledModel(bundle, context=192, sequences=2, threads=1)
        pages = self.model._kv[: self.model.pages * self.model.plan.kv.page_bytes].reshape(self.model.pages, -1)

        def copy(source: int, target: int) -> None:
            pages[target] = pages[source]

        self.pool = PagePool(self.model.pages, self.model.page_tokens, self.model.page_table, copy_page=copy)
        self.saved = SavedPrefixes(
            self.pool, self.model._kv, self.model.plan.kv.page_bytes, saved.identity(self.model.bundle)
        )

    def step(self, sequence: int, ids: npt.NDArray[np.int32], first: int) -> npt.NDArray[np.float32]:
        """Logits after the last of ``ids``, of which the first are there."""
        self.pool.resize(sequence, len(ids))
        positions = np.arange(first, len(ids))
        result = self.model.step(ids[first:], positions, np.full_like(positions, sequence), [len(positions) - 1])
        return result.all_logits[0].copy()


def test_a_restored_prefix_computes_the_same_bits(bundle: Bundle, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, bundle.plan.vocab_size, 100).astype(np.int32)
    one, two = Running(bundle), Running(bundle)
    with one.model, two.model:
        size = one.pool.page_tokens
        expected = one.step(0, ids, 0)
        one.pool.publish(0, ids)
        one.saved.save(tmp_path / "prefix", ids)
        assert len(two.saved.restore(tmp_path / "prefix", 1)) == 100 // size * size
        two.pool.resize(1, 7)  # the pages have other numbers
        known = two.pool.adopt(0, ids[:-1])
        assert known == 99 // size * size
        np.testing.assert_array_equal(two.step(0, ids, known), expected)


def test_a_fork_computes_the_same_bits(bundle: Bundle) -> None:
    ids = np.random.default_rng(1).integers(0, bundle.plan.vocab_size, 75).astype(np.int32)
    other = np.append(ids[:70], ids[:9])
    running = Running(bundle)
    with running.model:
        expected, expected_other = running.step(0, ids, 0), running.step(1, other, 0)
        running.pool.release(1)
        running.step(0, ids[:70], 0)
        running.pool.fork(0, 1, 70)
        np.testing.assert_array_equal(running.step(1, other, 70), expected_other)
        np.testing.assert_array_equal(running.step(0, ids, 70), expected)
