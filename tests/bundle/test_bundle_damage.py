"""Damage of every kind becomes a BundleError with a hint, and never anything else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import tiny_plan, write_tiny

from ryzc import bundle
from ryzc.bundle import Bundle, plan_json, strict_json
from ryzc.bundle import manifest as manifests
from ryzc.errors import BundleError, InternalError, TargetError

T = TypeVar("T")

FILES = [
    "manifest.json",
    "plan.json",
    "weights.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "kernels/znver3.so",
    "kernels/znver4.so",
    "report.html",
    "extra/graph.onnx",
]
SMALL = [name for name in FILES if name != "weights.safetensors"]


def refuses(check: Callable[[Path], object], path: Path, *mentions: str) -> None:
    with pytest.raises(BundleError) as caught:
        check(path)
    assert caught.value.hint
    for text in mentions:
        assert text in str(caught.value)


def read_or_refuse(read: Callable[[], T]) -> T | None:
    """What was read, or None where a BundleError with a hint refused it."""
    hint: str | None = ""
    try:
        return read()
    except BundleError as error:
        hint = error.hint
    assert hint
    return None


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


def test_sound_bundle_is_verified(tiny: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    checked = bundle.verify(tiny, lambda *call: calls.append(call))
    assert [c.name for c in checked] == sorted(set(FILES) - {"manifest.json"})
    assert calls[-1][1] == calls[-1][2] == sum(c.bytes for c in checked)
    assert bundle.is_bundle(tiny)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(tiny: Path, name: str) -> None:
    size = (tiny / name).stat().st_size
    for position in {0, 5, 8 * size // 2, 8 * size // 3, 8 * size - 1}:
        flip(tiny / name, position)
        refuses(bundle.verify, tiny, name)
        in_data = name == "weights.safetensors" and position >= 8 * 4096
        if in_data:
            Bundle.open(tiny)
        else:
            refuses(Bundle.open, tiny, name)
        flip(tiny / name, position)
    bundle.verify(tiny)


def test_every_bit_of_the_manifest_counts(tiny: Path) -> None:
    path = tiny / "manifest.json"
    sound = path.read_bytes()
    for position in range(0, 8 * len(sound), 7):
        flip(path, position)
        refuses(Bundle.open, tiny)
        path.write_bytes(sound)


@pytest.mark.parametrize("check", [Bundle.open, bundle.verify])
@pytest.mark.parametrize("name", FILES)
def test_truncated_grown_or_deleted(tiny: Path, name: str, check: Callable[[Path], object]) -> None:
    path = tiny / name
    sound = path.read_bytes()
    for damaged in (sound[:-1], sound[: len(sound) // 2], b"", sound + b"\n", sound + bytes(64)):
        path.write_bytes(damaged)
        refuses(check, tiny, name)
    path.unlink()
    refuses(check, tiny, name)


@pytest.mark.parametrize("check", [Bundle.open, bundle.verify])
@pytest.mark.parametrize("name", SMALL)
def test_swapped(tiny: Path, name: str, check: Callable[[Path], object]) -> None:
    os.replace(tiny / name, tiny / "aside")
    os.replace(tiny / "weights.safetensors", tiny / name)
    os.replace(tiny / "aside", tiny / "weights.safetensors")
    refuses(check, tiny)


def test_kernels_swapped(tiny: Path) -> None:
    one, other = tiny / "kernels/znver3.so", tiny / "kernels/znver4.so"
    os.replace(one, tiny / "aside")
    os.replace(other, one)
    os.replace(tiny / "aside", other)
    refuses(Bundle.open, tiny, "znver")


@pytest.mark.parametrize("name", ["notes.txt", "kernels/znver5.so", "extra/.hidden"])
def test_extra_files_are_named_by_verify_and_never_read(tiny: Path, name: str) -> None:
    (tiny / name).write_bytes(b"\x7fELF")
    refuses(bundle.verify, tiny, name, "does not belong")
    opened = Bundle.open(tiny)
    refuses(opened.text, name)  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="znver5") as caught:
        opened.kernel_path("znver5")
    assert "znver3, znver4" in str(caught.value.hint)


def test_verify_names_all_damage(tiny: Path) -> None:
    flip(tiny / "weights.safetensors", 8 * 5000)
    (tiny / "tokenizer.json").unlink()
    (tiny / "notes").write_text("")
    refuses(bundle.verify, tiny, "weights.safetensors", "sha256", "tokenizer.json: missing", "notes")


@pytest.mark.parametrize("check", [Bundle.open, bundle.verify])
def test_links_and_odd_files(tiny: Path, check: Callable[[Path], object]) -> None:
    tokenizer = tiny / "tokenizer.json"
    outside = tiny.parent / "outside.json"
    outside.write_bytes(tokenizer.read_bytes())
    tokenizer.unlink()
    tokenizer.symlink_to(outside)
    refuses(check, tiny, "leads out")
    tokenizer.unlink()
    tokenizer.symlink_to(tokenizer)
    refuses(check, tiny)
    tokenizer.unlink()
    os.mkfifo(tokenizer)
    refuses(check, tiny, "not a plain file")
    tokenizer.unlink()
    tokenizer.mkdir()
    refuses(check, tiny, "not a plain file")


@pytest.mark.parametrize("check", [Bundle.open, bundle.verify])
def test_linked_directory(tiny: Path, check: Callable[[Path], object]) -> None:
    os.replace(tiny / "kernels", tiny.parent / "elsewhere")
    (tiny / "kernels").symlink_to(tiny.parent / "elsewhere")
    refuses(check, tiny, "leads out")


@pytest.mark.parametrize("check", [Bundle.open, bundle.verify])
def test_no_bundle(tmp_path: Path, check: Callable[[Path], object]) -> None:
    refuses(check, tmp_path / "nothing", "no such bundle")
    refuses(check, tmp_path, "no manifest.json")
    (tmp_path / "file").write_text("x")
    refuses(check, tmp_path / "file", "no manifest.json")
    assert not bundle.is_bundle(tmp_path / "nothing")
    assert not bundle.is_bundle(tmp_path / "file")


def forge(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it the right checksum again."""
    data = json.loads((root / "manifest.json").read_text())
    change(data)
    data.pop("checksum", None)
    checksum = hashlib.sha256(strict_json.dumps(data, sort_keys=True).encode()).hexdigest()
    (root / "manifest.json").write_text(strict_json.dumps({**data, "checksum": checksum}, sort_keys=True))


