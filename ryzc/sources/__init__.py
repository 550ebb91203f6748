"""What comes in: model files and where to get them, read into one :class:`Checkpoint`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ryzc.errors import SourceError, UnsupportedError
from ryzc.sources import huggingface
from ryzc.sources.checkpoint import Checkpoint, StoredTensor, Vocabulary
from ryzc.sources.pull import Progress, names, pull
from ryzc.sources.samples import SAMPLES, Sample

__all__ = [
    "SAMPLES",
    "Checkpoint",
    "Progress",
    "Sample",
    "StoredTensor",
    "Vocabulary",
    "digest",
    "locate",
    "names",
    "open",
    "pull",
]


def open(source: str | Path, *, progress: Progress | None = None) -> Checkpoint:
    """Read a model: a GGUF file's path, a named sample, or ``hf:ORG/REPO[:FILE]``.

    Raises:
        SourceError, UnsupportedError, DownloadError, UsageError: see :mod:`ryzc.errors`.
    """
    from ryzc.sources import gguf

    return gguf.read(locate(source, progress=progress))


def locate(source: str | Path, *, progress: Progress | None = None) -> Path:
    """The file that a source names, fetched where it is not here yet. A file of a sample's name comes first.

    Args:
        progress: told of a transfer, see :func:`ryzc.sources.pull.pull`.

    Raises:
        SourceError: there is no such file.
        UnsupportedError: it is a directory.
        DownloadError, UsageError: it cannot be fetched.
    """
    text = str(source)
    if os.path.isfile(text):
        return Path(text)
    if text in names() or text.startswith(huggingface.PREFIX):
        return pull(text, progress=progress)
    if os.path.isdir(text):
        raise _directory(Path(text))
    if os.path.exists(text):
        return Path(text)  # a pipe, say: the reader tells what is wrong with it
    shown = text if len(text) <= 200 else text[:200] + "…"
    raise SourceError(
        f"{shown or 'an empty name'}: no such file",
        hint=f"name a GGUF file, one of the samples {', '.join(names())}, or {huggingface.FORM}",
    )


def _directory(path: Path) -> UnsupportedError:
    try:
        inside = sorted(entry.name for entry in path.iterdir())
    except OSError:
        inside = []
    found = [name for name in inside if name.endswith(".gguf")]
    if found:
        return UnsupportedError(f"{path}: is a directory", hint=f"name the file, e.g. {path / found[0]}")
    if any(name.endswith(".safetensors") for name in inside):
        return UnsupportedError(
            f"{path}: is a safetensors checkpoint; ryzc reads only GGUF for now",
            hint="convert it with llama.cpp's convert_hf_to_gguf.py",
        )
    return UnsupportedError(f"{path}: is a directory without a GGUF file", hint="name a .gguf file")


def digest(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}", hint="check the path and its rights") from error
