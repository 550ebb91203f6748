"""What a pass is, and how one is applied.

A pass changes a graph in place without changing what it computes. It names the facts that it
``requires`` of the graph and those that it ``ensures``; facts are kept in the model's metadata, so a
graph read back from a file knows how far it has come. Applying a pass again changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from ryzc.errors import InternalError, RyzcError
from ryzc.graph import ops

_FACTS = "ryzc.facts"
_PASSES = "ryzc.passes"


@dataclass(frozen=True)
class Report:
    """What a pass did.

    Attributes:
        name: the pass.
        changed: whether the graph is another than before.
        figures: counts and sizes, for ``ryzc inspect`` and the build report.
    """

    name: str
    changed: bool
    figures: Mapping[str, int | float | str] = field(default_factory=dict)


class Pass(ABC):
    """Graph to graph, meaning kept. Subclasses live one to a file of this package.

    Attributes:
        name: the file's name.
        requires: facts that must hold before, each ensured by another pass.
        ensures: facts that hold afterwards.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, model: ir.Model) -> Report:
        """Change ``model`` in place."""

    def report(self, **figures: int | float | str) -> Report:
        """A report of these figures; the graph changed if a count among them is not zero."""
        return Report(self.name, any(value != 0 for value in figures.values() if isinstance(value, int)), figures)


def apply(pass_: Pass, model: ir.Model) -> Report:
    """Check what the pass requires, run it, and note what it ensures.

    Raises:
        InternalError: a required fact does not hold, or the pass failed; the message names the pass
            and those that ran before it.
        UserError: the pass met something that ryzc does not support.
    """
    facts = _list(model, _FACTS)
    before = _list(model, _PASSES)
    ran = f"before it ran: {', '.join(before) or 'no pass'}"
    lacking = [fact for fact in pass_.requires if fact not in facts]
    if lacking:
        raise InternalError(f"pass {pass_.name} requires {', '.join(lacking)}, which no pass has ensured; {ran}")
    try:
        report = pass_.run(model)
    except RyzcError:
        raise
    except Exception as error:
        raise InternalError(f"pass {pass_.name} failed: {error!r}; {ran}") from error
    ops.attach(model)
    model.metadata_props[_FACTS] = ",".join(dict.fromkeys([*facts, *pass_.ensures]))
    model.metadata_props[_PASSES] = ",".join(dict.fromkeys([*before, pass_.name]))
    return report


def _list(model: ir.Model, key: str) -> list[str]:
    return [item for item in model.metadata_props.get(key, "").split(",") if item]
