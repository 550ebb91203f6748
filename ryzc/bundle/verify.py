"""Checking every byte of a bundle, the weights included."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

from ryzc.bundle import manifest as manifests
from ryzc.bundle.read import check_hash, check_weights_header, locate, read_plan
from ryzc.bundle.strict_json import REBUILD
from ryzc.errors import BundleError

CHUNK = 1 << 22

Progress = Callable[[str, int, int], None]
"""Called with the file's name, the bytes checked so far and the bytes of the whole bundle."""


@dataclass(frozen=True)
class Verified:
    """A file that is as it was written."""

    name: str
    bytes: int
    sha256: str


def verify(path: str | Path, progress: Progress | None = None) -> list[Verified]:
    """Hash every file of a bundle.

    Returns:
        What was checked, sorted by name.

    Raises:
        BundleError: names everything that is damaged, missing or does not belong there.
    """
    root = Path(path)
    manifest = manifests.read(root)
    total = sum(entry.bytes for entry in manifest.files.values())
    done, faults, checked = 0, [], []
    for name, entry in sorted(manifest.files.items()):
        try:
            file = locate(root, manifest, name)
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(name, done, total)
            check_hash(file, digest.hexdigest(), entry.sha256)
            checked.append(Verified(name, entry.bytes, entry.sha256))
        except BundleError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{root / name}: cannot be read: {error.strerror}")
    faults += [f"{root / name}: does not belong to the bundle" for name in strangers(root, manifest.files)]
    if faults:
        raise BundleError("\n".join(faults), hint=REBUILD)
    check_weights_header(root, manifest, read_plan(root, manifest))
    return checked


def strangers(root: Path, known: Container[str]) -> list[str]:
    """Files below ``root`` that a manifest's ``files`` do not name, sorted; links count as files."""
    names = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_symlink() or not p.is_dir())
    return sorted(name for name in names if name != manifests.MANIFEST and name not in known)