def test_a_forged_manifest_passes_where_nothing_changed(tiny: Path) -> None:
    forge(tiny, lambda data: None)
    bundle.verify(tiny)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "a/../../b",
        "./x",
        "a//b",
        "a\\b",
        "kernels/",
        "manifest.json",
        "x" * 300,
        "",
        "a\0",
    ],
)
def test_odd_paths_in_the_manifest(tiny: Path, name: str) -> None:
    forge(tiny, lambda data: data["files"].update({name: {"bytes": 0, "sha256": "0" * 64}}))
    refuses(Bundle.open, tiny, "no path")


@pytest.mark.parametrize(
    ("key", "value", "mentions"),
    [
        ("version", 2, "bundle format 2"),
        ("version", "1", "bundle format '1'"),
        ("version", True, "version"),
        ("abi", 99, "step ABI 99"),
        ("abi", None, "step ABI"),
        ("format", "other", "not the manifest"),
        ("architecture", 3, "architecture"),
        ("architecture", "gemma3", "contradicts"),
        ("kv", {}, "kv"),
        ("targets", {}, "no targets"),
        ("targets", {"znver9": {"features": []}}, "kernels/znver9.so"),
        ("targets", {"../../x": {"features": []}}, "missing"),
        ("targets", {"znver4": {"features": "avx2"}}, "a list"),
        ("targets", {"znver4": {}}, "features"),
        ("files", {}, "missing"),
        ("files", [], "an object"),
        ("provenance", {"a": {"b": 1}}, "provenance"),
        ("surprise", 1, "surprise"),
    ],
)
def test_wrong_values_in_the_manifest(tiny: Path, key: str, value: object, mentions: str) -> None:
    forge(tiny, lambda data: data.update({key: value}))
    refuses(Bundle.open, tiny, mentions)
    refuses(bundle.verify, tiny, mentions)


@pytest.mark.parametrize("size", [-1, 2**63, 2**63 - 1, 10**400, 1.5, "9", None, True, 1 << 40])
@pytest.mark.parametrize("name", ["tokenizer.json", "weights.safetensors"])
def test_wrong_sizes_in_the_manifest(tiny: Path, name: str, size: object) -> None:
    forge(tiny, lambda data: data["files"][name].update({"bytes": size}))
    refuses(Bundle.open, tiny)


