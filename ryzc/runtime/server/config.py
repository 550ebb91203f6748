"""Every setting of the server, once: flags, environment and ``ryzc.toml`` are read off one dataclass."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ryzc.errors import UsageError

FILE = "ryzc.toml"
PREFIX = "RYZC_"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size(text: str | int) -> int:
    """Bytes of ``512M``, ``8G`` or a plain number.

    Raises:
        ValueError: it is neither.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", str(text).strip().lower())
    if not found:
        raise ValueError(f"{text!r} is no size such as 512M or 8G")
    return int(float(found[1]) * _UNITS[found[2]])


def _set(default: Any, help_: str, flag: str | None = None, *, bytes_: bool = False, least: float | None = None) -> Any:
    about = {"help": help_, "flag": flag, "bytes": bytes_, "least": least}
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class Config:
    """The settings; each field's metadata says what it means and what its short flag is."""

    host: str = _set("127.0.0.1", "Address to listen on; 0.0.0.0 is every interface.")
    port: int = _set(8080, "Port; 0 takes any free one.", least=0)
    api_key: tuple[str, ...] = _set((), "Key that requests must carry; may be given several times.")
    api_key_file: Path | None = _set(None, "File with one key a line, which no process list shows.")  # noqa: RUF009 - a field
    ssl_certfile: Path | None = _set(None, "Certificate (PEM): serve HTTPS.")  # noqa: RUF009 - a field
    ssl_keyfile: Path | None = _set(None, "Its private key (PEM).")  # noqa: RUF009 - a field
    cors_origin: tuple[str, ...] = _set((), "Web origin whose pages may call this server; '*' is any.")
    allowed_host: tuple[str, ...] = _set(
        (), "Host names that requests may address; by default this machine's own on loopback, any elsewhere."
    )
    page: bool = _set(True, "Serve the chat page at /.")

    ctx_size: int | None = _set(None, "Tokens of prompt and answer together; by default 4096.", "-c", least=1)
    parallel: int = _set(16, "Requests that run at the same time.", "-np", least=1)
    threads: int | None = _set(None, "Threads; by default the physical cores.", "-t", least=1)
    mmap: bool | None = _set(
        None, "Map the weights' file, or copy it into huge pages; by default a copy if memory allows."
    )
    kv_memory: int | None = _set(None, "Memory for keys and values of one model, e.g. 2G.", bytes_=True)
    eviction: str = _set("arc", "Which cached prefix goes first when memory is short.")
    speculate: str = _set("auto", "Drafter that guesses ahead; off for none. It changes the speed, never an answer.")
    draft: Path | None = _set(None, "Bundle of a small model that drafts.")  # noqa: RUF009 - a field
    model_memory: int | None = _set(
        None,
        "Memory for all loaded models; idle ones are unloaded beyond it. By default 0.8 of what is free.",
        bytes_=True,
    )

    max_body: int = _set(8 << 20, "Largest body of a request (413 beyond).", bytes_=True, least=1)
    max_prompt: int | None = _set(None, "Most tokens of a prompt; by default what the context holds.", least=1)
    max_tokens: int | None = _set(None, "Most tokens of an answer, whatever a request asks for.", least=1)
    max_n: int = _set(16, "Most choices of a request, and most prompts of a completion.", least=1)
    max_queue: int = _set(256, "Requests that may wait (429 beyond).", least=0)
    request_timeout: float = _set(600.0, "Seconds that a request may take, its wait included; 0 is no limit.", least=0)
    body_timeout: float = _set(30.0, "Seconds in which a body must have come.", least=0)
    send_timeout: float = _set(60.0, "Seconds after which a client that reads nothing is dropped.", least=0)
    load_timeout: float = _set(120.0, "Seconds that a request waits for its model to be loaded (503 beyond).", least=0)
    drain_timeout: float = _set(0.0, "Seconds that a stop waits for accepted requests; 0 is until they end.", least=0)

    log_level: str = _set("info", "debug, info, warning or error.")
    log_format: str = _set("text", "text (key=value) or json.")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), field.metadata["least"]
            if least is not None and value is not None and value < least:
                raise UsageError(f"{field.name} cannot be {value}", hint=f"choose {least} or more")
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"there is no port {self.port}", hint="choose 0 to 65535")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise UsageError("HTTPS needs a certificate and its key", hint="give --ssl-certfile and --ssl-keyfile")
        _one_of("log_level", self.log_level, ("debug", "info", "warning", "error"))
        _one_of("log_format", self.log_format, ("text", "json"))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def keys(self) -> tuple[str, ...]:
        """All keys, those of the file included; empty where none is needed.

        Raises:
            UsageError: the file cannot be read or holds none.
        """
        if self.api_key_file is None:
            return self.api_key
        try:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self.api_key_file}: {error}", hint="give a readable file with one key a line"
            ) from error
        found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        if not found:  # an empty file must not open the door
            raise UsageError(f"{self.api_key_file} holds no key", hint="write one key a line")
        return (*self.api_key, *found)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name} cannot be {value!r}", hint=f"choose {', '.join(known)}")


