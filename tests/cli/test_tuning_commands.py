"""``ryzc build --tune`` and ``ryzc inspect --tuning`` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import gguf_writer
import pytest
import tiny_models
import tiny_vocabularies
from gguf_writer import Tensor

from ryzc import cli, targets
from ryzc.lower import trial
from ryzc.templates.kernels import schedule


@pytest.fixture
def source(tmp_path: Path) -> Path:
    vocabulary = tiny_vocabularies.bpe()
    model = tiny_models.llama(layers=1, vocab=len(vocabulary.tokens))
    keys = {**model.metadata, **gguf_writer.vocabulary_keys(vocabulary)}
    tensors = [Tensor(t.name, t.format, t.shape, t.data) for t in model.tensors.values()]
    return gguf_writer.write(tmp_path / "tiny.gguf", keys, tensors)


def test_tune_and_look(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "SAMPLE_NS", 10_000)
    monkeypatch.setattr(trial, "ROUNDS", 3)
    monkeypatch.setattr(schedule, "methods", lambda isa: tuple(e.split(":")[1] for e in schedule.default(isa)))
    bundle = tmp_path / "tuned.ryzc"
    assert cli.main(["build", str(source), "-o", str(bundle), "--tune"]) == 0
    assert cli.main(["verify", str(bundle)]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(bundle), "--tuning", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["target"], report["cpu"]) == (targets.get("native").name, targets.detect().name)
    plan = json.loads((bundle / "plan.json").read_text())
    schedules = {k["symbol"]: k["parameters"]["schedule"] for k in plan["kernels"] if "schedule" in k["parameters"]}
    assert {kernel["symbol"]: kernel["schedule"] for kernel in report["kernels"]} == schedules
    for kernel in report["kernels"]:
        for choice in kernel["choices"]:
            chosen = choice["ns"][choice["chosen"]]
            assert choice["gain"] == choice["ns"][choice["default"]] / chosen
            assert choice["read_share"] == choice["read_ns"] / chosen
            assert choice["int8_share"] == choice["int8_ns"] / chosen
    assert cli.main(["inspect", str(bundle), "--tuning"]) == 0
    out = capsys.readouterr().out
    assert f"tuned for {report['target']} on {report['cpu']}" in out
    for kernel in report["kernels"]:
        assert kernel["symbol"] in out
        table = out.split(kernel["symbol"])[1].splitlines()[2:][: len(kernel["choices"])]
        assert [line.split()[:2] for line in table] == [[str(c["batch"]), c["chosen"]] for c in kernel["choices"]]


def test_what_was_not_tuned_says_so(chat_bundle: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in (chat_bundle, source):
        assert cli.main(["inspect", str(model), "--tuning"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "ryzc build SRC --tune" in err
    assert cli.main(["inspect", str(chat_bundle), "--tuning", "--asm", "x"]) == 1
    assert "exclude each other" in capsys.readouterr().err


def test_tuning_needs_the_one_cpu_it_is_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["build", str(source), "-o", str(tmp_path / "x.ryzc"), "--tune", "--target"]
    assert cli.main([*build, "znver2,x86-64-v3"]) == 1
    assert "2 targets cannot be tuned" in capsys.readouterr().err
    monkeypatch.setenv(targets.OVERRIDE, "x86-64-v3")
    assert cli.main([*build, "znver5"]) == 1
    err = capsys.readouterr().err
    assert "cannot run znver5" in err
    assert "hint: " in err
    assert not (tmp_path / "x.ryzc").exists()
