"""JSON of a bundle: dataclasses to text and back, with no tolerance for what does not fit.

Bundles are files from elsewhere: every key, type and number is checked, and what is wrong is named
by its path, e.g. ``plan.json: kv.page_tokens``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

from ryzc.bundle.plan import Parameter
from ryzc.errors import BundleError, InternalError

REBUILD: Final = "build the bundle again with `ryzc build`"
LARGEST: Final = 2**63 - 1
"""Offsets and sizes are 64-bit signed in native code."""

T = TypeVar("T")


def encode(value: object) -> Any:
    """Plain JSON data of a dataclass, mapping, sequence or scalar.

    Raises:
        InternalError: where a value has no JSON form that :func:`decode` gives back.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    raise InternalError(f"{value!r} of type {type(value).__name__} cannot be written into a bundle")


def dumps(value: object, *, sort_keys: bool = False) -> str:
    """Text of a value; equal values give equal text."""
    return json.dumps(encode(value), indent=1, sort_keys=sort_keys, ensure_ascii=True) + "\n"


def loads(text: str, where: str) -> Any:
    """Parse JSON text.

    Raises:
        BundleError: where it is malformed, repeats a key, or holds a number that is not finite.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not the JSON that ryzc writes ({error})", hint=REBUILD) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is repeated")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def decode(kind: type[T], value: object, where: str) -> T:
    """Read plain JSON data as a dataclass.

    Args:
        kind: the dataclass; members may be str, int (never negative), bool, other dataclasses,
            homogeneous tuples, mappings from str, and :data:`~ryzc.bundle.plan.Parameter`.
        value: what :func:`loads` gave.
        where: path of the value, for messages.

    Raises:
        BundleError: where a key is missing or unknown, or a value has another type or range.
    """
    result: T = _decode(kind, value, where)
    return result


def _decode(kind: Any, value: object, where: str) -> Any:
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if kind is int:
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise _mismatch(where, "a whole number from 0 to 2^63 - 1", value)
        return value
    if kind is str:
        if type(value) is not str:
            raise _mismatch(where, "a text", value)
        return value
    if kind == Parameter:
        return _decode_parameter(value, where)
    origin = get_origin(kind)
    if origin is tuple:
        element, ellipsis = get_args(kind)
        assert ellipsis is Ellipsis
        if not isinstance(value, list):
            raise _mismatch(where, "a list", value)
        return tuple(_decode(element, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        _, element = get_args(kind)
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        return {key: _decode(element, item, f"{where}[{key!r}]") for key, item in value.items()}
    raise InternalError(f"{where}: members of type {kind} are not supported")


@cache
def _members(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def _decode_dataclass(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, "an object", value)
    members = _members(kind)
    if value.keys() != members.keys():
        missing, unknown = members.keys() - value.keys(), value.keys() - members.keys()
        faults = [f"lacks {key!r}" for key in sorted(missing)] + [f"has unknown {key!r}" for key in sorted(unknown)]
        raise BundleError(f"{where}: {', '.join(faults[:5])}", hint=REBUILD)
    return kind(**{name: _decode(hint, value[name], f"{where}.{name}") for name, hint in members.items()})


def _decode_parameter(value: object, where: str) -> Parameter:
    if isinstance(value, list):
        texts = tuple(item for item in value if type(item) is str)
        numbers = tuple(item for item in value if type(item) is int and abs(item) <= LARGEST)
        if len(texts) == len(value):
            return texts
        if len(numbers) == len(value):
            return numbers
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) or (isinstance(value, int) and abs(value) <= LARGEST):
        return value
    raise _mismatch(where, "a text, a number, a truth value, or a list of texts or whole numbers", value)


def _mismatch(where: str, expected: str, value: object) -> BundleError:
    found = repr(value)
    return BundleError(f"{where}: {found[:60]}{'…' * (len(found) > 60)} is not {expected}", hint=REBUILD)
