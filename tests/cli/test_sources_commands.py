"""Commands that take a source: what is fetched, what is compiled, and what is kept."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_chat

from ryzc import cli, sources
from ryzc.cli import _models


class Builds:
    """Stands in for the build: records its calls and puts a ready bundle into place."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.calls: list[tuple[str, Path | None, dict[str, object]]] = []

    def __call__(self, source: str | Path, output: Path | None = None, **options: object) -> Path:
        progress, notice = options.pop("progress"), options.pop("notice", None)
        assert callable(progress)
        assert notice is None or callable(notice)
        progress("read", 1, 1)
        self.calls.append((str(source), output, options))
        place = output or Path(f"{Path(source).stem}.ryzc")
        shutil.copytree(self.bundle, place, dirs_exist_ok=True)
        return place


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chat_bundle: Path) -> Builds:
    monkeypatch.setenv("RYZC_CACHE", str(tmp_path / "cache"))
    stand_in = Builds(chat_bundle)
    monkeypatch.setattr(importlib.import_module("ryzc.compiler"), "build", stand_in)
    return stand_in


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "some model.gguf"
    path.write_bytes(b"GGUF and so on")
    return path


def test_a_source_is_compiled_once(builds: Builds, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(source), "hello", "-n", "3", "-s", "1", "-t", "1"]
    assert cli.main(arguments) == 0
    first, err = capsys.readouterr()
    assert "compiling" in err
    assert cli.main(arguments) == 0
    assert capsys.readouterr() == (first, "")
    assert len(builds.calls) == 1


def test_equal_files_share_a_bundle_and_others_do_not(builds: Builds, source: Path, tmp_path: Path) -> None:
    bundle = _models.bundle_for(str(source))
    copy = tmp_path / "elsewhere" / source.name
    copy.parent.mkdir()
    shutil.copy(source, copy)
    assert _models.bundle_for(str(copy)) == bundle
    copy.write_bytes(b"GGUF and something else")
    assert _models.bundle_for(str(copy)) != bundle
    assert len(builds.calls) == 2
    assert " " not in bundle.name


def test_another_compiler_or_cpu_builds_anew(builds: Builds, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _models.bundle_for(str(source))
    monkeypatch.setattr(_models, "_compiler", lambda: "f" * 64)
    new = _models.bundle_for(str(source))
    assert new != old
    assert new.is_dir()
    assert not old.exists(), "outdated bundles pile up"
    monkeypatch.setenv("RYZC_CPU", "x86-64-v3")
    lesser = _models.bundle_for(str(source))
    assert builds.calls[-1][2] == {"targets": ("x86-64-v3",)}
    assert lesser.is_dir()
    assert new.is_dir()


def test_a_damaged_bundle_of_the_cache_is_built_again(builds: Builds, source: Path) -> None:
    bundle = _models.bundle_for(str(source))
    (bundle / "tokenizer.json").write_text("{}")
    assert _models.bundle_for(str(source)) == bundle
    assert len(builds.calls) == 2


def test_bundles_are_taken_as_they_are(builds: Builds, chat_bundle: Path) -> None:
    assert _models.bundle_for(str(chat_bundle)) == chat_bundle
    assert builds.calls == []


def test_samples_are_fetched_first(builds: Builds, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pull(name: str, *, progress: Callable[[int, int], None]) -> Path:
        asked.append(name)
        progress(1, 2)
        return source

    monkeypatch.setattr(sources, "pull", pull)
    _models.bundle_for("smollm2")
    _models.bundle_for("hf:some/one:model.gguf")
    assert asked == ["smollm2", "hf:some/one:model.gguf"]
    assert [call[0] for call in builds.calls] == [str(source)]


def test_pull_prints_the_path(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "pull", lambda name, progress: source)
    assert cli.main(["pull", "smollm2"]) == 0
    assert capsys.readouterr() == (f"{source}\n", "smollm2 comes under Apache-2.0\n")


def test_pull_knows_its_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pull", "no-such-sample"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "smollm2" in err


def test_build_prints_the_bundle(
    builds: Builds, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["build", str(source)]) == 0
    assert capsys.readouterr() == ("some model.ryzc\n", "")
    output = tmp_path / "out.ryzc"
    assert (
        cli.main(["build", str(source), "-o", str(output), "--target", "znver2, znver4", "--activations", "f32"]) == 0
    )
    assert capsys.readouterr() == (f"{output}\n", "")
    unasked = {"kv": None, "ternary": None, "quant": None, "head": None, "force": False, "tune": False}
    options = {"targets": ("znver2", "znver4"), "activations": "f32", **unasked}
    assert builds.calls[1:] == [(str(source), output, options)]


@pytest.mark.parametrize("command", ["build", "run", "inspect"])
def test_sources_that_are_none(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["hello"] if command == "run" else []
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"no model at all")
    for path in (tmp_path / "missing.gguf", tmp_path, garbage):
        assert cli.main([command, str(path), *rest]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "error: " in err
        assert str(path) in err


def test_inspect_a_source(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chat_bundle: Path
) -> None:
    monkeypatch.setattr(sources, "open", lambda path: tiny_chat.checkpoint())
    assert cli.main(["inspect", str(source), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "source"
    assert report["tokenizer"] == "gpt2 (gpt-2)"
    assert cli.main(["inspect", str(chat_bundle), "--json"]) == 0
    compiled = json.loads(capsys.readouterr().out)
    same = ("architecture", "parameters", "formats", "memory", "kernels", "made_from", "chat_template")
    assert {key: report[key] for key in same} == {key: compiled[key] for key in same}
    assert cli.main(["inspect", str(source)]) == 0
    assert "gpt2 (gpt-2)" in capsys.readouterr().out


def test_inspect_shows_the_graph_after_a_pass(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "open", lambda path: tiny_chat.checkpoint())

    def graph(after: str) -> str:
        assert cli.main(["inspect", str(source), "--after", after]) == 0
        return capsys.readouterr().out

    assert "MatMul" in graph("model")
    assert "LinearGated" not in graph("fuse_qkv")
    assert "LinearGated" in graph("dead_code")
    assert cli.main(["inspect", str(source), "--after", "no_such_pass"]) == 1
    assert "fuse_qkv" in capsys.readouterr().err
