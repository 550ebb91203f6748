"""The wheel: made from what git tracks, it holds the package and nothing else, and works where it is installed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files, as they are in the last commit: what lies around here would hide that a file is missing."""
    done = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    path = tmp_path_factory.mktemp("checkout")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(path, filter="fully_trusted")
    return path


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-index", "--quiet", "-w", str(directory)]
    # A second build from the same place must not take up what the first one left there.
    for _ in range(2):
        # The build backend comes with the developer's environment: nothing is fetched.
        subprocess.run([*PIP, "wheel", "--no-build-isolation", *options, str(checkout)], check=True, timeout=300)
    (path,) = directory.iterdir()
    return path


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_is_pure_python(wheel: Path) -> None:
    assert wheel.name.startswith("ryzc-")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_nothing_but_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in _names(wheel)}
    assert tops == {"ryzc", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}


def test_every_file_of_the_package(wheel: Path, checkout: Path) -> None:
    tracked = {p.relative_to(checkout).as_posix() for p in (checkout / "ryzc").rglob("*") if p.is_file()}
    tracked -= {name for name in tracked if "__pycache__" in name}
    found = {name for name in _names(wheel) if name.startswith("ryzc/")}
    assert found == tracked
    assert "ryzc/py.typed" in found
    assert any(name.endswith(".j2") for name in found)


def test_the_wheel_names_its_command_and_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (archive.read(n).decode() for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        (points,) = (archive.read(n).decode() for n in archive.namelist() if n.endswith("entry_points.txt"))
    assert "ryzc = ryzc.cli:entry" in points
    assert "Requires-Python: >=3.11" in metadata


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [*PIP, "install", "--no-deps", "--no-index", "--quiet", "--target", str(directory), str(wheel)],
        check=True,
        timeout=300,
    )
    return directory


def _environment(installed: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed)}


def test_the_command_runs_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "ryzc"
    for arguments, mention in ((["--version"], "ryzc 0."), (["--help"], "Commands:"), (["targets"], "znver4")):
        done = subprocess.run(
            [str(command), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=tmp_path,
            env=_environment(installed),
        )
        assert mention in done.stdout


def test_the_installed_package_builds_and_runs(installed: Path, tmp_path: Path) -> None:
    """A tiny model from file to text, which takes the scaffold's template along."""
    program = """
import sys
from pathlib import Path
import ryzc
assert Path(ryzc.__file__).is_relative_to(sys.argv[1]), ryzc.__file__
sys.path.append(sys.argv[2])
import gguf_writer, tiny_chat
source = gguf_writer.write_checkpoint(Path("tiny.gguf"), tiny_chat.checkpoint())
with ryzc.load(ryzc.build(source), threads=1) as model:
    print(len(model.generate("hello world", max_tokens=4, seed=1).new_ids))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(installed), str(ROOT / "tests")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=_environment(installed),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.gguf", "tiny.ryzc"]
