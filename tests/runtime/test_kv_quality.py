"""What keys and values as codes cost: the arithmetic, and a build that refuses."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_chat
import tiny_models

from ryzc import cli, sources
from ryzc.bundle import Bundle
from ryzc.bundle.plan import Plan
from ryzc.compiler import build
from ryzc.errors import QualityError
from ryzc.kv_formats import KV_FORMATS
from ryzc.lower import shared_object
from ryzc.runtime import kv_quality
from ryzc.runtime.perplexity import Perplexity
from ryzc.targets import Target


def measured(*windows: float) -> Perplexity:
    value = math.exp(sum(map(math.log, windows)) / len(windows))
    return Perplexity(value, 0.0, windows, 255 * len(windows), 512)


def test_a_cost_is_a_ratio_with_the_spread_of_windows() -> None:
    reference = measured(10.0, 20.0, 40.0)
    cost = kv_quality.cost("int4", measured(10.1, 20.2, 40.4), reference)
    assert cost.share == pytest.approx(0.01)
    assert cost.error == pytest.approx(0, abs=1e-12)
    assert "+1.00%" in str(cost)
    cost = kv_quality.cost("int4", measured(10.1, 20.0, 40.0), reference)
    assert cost.share == pytest.approx(1.01 ** (1 / 3) - 1)
    assert cost.error == pytest.approx(math.log(1.01) / 3)
    assert kv_quality.cost("int8", measured(10.0), measured(10.0)).error == 0


@pytest.mark.parametrize(("name", "share", "error", "refused"), [
    ("int8", 0.0009, 0.0, False),
    ("int8", 0.0011, 0.0, True),
    ("int8", 0.0018, 0.0009, False),
    ("int8-int4", 0.0049, 0.0, False),
    ("int4", 0.0058, 0.0007, True),
    ("int4", -0.1, 0.0, False),
])  # fmt: skip
def test_what_is_excessive(name: str, share: float, error: float, refused: bool) -> None:
    cost = kv_quality.Cost(KV_FORMATS[name], 10 * (1 + share), 10.0, share, error)
    assert cost.excessive == refused


def test_the_text_is_long_enough() -> None:
    assert len(kv_quality.text()) > 2 * kv_quality.WINDOWS * kv_quality.CONTEXT * 6


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model's file, whose build tries little."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and so on")
    tiny = tiny_chat.checkpoint()
    shape = tiny_models.llama(vocab=len(tiny.vocabulary.tokens), mix=("q8_0",), head_dim=32)
    monkeypatch.setattr(sources, "open", lambda source: replace(shape, path=path, vocabulary=tiny.vocabulary))
    monkeypatch.setattr(importlib.import_module("ryzc.compiler"), "shared_object", _code)
    monkeypatch.setattr(kv_quality, "CONTEXT", 32)
    monkeypatch.setattr(kv_quality, "WINDOWS", 3)
    monkeypatch.setattr(kv_quality.measure, "__kwdefaults__", {**(kv_quality.measure.__kwdefaults__ or {}),
                                                               "context": 32, "windows": 3})  # fmt: skip
    return path


_CODE: dict[tuple[str, str], bytes] = {}


def _code(plan: Plan, target: Target) -> bytes:
    """Code of the tiny model, compiled once for each kind of cache."""
    key = plan.kv.dtype, target.name
    if key not in _CODE:
        _CODE[key] = shared_object(plan, target)
    return _CODE[key]


def _costing(share: float) -> Callable[[str, Perplexity, Perplexity], kv_quality.Cost]:
    return lambda name, found, reference: kv_quality.Cost(
        KV_FORMATS[name], reference.value * (1 + share), reference.value, share, 0.0
    )


def test_a_build_says_what_its_cache_costs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_quality, "cost", _costing(0.0049))
    stages: list[tuple[str, int, int]] = []
    path = build(source, tmp_path / "a.ryzc", kv="int4", progress=lambda *args: stages.append(args))
    made = Bundle.open(path).manifest.provenance
    assert made["kv"] == "int4"
    assert "+0.49%" in str(made["kv_cost"])
    assert [stage[1:] for stage in stages if stage[0] == "try"] == [(i, 6) for i in range(1, 7)]
    assert "kv_cost" not in Bundle.open(build(source, tmp_path / "b.ryzc")).manifest.provenance


def test_a_build_refuses_what_costs_too_much_unless_it_is_forced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kv_quality, "cost", _costing(0.0051))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QualityError, match=r"tiny.gguf: int4 keys and values cost above 0.5%: perplexity .* beside .*"):
        build(source, tmp_path / "a.ryzc", kv="int4")
    assert cli.main(["build", str(source), "-o", str(tmp_path / "a.ryzc"), "--kv", "int4"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "--force" in err
    assert sorted(tmp_path.iterdir()) == before
    assert cli.main(["build", str(source), "-o", str(tmp_path / "a.ryzc"), "--kv", "int4", "--force"]) == 0
    assert "kv_cost" not in Bundle.open(tmp_path / "a.ryzc").manifest.provenance


def test_eval_kv_compares_all_formats(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "kv", str(source), "-c", "32", "--chunks", "3", "-t", "1"]
    assert cli.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["format"]: row for row in report["formats"]}
    assert list(rows) == ["f16", "int16", "int8", "int8-int4", "int4"]
    sizes = [row["bytes_per_token"] for name, row in rows.items() if name != "f16"]
    assert sizes == sorted(sizes, reverse=True)
    assert rows["f16"]["cost"] == 0
    assert all(abs(row["cost"]) < 0.1 for row in rows.values())
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.count("\n") == 7
