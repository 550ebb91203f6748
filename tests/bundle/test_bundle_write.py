"""Writing: what comes back, byte for byte the same, and nothing left behind on failure."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tiny_bundle import arguments, contents, tiny_plan, write_tiny

from ryzc import bundle
from ryzc.bundle import Bundle, weights_file
from ryzc.bundle import manifest as manifests
from ryzc.bundle.plan import PackedWeight
from ryzc.errors import BundleError, InternalError


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_round_trip(tiny: Path) -> None:
    opened = Bundle.open(tiny)
    assert opened.plan == tiny_plan()
    assert opened.targets == ("znver3", "znver4")
    assert opened.manifest.targets["znver4"].features == ("avx2", "avx512f")
    assert opened.manifest.provenance == {"source": "tiny.gguf", "bytes": 123}
    assert opened.text("tokenizer.json") == '{"model": "é"}'
    assert opened.text("chat_template.jinja") == "{{ messages }}\n"
    assert opened.kernel_path("znver4").read_bytes() == b"\x7fELF four" * 50
    assert opened.has("extra/graph.onnx")
    assert not opened.has("chat.jinja")
    assert set(opened.manifest.files) | {"manifest.json"} == set(tree(tiny))


def test_weights_lie_where_the_plan_says(tiny: Path) -> None:
    opened = Bundle.open(tiny)
    raw = opened.weights_path.read_bytes()
    assert opened.weights_data_offset % 4096 == 0
    for weight in opened.plan.weights:
        start = opened.weights_data_offset + weight.offset
        assert weight.offset % 64 == 0
        assert raw[start : start + weight.bytes] == contents(weight).tobytes()


def test_official_library_reads_the_weights(tiny: Path) -> None:
    loaded = load_file(tiny / "weights.safetensors")
    for weight in tiny_plan().weights:
        assert loaded[weight.name].tobytes() == contents(weight).tobytes()
    assert loaded["blk.0.norm"].dtype == np.float32
    assert loaded["rope"].dtype == np.float64
    assert loaded["rope"].shape == (4,)
    assert loaded["head é"].dtype == np.uint8


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(0, 3))
def test_official_library_reads_any_weights(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], spread: int
) -> None:
    offsets = bundle.assign_offsets([("", size) for size in sizes])
    weights = [
        PackedWeight(f"__pad.{i}" if i % 3 else f"w{i}", (), "q", 1, 1, "tiles", offset + 64 * spread * (i + 1), size)
        for i, (offset, size) in enumerate(zip(offsets, sizes, strict=True))
    ]
    data = bytearray(weights_file.data_bytes(weights))
    for weight in weights:
        data[weight.offset : weight.offset + weight.bytes] = contents(weight).tobytes()
    header = weights_file.header(weights)
    assert len(header) % 4096 == 0
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    path.write_bytes(header + data)
    loaded = load_file(path)
    assert all(loaded[w.name].tobytes() == contents(w).tobytes() for w in weights)
    assert sum(array.nbytes for array in loaded.values()) == len(data)


def test_same_input_gives_same_bytes(tmp_path: Path, tiny: Path) -> None:
    other = arguments()
    other["kernels"] = dict(reversed(other["kernels"].items()))
    other["provenance"] = dict(reversed(other["provenance"].items()))
    other["files"] = dict(reversed(other["files"].items()))
    bundle.write(tmp_path / "other.ryzc", **other)
    assert tree(tmp_path / "other.ryzc") == tree(tiny)


def test_optional_parts_may_be_missing(tmp_path: Path) -> None:
    opened = Bundle.open(
        write_tiny(tmp_path / "a.ryzc", chat_template=None, generation_config=None, files=None, provenance=None)
    )
    assert not opened.has("chat_template.jinja")
    with pytest.raises(BundleError, match=r"holds no chat_template\.jinja"):
        opened.text("chat_template.jinja")


def test_replaces_a_bundle(tiny: Path) -> None:
    write_tiny(tiny, tokenizer_json="{}")
    assert Bundle.open(tiny).text("tokenizer.json") == "{}"
    assert [p.name for p in tiny.parent.iterdir()] == [tiny.name]


def test_replaces_a_bundle_where_directories_cannot_be_swapped(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    write_tiny(tiny, tokenizer_json="{}")
    assert Bundle.open(tiny).text("tokenizer.json") == "{}"
    assert [p.name for p in tiny.parent.iterdir()] == [tiny.name]


def test_old_bundle_returns_where_the_second_rename_fails(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    before, rename = tree(tiny), os.rename

    def failing(source: Path, target: Path) -> None:
        if source.suffix == ".partial":
            raise OSError(errno.EIO, "input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(BundleError, match="input/output error"):
        write_tiny(tiny, tokenizer_json="{}")
    assert tree(tiny) == before
    assert [p.name for p in tiny.parent.iterdir()] == [tiny.name]


def test_follows_a_link_to_the_bundle(tmp_path: Path, tiny: Path) -> None:
    link = tmp_path / "link.ryzc"
    link.symlink_to(tiny)
    write_tiny(link, tokenizer_json="{}")
    assert link.is_symlink()
    assert Bundle.open(tiny).text("tokenizer.json") == "{}"


def test_writes_into_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Bundle.open(write_tiny(tmp_path / "empty"))


def _file(path: Path) -> None:
    path.write_text("precious")


def _directory(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_text("precious")


def _other_manifest(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "a web app"}')


def _bundle_with_notes(path: Path) -> None:
    write_tiny(path)
    (path / "notes.txt").write_text("precious")


@pytest.mark.parametrize("occupy", [_file, _directory, _other_manifest, _bundle_with_notes])
def test_never_deletes_what_ryzc_did_not_write(tmp_path: Path, occupy: Callable[[Path], None]) -> None:
    path = tmp_path / "there"
    occupy(path)
    before = path.read_bytes() if path.is_file() else tree(path)
    with pytest.raises(BundleError, match="already exists") as caught:
        write_tiny(path)
    assert caught.value.hint is not None
    assert (path.read_bytes() if path.is_file() else tree(path)) == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_parent(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="parent directory") as caught:
        write_tiny(tmp_path / "no" / "such.ryzc")
    assert "mkdir" in str(caught.value.hint)


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ZeroDivisionError])
@pytest.mark.parametrize("index", range(4))
def test_interrupted_between_weights(tmp_path: Path, exists: bool, error: type[BaseException], index: int) -> None:
    path = tmp_path / "x.ryzc"
    before = tree(write_tiny(path)) if exists else {}
    weights = arguments()["weights"]

    def interrupt() -> None:
        raise error

    weights[index] = (weights[index][0], interrupt)
    with pytest.raises(error):
        write_tiny(path, weights=weights)
    assert list(tmp_path.iterdir()) == [path] * exists
    assert (tree(path) if exists else {}) == before


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("countdown", range(22))
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_fails_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, error: BaseException, countdown: int, call: str
) -> None:
    """Whichever write or sync fails, everything is as it was."""
    path = tmp_path / "x.ryzc"
    before = tree(write_tiny(path)) if exists else {}
    module, name = (sys.modules["ryzc.bundle.write"], "_write_all") if call == "write" else (os, "fsync")
    real, left = getattr(module, name), countdown

    def failing(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return real(*args)

    monkeypatch.setattr(module, name, failing)
    caught: BaseException | None = None
    try:
        write_tiny(path, tokenizer_json="{}")
    except (KeyboardInterrupt, BundleError) as raised:
        caught = raised
    assert (caught is None) == (left >= 0)
    if isinstance(error, OSError) and caught is not None:
        assert isinstance(caught, BundleError)
        assert "No space left" in str(caught)
        assert "free some space" in str(caught.hint)
    now = tree(path) if path.exists() else {}
    if now != before:  # all written; at most the last sync, of the parent directory, failed
        assert left >= -1
        assert Bundle.open(path).text("tokenizer.json") == "{}"
    assert list(tmp_path.iterdir()) == [path] * bool(now)


WRITE_AND_REPORT = """
import os, resource, sys
sys.path.insert(0, {tests!r})
from tiny_bundle import write_tiny
from ryzc.errors import BundleError
limit = {limit!r}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_tiny({path!r})
except BundleError as error:
    print(error, "/", error.hint, "/ left:", os.listdir(os.path.dirname({path!r})))