@pytest.mark.parametrize("name", FILES[1:6])
def test_files_that_must_be_listed(tiny: Path, name: str) -> None:
    def remove(data: dict[str, Any]) -> None:
        del data["files"][name]

    forge(tiny, remove)
    refuses(Bundle.open, tiny, name, "missing")


@pytest.mark.parametrize("checksum", ["", "0" * 63, "0" * 64, "G" * 64, 5])
def test_wrong_checksums_in_the_manifest(tiny: Path, checksum: object) -> None:
    forge(tiny, lambda data: data["files"]["plan.json"].update({"sha256": checksum}))
    refuses(Bundle.open, tiny, "sha256")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "null",
        "1" * 5000,
        "[" * 100_000,
        '{"a": 1, "a": 2}',
        '{"format": NaN}',
        '{"format": 1e999}',
        "\ud800",
    ],
)
def test_manifest_is_no_manifest(tiny: Path, text: str) -> None:
    (tiny / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refuses(Bundle.open, tiny, "manifest.json")
    refuses(bundle.verify, tiny, "manifest.json")


def test_a_huge_manifest_is_not_read(tiny: Path) -> None:
    os.truncate(tiny / "manifest.json", 1 << 40)
    refuses(Bundle.open, tiny, "too large")


PLAN_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "negative": (lambda p: p.update(arena_bytes=-64), "arena_bytes"),
    "huge": (lambda p: p.update(max_tokens=2**63), "max_tokens"),
    "float": (lambda p: p.update(vocab_size=20.0), "vocab_size"),
    "truth": (lambda p: p.update(max_rows=True), "max_rows"),
    "missing": (lambda p: p.pop("notes"), "lacks 'notes'"),
    "unknown": (lambda p: p.update(extra=1), "unknown 'extra'"),
    "no vocabulary": (lambda p: p.update(vocab_size=0), "vocabulary"),
    "short rows": (lambda p: p.update(logits_stride=19), "vocabulary"),
    "no tokens": (lambda p: p.update(max_tokens=0), "no tokens"),
    "no context": (lambda p: p.update(context_length=0), "context"),
    "candidates": (lambda p: p.update(max_candidates=21), "candidates"),
    "no phases": (lambda p: p.update(phases=[]), "no phases"),
    "phase type": (lambda p: p.update(phases={}), "a list"),
    "small arena": (lambda p: p.update(arena_bytes=1000), "past the arena"),
    "unknown kernel": (lambda p: p["phases"][0][0].update(kernel="nop"), "'nop'"),
    "unknown buffer": (lambda p: p["phases"][0][0]["operands"][0].update(name="y"), "'y'"),
    "unknown space": (lambda p: p["phases"][0][0]["operands"][0].update(space="disk"), "'disk'"),
    "outside its buffer": (lambda p: p["phases"][0][0]["operands"][0].update(offset=128), "outside its region"),
    "outside its weight": (lambda p: p["phases"][0][0]["operands"][1].update(offset=0), "outside its region"),
    "outside its page": (lambda p: p["phases"][0][0]["operands"][2].update(offset=192), "outside its region"),
    "page too small": (lambda p: p["kv"].update(page_bytes=64), "a page needs 128"),
    "page odd": (lambda p: p["kv"].update(page_bytes=193), "not aligned"),
    "page type": (lambda p: p["kv"].update(dtype="f8"), "'f8'"),
    "windows": (lambda p: p["kv"].update(windows=[]), "window"),
    "empty page": (lambda p: p["kv"].update(page_tokens=0), "empty"),
    "weights overlap": (lambda p: p["weights"][1].update(offset=64), "misplaced"),
    "weights unaligned": (lambda p: p["weights"][1].update(offset=449), "misplaced"),
    "weight empty": (lambda p: p["weights"][1].update(bytes=0), "empty"),
    "weight layout": (lambda p: p["weights"][1].update(layout="odd"), "'odd'"),
    "weight twice": (lambda p: p["weights"][1].update(name="rope"), "twice"),
    "weights too large": (lambda p: p["weights"][3].update(bytes=2**63 - 1), "too large"),
    "kernel twice": (lambda p: p["kernels"][1].update(symbol="linear"), "twice"),
    "buffer twice": (lambda p: p["buffers"][1].update(name="logits"), "twice"),
    "buffer unaligned": (lambda p: p["buffers"][1].update(offset=3), "not aligned"),
    "buffer lives too long": (lambda p: p["buffers"][1].update(last=2), "outside the phases"),
    "buffer lives backwards": (lambda p: p["buffers"][1].update(first=1), "outside the phases"),
    "parameter": (lambda p: p["kernels"][0]["parameters"].update(n={}), "['n']"),
    "parameter list": (lambda p: p["kernels"][0]["parameters"].update(n=[1, "a"]), "['n']"),
    "parameter null": (lambda p: p["kernels"][0]["parameters"].update(n=None), "['n']"),
}


