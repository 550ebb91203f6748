"""Fixtures of the bundle room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tiny_bundle import write_tiny


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's speed is not under test; tests in processes of their own still wait for it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle that no test changes."""
    return write_tiny(tmp_path_factory.mktemp("bundle") / "tiny.ryzc")


@pytest.fixture
def tiny(tmp_path: Path, pristine: Path) -> Path:
    """A tiny bundle of the test's own."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny.ryzc"))
