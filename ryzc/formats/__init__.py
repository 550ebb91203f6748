"""Weight formats, one file each. ``get("q4_1")`` finds a format by its file's name."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from ryzc.errors import UnsupportedError
from ryzc.formats.weight_format import AffineFormat, Codes, FloatFormat, TernaryFormat, WeightFormat

__all__ = ["AffineFormat", "Codes", "FloatFormat", "TernaryFormat", "WeightFormat", "get", "names"]

_NOT_FORMATS = {"weight_format", "lanes", "trits", "bits", "exact_ternary", "trit_format"}


@cache
def names() -> tuple[str, ...]:
    """The names of all formats, sorted."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if m.name not in _NOT_FORMATS))


@cache
def get(name: str) -> WeightFormat:
    """The format of that name.

    Raises:
        UnsupportedError: where there is none.
    """
    if name not in names():
        raise UnsupportedError(
            f"weight format {name!r} is not known",
            hint=f"ryzc reads {', '.join(names())}; convert the model to one of these",
        )
    format_: WeightFormat = import_module(f"{__name__}.{name}").FORMAT
    return format_
