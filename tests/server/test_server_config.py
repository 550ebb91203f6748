"""Settings: flag before environment before file before default."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ryzc.cli.serve import command
from ryzc.errors import UsageError
from ryzc.runtime.server.config import Config, load, name_of, settings, size


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_order(tmp_path: Path) -> None:
    (tmp_path / "ryzc.toml").write_text(
        '[serve]\nport = 1\nparallel = 2\nmax_body = "2M"\nmmap = true\napi_key = ["a", "b"]\nmodels = ["x/y.gguf"]\n'
    )
    config, models = load({"port": 3}, {"RYZC_PORT": "2", "RYZC_PARALLEL": "4", "RYZC_API_KEY": "c,d"})
    assert (config.port, config.parallel, config.max_body, config.mmap) == (3, 4, 2 << 20, True)
    assert config.api_key == ("c", "d")
    assert models == {"y": "x/y.gguf"}
    assert config.host == "127.0.0.1"


def test_nothing_is_the_defaults() -> None:
    assert load({}, {}) == (Config(), {})
    assert Config().loopback


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[serve]\nprot = 1", "prot"),
        ("[serve]\nport = 'x'", "port"),
        ("[serve]\nport = 1.5", "port"),
        ("[serve]\nport = -1", "port"),
        ("[serve]\nport = 70000", "port"),
        ("[serve]\nmax_body = 'big'", "max_body"),
        ("[serve]\nmodels = 3", "models"),
        ("[serve]\nlog_level = 'loud'", "log_level"),
        ("[serve]\npage = 'maybe'", "page"),
        ("serve = 3", "table"),
        ("[serve", "ryzc.toml"),
        ("[serve]\nssl_certfile = 'a'", "certificate"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "ryzc.toml").write_text(text)
    with pytest.raises(UsageError, match=match):
        load({}, {})


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[serve]\nport = 5\n[serve.models]\nsmall = 'a.gguf'\n")
    assert load({}, {"RYZC_CONFIG": "my.toml"}) == load({}, {}, tmp_path / "my.toml")
    assert load({}, {"RYZC_CONFIG": "my.toml"})[1] == {"small": "a.gguf"}
    with pytest.raises(UsageError):
        load({}, {}, tmp_path / "none.toml")


def test_keys_of_a_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nfirst\n\nsecond \n")
    assert Config(api_key=("zero",), api_key_file=keys).keys() == ("zero", "first", "second")
    keys.write_text("\n")
    with pytest.raises(UsageError, match="holds no key"):
        Config(api_key_file=keys).keys()


@pytest.mark.parametrize(("text", "bytes_"), [("512M", 512 << 20), ("8G", 8 << 30), ("1.5 GiB", 3 << 29), (7, 7)])
def test_sizes(text: str | int, bytes_: int) -> None:
    assert size(text) == bytes_


def test_names() -> None:
    assert [name_of(s) for s in ("smollm2", "a/b.gguf", "/x/y.ryzc/", "hf:org/repo")] == ["smollm2", "b", "y", "repo"]


def test_every_setting_is_an_option_of_the_command() -> None:
    shown = CliRunner().invoke(command, ["--help"]).output
    for setting in settings():
        assert setting.flag in shown
        assert setting.variable in shown


def test_a_server_without_models_is_refused() -> None:
    result = CliRunner().invoke(command, [])
    assert isinstance(result.exception, UsageError)


def test_without_the_extra_it_says_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ryzc.runtime.server.process", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(command, [str(bundle)])
    assert isinstance(result.exception, UsageError)
    assert result.exception.hint == "pip install 'ryzc[serve]'"
