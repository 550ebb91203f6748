"""Choosing a target, and what importing the room costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ryzc import targets
from ryzc.bundle import Bundle
from ryzc.errors import TargetError


def test_choice_is_held_against_the_features_in_the_manifest(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def best(names: Any, cpu: Any) -> Any:
        asked.append((tuple(names), cpu))
        return SimpleNamespace(name="znver4")

    monkeypatch.setattr(targets, "best", best, raising=False)
    opened = Bundle.open(pristine)
    able: Any = SimpleNamespace(features=frozenset({"avx2", "avx512f", "gfni"}))
    assert opened.choose(able).name == "znver4"
    assert asked == [(("znver3", "znver4"), able)]
    unable: Any = SimpleNamespace(features=frozenset({"avx2"}))
    with pytest.raises(TargetError, match="needs avx512f") as caught:
        opened.choose(unable)
    assert caught.value.hint


def test_the_room_needs_nothing_of_the_compiler() -> None:
    script = (
        "import ryzc.bundle, sys; print({'onnx', 'onnx_ir', 'llvmlite', 'safetensors', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
