"""``ryzc serve``"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ryzc.cli import _terminal
from ryzc.cli._models import bundle_for
from ryzc.errors import UsageError
from ryzc.runtime.server.config import Config, Setting, load, name_of, settings, size

if TYPE_CHECKING:
    from ryzc.runtime.engine import Engine
    from ryzc.runtime.server.models import Entry

SHARE = 0.8
"""Of the free memory, for all models together, where nothing else is said."""

_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")


class _Size(click.ParamType):  # type: ignore[type-arg]
    """Bytes, e.g. 512M or 8G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _option(setting: Setting) -> Callable[[Any], Any]:
    """A setting as an option; what is not given stays ``None``, so that the environment and the file can say."""
    names = [name for name in (setting.short,) if name]
    default = None if setting.optional or setting.many else setting.default
    shown = {True: "on", False: "off"}.get(default, default) if isinstance(default, bool) else default
    help_ = f"{setting.help} [{setting.variable}{'' if shown is None else f'; default: {shown}'}]"
    if setting.kind is bool:
        return click.option(f"{setting.flag}/--no-{setting.flag[2:]}", setting.name, default=None, help=help_)
    kind: Any = _Size() if setting.bytes else click.Path(path_type=Path) if setting.kind is Path else setting.kind
    return click.option(setting.flag, *names, setting.name, type=kind, multiple=setting.many, help=help_)


def _options(function: Any) -> Any:
    for setting in reversed(settings()):
        function = _option(setting)(function)
    return function


@click.command()
@click.argument("models", metavar="[[NAME=]BUNDLE|SRC]…", nargs=-1)
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="Settings, by default ryzc.toml where it lies here."
)
@_options
def command(models: tuple[str, ...], file: Path | None, **flags: Any) -> None:
    """Serve models by OpenAI's interface, with a chat page at /.

    The first model answers requests that name none, and is loaded at once; the others when they are asked for. A
    source is compiled first and kept for the next time. Every option can also stand in the environment, or in the
    table [serve] of ryzc.toml.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    config, listed = load(given, os.environ, file)
    chosen = dict(_named(model) for model in models) or listed
    if not chosen:
        raise UsageError("no model to serve", hint="name one: ryzc serve smollm2")
    if len(models) > len(chosen):
        raise UsageError("two models have the same name", hint="give names: ryzc serve one=a.gguf two=b.gguf")
    config.keys()
    try:
        from ryzc.runtime.server.process import serve
    except ImportError as error:
        raise UsageError(f"serving needs {error.name}", hint="pip install 'ryzc[serve]'") from error
    bundles = {name: bundle_for(source) for name, source in chosen.items()}
    budget = config.model_memory or _budget()
    entries = [entry(name, path, config, budget, len(bundles)) for name, path in bundles.items()]
    _warn(config)
    serve(config, entries, lambda wanted: open_engine(wanted, config), budget)


def _named(model: str) -> tuple[str, str]:
    """The name and source of ``NAME=SOURCE`` or ``SOURCE``."""
    found = _NAMED.fullmatch(model)
    if found and not Path(model).exists():
        return found[1], found[2]
    return name_of(model), model


def _budget() -> int | None:
    from ryzc.targets import free_memory

    free = free_memory()
    return None if free is None else int(free * SHARE)


def _warn(config: Config) -> None:
    if not config.loopback and not config.keys():
        _terminal.say(f"warning: anybody who reaches {config.host}:{config.port} can use this server; see --api-key")


def entry(name: str, path: Path, config: Config, budget: int | None, count: int) -> Entry:
    """A bundle that can be loaded, and what it takes.

    Raises:
        RyzcError: it is damaged, or the context is not possible.
    """
    from ryzc.bundle import Bundle
    from ryzc.runtime.loading import context_of
    from ryzc.runtime.server.models import Entry

    bundle = Bundle.open(path)
    context = context_of(bundle, config.ctx_size)
    keys_and_values = kv_memory(bundle.plan.kv, context, config, budget, count)
    weights = bundle.weights_path.stat().st_size
    nbytes = weights + keys_and_values + bundle.plan.arena_bytes
    return Entry(name, path, nbytes, int(bundle.weights_path.stat().st_mtime), context, keys_and_values)


def kv_memory(kv: Any, context: int, config: Config, budget: int | None, count: int) -> int:
    """Bytes for a model's keys and values: what all its sequences need at full context, within half of its share."""
    if config.kv_memory is not None:
        return config.kv_memory
    one = -(-context // kv.page_tokens) * kv.page_bytes
    share = one * config.parallel if budget is None else budget // (2 * count)
    return int(max(one, min(one * config.parallel, share)))


def open_engine(wanted: Entry, config: Config) -> Engine:
    """Load a model.

    Raises:
        RyzcError: it cannot be loaded.
    """
    from ryzc.cli.run import WEIGHTS
    from ryzc.runtime.engine import Engine

    return Engine(
        wanted.path,
        context=wanted.context,
        sequences=config.parallel,
        threads=config.threads,
        weights=WEIGHTS[config.mmap],
        kv_memory=wanted.kv_memory,
        queue=config.max_queue,
        eviction=config.eviction,
        speculate=config.speculate,
        draft=config.draft,
    )
