"""Bundles of sources that were run without being built first."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ryzc.cli import _terminal

STAGES = {"read": "reading", "plan": "planning", "compile": "generating code", "pack": "packing weights"}

_RUNTIME_ONLY = ("cli", "runtime")


def bundle_for(model: str) -> Path:
    """A bundle as it is; a source's bundle from the cache, built for this CPU where it is not there yet.

    Raises:
        RyzcError: there is neither, or it cannot be built.
    """
    from ryzc.bundle import is_bundle

    if is_bundle(model):
        return Path(model)
    import platformdirs

    from ryzc import sources, targets
    from ryzc.build import build

    source = sources.open(model).path
    directory = Path(platformdirs.user_cache_dir("ryzc")) / "bundles"
    target = targets.get("native").name
    prefix = f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', source.stem)[:80]}-{_digest(source)[:16]}-{target}"
    bundle = directory / f"{prefix}-{_compiler()[:12]}.ryzc"
    if is_bundle(bundle):
        return bundle
    directory.mkdir(parents=True, exist_ok=True)
    _terminal.say(f"compiling {model} for {target}; the next run finds it in {directory}")
    with _terminal.progress(STAGES) as update:
        build(source, bundle, targets=(target,), progress=update)
    for outdated in directory.glob(f"{prefix}-*.ryzc"):
        if outdated != bundle:
            shutil.rmtree(outdated, ignore_errors=True)
    return bundle


def _digest(source: Path) -> str:
    """sha256 of a file, or of the names and contents of a directory's files."""
    digest = hashlib.sha256()
    for file in _files(source):
        digest.update(f"{file.relative_to(source) if file != source else ''}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    else:
        yield from sorted(path for path in source.rglob("*") if path.is_file())


@cache
def _compiler() -> str:
    """sha256 of everything in ryzc that decides what a bundle holds, so that a change of it builds anew."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        part = path.relative_to(package)
        if path.suffix in (".py", ".j2") and part.parts[0] not in _RUNTIME_ONLY:
            digest.update(f"{part}\0".encode() + path.read_bytes())
    return digest.hexdigest()
