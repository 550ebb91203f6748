"""``ryzc train`` where PyTorch is missing; tests/training has the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ryzc import cli


def test_without_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["train", "--text", str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.gguf")]) == cli.USER_ERROR
    out, err = capsys.readouterr()
    assert out == ""
    assert "needs PyTorch" in err
    assert "pip install 'ryzc[train]'" in err
    assert not list(tmp_path.iterdir())


def test_help_needs_no_pytorch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["train", "--help"]) == 0
    assert "--resume" in capsys.readouterr().out
