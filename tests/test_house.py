"""The rooms of the house: who may import whom, and what a program that only runs bundles never loads."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_chat

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ryzc"

FLOORS = (
    {"cli"},
    {"training"},
    {"compiler"},
    {"lower"},
    {"models", "templates", "runtime"},
    {"passes", "sources", "codegen", "bundle"},
    {"graph"},
    {"formats", "kv_formats", "targets"},
    {"errors"},
)
"""From the top; a room imports itself and rooms of floors below."""

FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}

ENTRANCES = {"__init__.py", "__main__.py"}
"""They stand outside: the public functions lead into rooms of any floor."""

PAIRS_APART = {
    **{(room, other): "the compiler's front knows no CPU" for room in ("graph", "models", "passes") for other in
       ("targets", "codegen")},
    ("codegen", "models"): "code does not depend on architectures",
    ("templates", "models"): "kernels do not depend on architectures",
}  # fmt: skip

RUNTIME_KNOWS = {"runtime", "bundle", "kv_formats", "targets", "errors"}

FOREIGN_APART = {
    "runtime": {"onnx", "onnx_ir", "llvmlite", "safetensors", "huggingface_hub"},
    "bundle": {"onnx", "onnx_ir", "llvmlite"},
}

MAX_LINES = 1000


@dataclass(frozen=True)
class Import:
    """An import statement anywhere in a file, functions and ``TYPE_CHECKING`` blocks included."""

    file: str
    line: int
    room: str
    target: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.room}) imports {self.target}"


def _rooms() -> set[str]:
    return {p.stem for p in PACKAGE.iterdir() if p.name not in ENTRANCES and (p.suffix == ".py" or _is_room(p))}


def _is_room(path: Path) -> bool:
    return path.is_dir() and any(path.rglob("*.py"))


def _files() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if not (p.parent == PACKAGE and p.name in ENTRANCES)]


def _modules(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Full names of what an import statement asks for; ``package`` is the one that the file lies in."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        start = ".".join([*base, *([node.module] if node.module else [])])
        yield from (f"{start}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        first = node.args[0] if node.args else None
        if name in ("import_module", "__import__") and isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


def imports_of(source: str, file: str) -> list[Import]:
    """Every import of a file of the package, ``file`` being its path below the package."""
    parts = Path(file).with_suffix("").parts
    package = ["ryzc", *parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(source)):
        for name in _modules(node, package):
            found.append(Import(file, getattr(node, "lineno", 0), parts[0], name))
    return found


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return [i for p in _files() for i in imports_of(p.read_text(), p.relative_to(PACKAGE).as_posix())]


def _room_of(target: str) -> str | None:
    """The room that a module of ryzc lies in; ``None`` for other modules and for the package's own names."""
    first, _, rest = target.partition(".")
    room = rest.split(".")[0]
    return room if first == "ryzc" and room in _rooms() else None


def test_every_room_has_a_floor() -> None:
    assert _rooms() == set(FLOOR)


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import onnx.helper
from ryzc import models as m, __version__
from . import step
from ..bundle.read import Bundle
if TYPE_CHECKING:
    from ryzc.cli import main
def f():
    import ryzc.compiler
    class A:
        from llvmlite import ir
    importlib.import_module("ryzc.lower.module")
"""
    assert {i.target for i in imports_of(source, "runtime/engine.py")} == {
        "onnx.helper",
        "ryzc.models",
        "ryzc.__version__",
        "ryzc.runtime.step",
        "ryzc.bundle.read.Bundle",
        "ryzc.cli.main",
        "ryzc.compiler",
        "llvmlite.ir",
        "ryzc.lower.module",
    }


def test_imports_lead_downwards(imports: list[Import]) -> None:
    rising = [
        f"{i}: upwards or sideways"
        for i in imports
        if (room := _room_of(i.target)) and room != i.room and FLOOR[room] <= FLOOR[i.room]
    ]
    assert not rising


def test_nobody_imports_the_whole_package(imports: list[Import]) -> None:
    # ``import ryzc`` or one of its functions would lead into every room past all floors.
    allowed = {"ryzc.__version__"}
    own = [i for i in imports if i.target.split(".")[0] == "ryzc" and _room_of(i.target) is None]
    assert not [str(i) for i in own if i.target not in allowed]


def test_walls(imports: list[Import]) -> None:
    broken = []
    for i in imports:
        room = _room_of(i.target)
        reason = PAIRS_APART.get((i.room, room or ""))
        if reason:
            broken.append(f"{i}: {reason}")
        if i.room == "runtime" and room not in {None, *RUNTIME_KNOWS}:
            broken.append(f"{i}: the runtime knows only {', '.join(sorted(RUNTIME_KNOWS))}")
        if room is None and i.target.split(".")[0] in FOREIGN_APART.get(i.room, ()):
            broken.append(f"{i}: this room runs without it")
    assert not broken


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.write(tmp_path_factory.mktemp("house") / "tiny.ryzc")


def test_running_a_bundle_loads_no_compiler(chat: Path) -> None:
    program = """
import json, sys
import ryzc
with ryzc.load(sys.argv[1], threads=1) as model:
    text = model.generate("hello world", max_tokens=8, seed=1).text()
loaded = {name.partition(".")[0] for name in sys.modules}
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("ryzc.")}
print(json.dumps([text, sorted(loaded), sorted(rooms)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(chat)], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    text, loaded, rooms = json.loads(done.stdout)
    assert text
    assert not {"onnx", "onnx_ir", "llvmlite", "safetensors", "huggingface_hub", "llguidance"} & set(loaded)
    assert set(rooms) == RUNTIME_KNOWS


def test_only_the_server_needs_what_serving_needs(imports: list[Import]) -> None:
    needed = {"fastapi", "starlette", "uvicorn", "pydantic"}
    users = {i.file for i in imports if i.target.split(".")[0] in needed}
    assert users
    assert not [file for file in users if not file.startswith("runtime/server/")]


def test_only_training_needs_pytorch(imports: list[Import]) -> None:
    users = {i.file for i in imports if i.target.split(".")[0] == "torch"}
    assert users
    assert not [file for file in users if not file.startswith("training/") and file != "cli/train.py"]


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_is_too_long() -> None:
    texts = {".py", ".j2", ".md", ".toml", ".sh", ".yml", ".yaml", ".html"}
    lines = {p.relative_to(ROOT).as_posix(): p.read_bytes().count(b"\n") for p in _tracked() if p.suffix in texts}
    assert not {name: count for name, count in lines.items() if count > MAX_LINES}


def test_no_file_reports_on_the_work() -> None:
    # How things stand is told by the code, its tests and the history; a file about it is wrong a week later.
    words = re.compile(
        r"(^|[_\-. ])(status|progress|todo|handoff|handover|worklog|changes|summary|session)([_\-. ]|$)", re.I
    )
    assert not [p.relative_to(ROOT).as_posix() for p in _tracked() if words.search(p.stem)]
