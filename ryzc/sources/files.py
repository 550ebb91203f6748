"""Files of a source: mapped bytes and small texts, with errors that say what is wrong with them."""

from __future__ import annotations

import json
import mmap
import os
import stat
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ryzc.errors import SourceError

DAMAGED: Final = "the file is damaged or incomplete; fetch it again"


def mapped(path: Path, kind: str) -> npt.NDArray[np.uint8]:
    """The file's bytes, mapped read-only: ``uint8 [size]``.

    Args:
        kind: what it should be, e.g. ``GGUF``, for messages.

    Raises:
        SourceError: it is missing, empty, no regular file, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SourceError(f"{path}: is no regular file", hint="copy its bytes into a file first")
            if status.st_size == 0:
                raise SourceError(f"{path}: is empty", hint=DAMAGED)
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"{path}: no such file", hint="check the path") from error
    except IsADirectoryError as error:
        raise SourceError(f"{path}: is a directory, not a {kind} file", hint=f"name the {kind} file in it") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}", hint="check the path and its rights") from error
    except ValueError as error:  # a zero byte in the path; a file emptied since it was opened
        raise SourceError(f"{str(path)!r}: cannot be mapped: {error}", hint="check the path") from error
    return np.frombuffer(view, np.uint8)


def _open_without_waiting(path: str, flags: int) -> int:
    """A pipe that nobody writes to would block an ordinary open."""
    return os.open(path, flags | os.O_NONBLOCK)


def text(path: Path, limit: int) -> str:
    """The file's text.

    Raises:
        SourceError: as :func:`mapped`, or it is longer than ``limit`` bytes, or no UTF-8.
    """
    raw = mapped(path, "text")
    if len(raw) > limit:
        raise SourceError(f"{path}: is {len(raw)} bytes long, more than {limit}", hint=DAMAGED)
    try:
        return raw.tobytes().decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: is not UTF-8", hint=DAMAGED) from error


def json_object(source: str, where: str) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        SourceError: it is malformed, repeats a key, holds a number that is not finite, or is no object.
    """
    try:
        value = json.loads(source, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: is no JSON ({error})", hint=DAMAGED) from error
    if not isinstance(value, dict):
        raise SourceError(f"{where}: is no JSON object", hint=DAMAGED)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is repeated")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
