"""The command line as a whole: what goes where, and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest

import ryzc
from ryzc import cli
from ryzc.cli import _terminal
from ryzc.errors import BundleError, InternalError

COMMANDS = cli.cli.list_commands(click.Context(cli.cli))
ROOT = Path(ryzc.__file__).parents[1]


def ryzc_command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A real process."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "ryzc", *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_help_and_version_go_to_stdout() -> None:
    result = ryzc_command("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"ryzc {ryzc.__version__}\n", "")
    result = ryzc_command("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)
    assert not any(line.endswith("...") for line in result.stdout.splitlines()[1:]), "a command's line is cut off"


def test_version_is_the_package_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ryzc.__version__


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"ryzc {name}" in out
    assert not err


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["verify"],
        ["verify", "a", "b"],
        ["run", "x", "y", "--no-such-flag"],
        ["run", "x", "y", "-n", "-2"],
        ["run", "x", "y", "-c", "0"],
        ["run", "x", "y", "-t", "0"],
        ["run", "x", "y", "--temp", "hot"],
        ["run", "x", "y", "--temp", "-1"],
        ["run", "x", "y", "--top-p", "2"],
        ["run", "x", "y", "-s", "-2"],
        ["run", "x", ""],
        ["run", "x", "y", "--raw", "--system", "z"],
        ["bench", "x", "-p", "512;128"],
        ["bench", "x", "-r", "0"],
        ["bench", "x", "-t", "0"],
        ["bench", "x", "-o", "sql"],
        ["bench", "no-such-bundle"],
        ["eval", "perplexity", "x"],
        ["eval", "perplexity", "no-such-bundle", "--text", "no-such-file"],
        ["verify", "no-such-bundle"],
        ["build", "x", "--target", "znver4,,znver3"],
        ["build", "x", "--target", ""],
    ],
    ids=" ".join,
)
def test_what_the_user_can_mend(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "\nhint: " in err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Commands:" in err


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (BundleError("m.ryzc: broken", hint="build it again"), 1, ["error: m.ryzc: broken", "hint: build it again"]),
        (BundleError("m.ryzc: broken"), 1, ["error: m.ryzc: broken"]),
        (InternalError("kernel k: out of step"), 2, ["error: kernel k: out of step"]),
        (OSError(28, "No space left on device", "f"), 1, ["error: f: No space left on device"]),
        (KeyboardInterrupt(), 130, None),
        (ZeroDivisionError("by zero"), 2, ["error: ZeroDivisionError: by zero", "hint: this is a fault of ryzc"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors(
    error: BaseException,
    code: int,
    lines: list[str] | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ryzc.bundle.verify", raising(error))
    assert cli.main(["verify", "x"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    if lines is not None:
        assert [line[: len(start)] for line, start in zip(err.splitlines(), lines, strict=True)] == lines
    assert "Traceback" not in err


def test_out_of_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ryzc.bundle.verify", raising(MemoryError()))
    assert cli.main(["verify", "x"]) == 1
    assert "not enough memory" in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RYZC_DEBUG", "1")
    assert cli.main(["verify", "no-such-bundle"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "error: no-such-bundle" in err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        result = subprocess.run(
            [sys.executable, "-m", "ryzc", "--help"], stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (result.returncode, result.stderr) == (0, b"")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from ryzc import cli; cli.main(['--help']); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(result.stderr.split())
    assert not loaded & {"numpy", "onnx", "onnx_ir", "llvmlite", "rich", "jinja2", "tokenizers", "platformdirs"}


def test_build_stays_a_function() -> None:
    code = (
        "import ryzc, types, sys\n"
        "before = ryzc.build\n"
        "import ryzc.compiler\n"
        "from ryzc.compiler import build, plan\n"
        "assert ryzc.build is before and not isinstance(before, types.ModuleType)\n"
        "assert sys.modules['ryzc.compiler'].build is build\n"
        "assert set(ryzc.__all__) <= set(dir(ryzc)) and ryzc.errors.RyzcError\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_package_s_build_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("ryzc.compiler")
    calls: list[object] = []
    module.build = lambda *a, **k: calls.append((a, k)) or Path("x.ryzc")  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "ryzc.compiler", module)
    assert ryzc.build("m.gguf", targets=["znver3"], progress=None) == Path("x.ryzc")
    assert calls == [(("m.gguf", None), {"targets": ["znver3"], "activations": "int8", "progress": None})]


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (96_600_000, "96.6 MB"), (3e15, "3000.0 TB")]
)
def test_sizes(nbytes: int, text: str) -> None:
    assert _terminal.size(nbytes) == text


def test_counts() -> None:
    assert [_terminal.count(n) for n in (0, 12, 134_515_008, 2_400_000_000)] == ["0", "12", "134.5 M", "2.4 G"]


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert _terminal.printable("a\x1b]52;c;x\x07\tb\n\x9bé\r") == "a]52;c;x\tb\né"


def test_progress_is_silent_off_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    with _terminal.progress() as update:
        update("stage", 1, 2)
    assert capsys.readouterr() == ("", "")