"""


def script(path: Path, limit: int = 0) -> str:
    return WRITE_AND_REPORT.format(tests=str(Path(__file__).parent), limit=limit, path=str(path))


def test_a_real_limit_on_file_sizes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script(tmp_path / "x.ryzc", 5000)], capture_output=True, text=True, check=True
    )
    assert "cannot be written: File too large" in done.stdout
    assert "ulimit" in done.stdout
    assert "left: []" in done.stdout


def test_a_really_full_disk(tmp_path: Path) -> None:
    """On a file system of 20 KiB, in a mount namespace of its own."""
    inside = f'mount -t tmpfs -o size=20k none "{tmp_path}" || exit 77; exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", inside, "sh", sys.executable, "-c", script(tmp_path / "x.ryzc")]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("this machine allows no mounts to its users")
    assert done.returncode == 0, done.stderr
    assert "cannot be written: No space left on device" in done.stdout
    assert "free some space" in done.stdout
    assert "left: []" in done.stdout


def test_weights_must_match_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "x.ryzc"
    weights = arguments()["weights"]
    for wrong, message in (
        (weights[:-1], "3 weights came for 4"),
        (weights[::-1], "not number 0"),
        ([*weights, weights[0]], "not number 4"),
        ([(weights[0][0], lambda: np.zeros(3, np.uint8)), *weights[1:]], "3 bytes of uint8"),
        ([(weights[0][0], lambda: np.zeros(100, np.float32)), *weights[1:]], "400 bytes of float32"),
    ):
        with pytest.raises(InternalError, match=message):
            write_tiny(path, weights=wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "plan.json", "manifest.json", ".hidden", "a//b", "x\n", ""]
)
def test_extra_files_need_plain_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InternalError):
        write_tiny(tmp_path / "x.ryzc", files={name: b""})
    assert list(tmp_path.iterdir()) == []


def test_targets_need_features(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="features for"):
        write_tiny(tmp_path / "x.ryzc", required={"znver4": []})


def test_manifest_text_is_its_own_inverse(tiny: Path) -> None:
    manifest = manifests.read(tiny)
    assert manifests.to_text(manifest) == (tiny / "manifest.json").read_text()


def test_peak_memory_is_about_one_weight(tmp_path: Path) -> None:
    """Sixteen weights of 4 MiB are written with less than three of them in memory."""
    import tracemalloc
    from dataclasses import replace

    size = 1 << 22
    weights = tuple(PackedWeight(f"w{i}", (), "q", 1, 1, "tiles", i * size, size) for i in range(16))
    plan = replace(tiny_plan(), weights=weights, phases=((),), buffers=())
    tracemalloc.start()
    try:
        write_tiny(tmp_path / "x.ryzc", plan=plan, weights=[(w, lambda: np.zeros(size, np.uint8)) for w in weights])
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()