@pytest.mark.parametrize("fault", PLAN_FAULTS)
def test_wrong_plans(fault: str) -> None:
    change, mentions = PLAN_FAULTS[fault]
    data = json.loads(plan_json.to_json(tiny_plan()))
    change(data)
    refuses(lambda _: plan_json.from_json(json.dumps(data)), Path(), "plan.json", mentions)


def test_plan_round_trip_is_exact() -> None:
    text = plan_json.to_json(tiny_plan())
    assert plan_json.from_json(text) == tiny_plan()
    assert plan_json.to_json(plan_json.from_json(text)) == text


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@settings(max_examples=300)
@given(st.data())
def test_any_change_of_a_plan_is_refused_or_read(data: st.DataObject) -> None:
    """Whatever replaces one value anywhere, the reader gives a sound plan or a BundleError."""
    root = json.loads(plan_json.to_json(tiny_plan()))
    node: Any = root
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 4)):
            node = node[key]
        else:
            break
    node[key] = data.draw(json_values)
    plan = read_or_refuse(lambda: plan_json.from_json(json.dumps(root)))
    assert plan is None or plan_json.from_json(plan_json.to_json(plan)) == plan


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_change_of_a_forged_manifest_is_refused_or_read(tiny: Path, data: st.DataObject) -> None:
    sound = (tiny / "manifest.json").read_bytes()
    try:

        def change(root: dict[str, Any]) -> None:
            key = data.draw(st.sampled_from([k for k in root if k != "checksum"]))
            if isinstance(root[key], dict) and data.draw(st.booleans()):
                root, key = root[key], data.draw(st.sampled_from(list(root[key])))
            root[key] = data.draw(json_values.filter(lambda v: "inf" not in repr(v) and "nan" not in repr(v)))

        forge(tiny, change)
        read_or_refuse(lambda: Bundle.open(tiny))
    finally:
        (tiny / "manifest.json").write_bytes(sound)


def test_a_plan_that_disagrees_with_its_weights(tiny: Path) -> None:
    """Every checksum is right, but the plan's weights are not those in the file."""
    plan = tiny_plan()
    renamed = replace(plan, weights=(replace(plan.weights[0], name="other"), *plan.weights[1:]))
    content = plan_json.to_json(renamed).encode()
    (tiny / "plan.json").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forge(tiny, lambda data: data["files"].update({"plan.json": entry}))
    refuses(Bundle.open, tiny, "weights.safetensors", "header")
    refuses(bundle.verify, tiny, "weights.safetensors", "header")


def test_unsound_plans_are_not_written(tmp_path: Path) -> None:
    for plan, message in (
        (replace(tiny_plan(), arena_bytes=0), "unsound"),
        (replace(tiny_plan(), notes={"mixed": (1, "a")}), "unsound"),  # type: ignore[dict-item]
        (replace(tiny_plan(), notes={"set": {1}}), "cannot be written"),  # type: ignore[dict-item]
        (replace(tiny_plan(), notes={"nan": float("nan")}), "cannot be written"),
        (replace(tiny_plan(), notes={"list": ["a"]}), "cannot keep"),  # type: ignore[dict-item]
    ):
        with pytest.raises(InternalError, match=message):
            write_tiny(tmp_path / "x.ryzc", plan=plan)
    assert list(tmp_path.iterdir()) == []


def test_manifest_names() -> None:
    assert manifests.is_safe_name("kernels/x86-64-v3.so")
    assert not manifests.is_safe_name("kernels/../x")
