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
    "stem",
]

_OF_CHECKPOINTS = (".json", ".safetensors", ".jinja")
"""Suffixes of the files of a directory that are read."""


def open(source: str | Path, *, progress: Progress | None = None) -> Checkpoint:
    """Read a model: a GGUF file, a directory of safetensors, a named sample, or ``hf:ORG/REPO[:FILE]``.

    Raises:
        SourceError, UnsupportedError, DownloadError, UsageError: see :mod:`ryzc.errors`.
    """
    from ryzc.sources import gguf, hf_directory

    path = locate(source, progress=progress)
    return hf_directory.read(path) if path.is_dir() else gguf.read(path)


def locate(source: str | Path, *, progress: Progress | None = None) -> Path:
    """The file or directory that a source names, fetched where it is not here yet.

    A file of a sample's name comes first; a directory of its name does not.

    Args:
        progress: told of a transfer, see :func:`ryzc.sources.pull.pull`.

    Raises:
        SourceError: there is no such file.
        UnsupportedError: it is a directory that is no checkpoint of Hugging Face's.
        DownloadError, UsageError: it cannot be fetched.
    """
    text = str(source)
    if os.path.isfile(text):
        return Path(text)
    if text in names() or text.startswith(huggingface.PREFIX):
        return pull(text, progress=progress)
    if os.path.isdir(text):
        from ryzc.sources import hf_directory

        if hf_directory.is_checkpoint(Path(text)):
            return Path(text)
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
            f"{path}: holds safetensors, but no config.json", hint="fetch the whole model, or convert it to GGUF"
        )
    return UnsupportedError(f"{path}: is a directory without a GGUF file", hint="name a .gguf file")


def digest(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal; of a directory, that of its files' names and sha256.

    Raises:
        SourceError: it cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in _OF_CHECKPOINTS and file.is_file())
            return hashlib.sha256("".join(f"{digest(file)}  {file.name}\n" for file in inside).encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}", hint="check the path and its rights") from error


def stem(path: str | Path) -> str:
    """A source's name for what is made of it: the file's without its suffix, or the directory's."""
    path = Path(path)
    return path.resolve().name if path.is_dir() else path.stem
