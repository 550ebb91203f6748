"""What comes in: model files and where to get them, read into one :class:`Checkpoint`."""

from __future__ import annotations

from pathlib import Path

from ryzc.errors import SourceError, UnsupportedError
from ryzc.sources.checkpoint import Checkpoint, StoredTensor, Vocabulary
from ryzc.sources.pull import HUB, names, pull

__all__ = ["Checkpoint", "StoredTensor", "Vocabulary", "names", "open", "pull"]


def open(source: str | Path) -> Checkpoint:
    """Read a model: a GGUF file's path, a named sample, or ``hf:ORG/REPO[:FILE]``.

    A file of a sample's name comes first. What is not here yet is fetched, see :mod:`ryzc.sources.pull`.

    Raises:
        SourceError, UnsupportedError, DownloadError: see :mod:`ryzc.errors`.
    """
    from ryzc.sources import gguf

    text, path = str(source), Path(source)
    if not path.exists():
        if text in names() or text.startswith(HUB):
            return gguf.read(pull(text))
        raise SourceError(
            f"{text}: no such file",
            hint=f"name a GGUF file, one of the samples {', '.join(names())}, or hf:ORG/REPO[:FILE]",
        )
    if path.is_dir():
        raise UnsupportedError(
            f"{path}: is a directory; ryzc does not read safetensors checkpoints yet",
            hint="convert it to GGUF, or name the .gguf file in it",
        )
    return gguf.read(path)
