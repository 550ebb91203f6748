"""Finding what a command line names: bundles, files, samples; and the bundles of sources that are run."""

from __future__ import annotations

import hashlib
import re
import shutil
from functools import cache
from pathlib import Path

from ryzc.cli import _terminal

STAGES = {
    "read": "reading",
    "calibrate": "calibrating",
    "plan": "planning",
    "try": "trying keys and values",
    "judge": "measuring what was lost",
    "tune": "tuning kernels",
    "compile": "generating code",
    "pack": "packing weights",
}

_NOT_COMPILING = ("cli", "runtime", "training")


def local(source: str) -> str:
    """A source that lies here: samples and hub files are fetched, all else is left as it is.

    Raises:
        RyzcError: it cannot be fetched.
    """
    from ryzc import sources

    with _terminal.progress(unit="bytes") as update:
        return str(sources.locate(source, progress=lambda done, total: update(source, done, total)))


def bundle_for(model: str) -> Path:
    """A bundle as it is; a source's bundle from the cache, built for this CPU where it is not there yet.

    Raises:
        RyzcError: there is neither, or it cannot be built.
    """
    from ryzc.bundle import is_bundle

    if is_bundle(model):
        return Path(model)
    from ryzc import sources, targets
    from ryzc.sources.pull import cache_directory

    source = Path(local(model))
    if not source.is_file() and not source.is_dir():
        sources.open(source)  # says what is wrong with it
    directory = cache_directory() / "bundles"
    target = targets.get("native").name
    prefix = f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', sources.stem(source))[:80]}-{sources.digest(source)[:16]}-{target}"
    bundle = directory / f"{prefix}-{_compiler()[:12]}.ryzc"
    if not _sound(bundle):
        from ryzc.compiler import build

        directory.mkdir(parents=True, exist_ok=True)
        _terminal.say(f"compiling {model} for {target}; the next run finds it in {directory}")
        with _terminal.progress(STAGES) as update:
            build(source, bundle, targets=(target,), progress=update)
        for outdated in set(directory.glob(f"{prefix}-*.ryzc")) - {bundle}:
            shutil.rmtree(outdated, ignore_errors=True)
    return bundle


def _sound(bundle: Path) -> bool:
    """Whether a bundle of the cache is there and undamaged, its weights' own bytes not looked at."""
    from ryzc.bundle import Bundle
    from ryzc.errors import BundleError

    try:
        Bundle.open(bundle)
    except BundleError:
        return False
    return True


@cache
def _compiler() -> str:
    """sha256 of everything in ryzc that decides what a bundle holds, so that a change of it builds anew."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        part = path.relative_to(package)
        if path.suffix in (".py", ".j2") and part.parts[0] not in _NOT_COMPILING:
            digest.update(f"{part}\0".encode() + path.read_bytes())
    return digest.hexdigest()
