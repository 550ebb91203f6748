"""Architectures, one file each. ``get("llama")`` finds one by its file's name, or by another that sources give it.

An architecture's file defines ``Config``, a dataclass with ``from_checkpoint``, and
``graph(config, checkpoint)``, which writes the semantic graph (see :mod:`ryzc.graph`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import onnx_ir as ir

from ryzc.errors import UnsupportedError
from ryzc.models.architecture import Config
from ryzc.sources.checkpoint import Checkpoint

__all__ = ["Architecture", "Config", "SemanticModel", "get", "load", "names"]

_NOT_ARCHITECTURES = {"architecture", "blocks"}
_OTHER_NAMES = {"bitnet-b1.58": "bitnet", "bitnet-25": "bitnet"}
"""Architectures of files that have another's name."""


@dataclass(frozen=True)
class Architecture:
    """What a file of this package offers.

    Attributes:
        config: its ``Config``.
        graph: its function from a configuration and a checkpoint to the semantic graph.
    """

    config: type[Config]
    graph: Callable[[Any, Checkpoint], ir.Model]


@dataclass(frozen=True)
class SemanticModel:
    """A source's model as a graph.

    Attributes:
        config: the architecture's numbers; see :class:`ryzc.models.architecture.Config`.
        ir_model: the semantic graph. Passes change it in place.
    """

    config: Config
    ir_model: ir.Model


@cache
def names() -> tuple[str, ...]:
    """The names of all architectures, sorted."""
    return tuple(sorted({m.name for m in iter_modules(__path__)} - _NOT_ARCHITECTURES | _OTHER_NAMES.keys()))


def get(architecture: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UnsupportedError: where there is none.
    """
    if architecture not in names():
        raise UnsupportedError(
            f"architecture {architecture!r} is not known", hint=f"ryzc compiles {', '.join(names())}"
        )
    module = import_module(f"{__name__}.{_OTHER_NAMES.get(architecture, architecture)}")
    return Architecture(module.Config, module.graph)


def load(checkpoint: Checkpoint) -> SemanticModel:
    """Read the configuration of a checkpoint and write its semantic graph.

    Raises:
        UnsupportedError: it holds something that its architecture's file does not know.
        SourceError: it lacks something, or shapes contradict each other.
    """
    architecture = get(checkpoint.architecture)
    config = architecture.config.from_checkpoint(checkpoint)
    return SemanticModel(config, architecture.graph(config, checkpoint))