@dataclass(frozen=True)
class Setting:
    """A field of :class:`Config` as a user sees it."""

    name: str
    default: Any
    help: str
    short: str | None
    kind: type
    many: bool
    optional: bool
    bytes: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    def read(self, value: Any, where: str) -> Any:
        """A value as text (environment) or as TOML gives it.

        Raises:
            UsageError: it is of another kind.
        """
        try:
            if self.many:
                parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
                return tuple(str(part) for part in parts if part)
            if self.bytes:
                return size(value)
            if self.kind is bool:
                return _truth(value)
            if self.kind is int and isinstance(value, bool | float):
                raise ValueError(f"{value!r} is no whole number")
            return self.kind(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: {error}", hint=self.help) from error


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if str(value).lower() not in words:
        raise ValueError(f"{value!r} is neither true nor false")
    return words[str(value).lower()]


def settings() -> list[Setting]:
    """Every setting, in order."""
    hints = get_type_hints(Config)
    found = []
    for field in dataclasses.fields(Config):
        kinds = [kind for kind in get_args(hints[field.name]) or (hints[field.name],) if kind not in (type(None), ...)]
        about = field.metadata
        many = isinstance(field.default, tuple)
        optional = field.default is None
        found.append(
            Setting(field.name, field.default, about["help"], about["flag"], kinds[0], many, optional, about["bytes"])
        )
    return found


def load(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None
) -> tuple[Config, dict[str, str]]:
    """The settings: a flag beats the environment, which beats the file, which beats the default.

    Args:
        flags: those that were given.
        environment: variables; ``RYZC_CONFIG`` may name the file.
        file: the file, which must exist; by default ``ryzc.toml`` here, if there is one.

    Returns:
        The settings, and the models that the file names: name to bundle or source.

    Raises:
        UsageError: a setting is unknown or makes no sense.
    """
    table, models = _read(file, environment)
    known = {setting.name: setting for setting in settings()}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UsageError(f"{FILE}: [serve] knows no {', '.join(unknown)}", hint=f"it knows {', '.join(known)}")
    values = {name: known[name].read(value, f"{FILE}: {name}") for name, value in table.items()}
    for setting in known.values():
        if setting.variable in environment:
            values[setting.name] = setting.read(environment[setting.variable], setting.variable)
    return Config(**{**values, **flags}), models


def _read(file: Path | None, environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    named = file or (Path(environment[PREFIX + "CONFIG"]) if PREFIX + "CONFIG" in environment else None)
    path = named or Path(FILE)
    if named is None and not path.is_file():
        return {}, {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}", hint="give a readable TOML file") from error
    table = document.get("serve", {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: 'serve' must be a table", hint="write [serve]")
    models = table.pop("models", {})
    if isinstance(models, list):
        models = {name_of(str(source)): str(source) for source in models}
    if not isinstance(models, dict) or not all(isinstance(source, str) for source in models.values()):
        raise UsageError(f"{path}: 'models' must be a list of sources or a table of names", hint='models = ["smollm2"]')
    return table, dict(models)


def name_of(source: str) -> str:
    """The name that a bundle or source is served by, where none is given."""
    stem = source.rstrip("/").rsplit("/", 1)[-1]
    for ending in (".ryzc", ".gguf"):
        stem = stem.removesuffix(ending)
    return stem
