"""README and docs tell the truth as far as a machine can check: links, tables, trees, commands, snippets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ryzc import cli, errors
from ryzc.bundle import abi

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
SOURCE_PATH = re.compile(r"`((?:ryzc|tests|benchmarks)/[\w/.-]+|(?:models|passes|runtime|lower)/[\w/]+\.py)`")


def _blocks(page: Path, language: str) -> Iterator[str]:
    return iter(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


def _command_lines(page: Path) -> Iterator[str]:
    for block in _blocks(page, "console"):
        for line in block.splitlines():
            for part in line.removeprefix("$ ").split("#")[0].split("|"):
                if part.strip().startswith("ryzc "):
                    yield part.strip()


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("https://", "http://", "#"))]
    assert not [link for link in local if not (page.parent / link.split("#")[0]).exists()]


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    named = SOURCE_PATH.findall(page.read_text(encoding="utf-8"))
    missing = [n for n in named if "NAME" not in n and not (ROOT / n).exists() and not (ROOT / "ryzc" / n).exists()]
    assert not missing


@every_page
def test_commands_parse(page: Path) -> None:
    for line in _command_lines(page):
        name, *arguments = shlex.split(line)[1:]
        command = cli.cli.get_command(click.Context(cli.cli), name)
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), arguments[0])
        assert command is not None, line
        # Paths in examples do not exist, so only names of options and their arity are checked.
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {a for a in arguments if re.fullmatch(r"-{1,2}[a-z][\w-]*", a)}
        assert used <= known | {"-h", "--help"}, line


@every_page
def test_python_snippets_compile(page: Path) -> None:
    for snippet in _blocks(page, "python"):
        compile(snippet, str(page), "exec")


def test_readme_shows_commands() -> None:
    assert len(list(_command_lines(ROOT / "README.md"))) >= 5


def test_the_abi_table_is_the_abi() -> None:
    text = (ROOT / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    for fields in (abi.FIELDS, abi.ROW_FIELDS):
        rows = [f"| {f.offset} | {f.type} | `{f.name}` | {f.doc} |" for f in fields]
        assert "\n".join(rows) in text


def test_the_error_tree_is_the_error_tree() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\b(\w+Error)\b", text.partition("one tree")[2]))
    real = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.RyzcError)}
    assert shown == real
