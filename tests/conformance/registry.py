"""Environments of their own for programs of others, kept in the cache.

A lock of what one consists of lies in ``constraints/NAME.txt``; the packages that are the point of it are pinned by
hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

CACHE = Path(platformdirs.user_cache_dir("ryzc")) / "conformance"
CONSTRAINTS = Path(__file__).parent / "constraints"

AWAY = (
    "Failed to establish a new connection", "Temporary failure in name resolution", "NewConnectionError", "timed out",
    "Could not fetch URL", "Network is unreachable", "ConnectionResetError", "getaddrinfo", "ENOTFOUND", "ECONNREFUSED",
    "(from versions: none)", "Unable to locate package", "Could not resolve", "Unable to connect", "Unable to fetch",
)  # fmt: skip
"""What pip, npm and apt say where there is no registry."""


class UnreachableError(Exception):
    """A registry, or a program that is needed, is not to be had here."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        name: of its directory and its lock.
        pinned: packages by ``NAME==VERSION`` with the sha256 of the file to take.
        packages: further ones; the lock says which version.
        unpacked: those of ``pinned`` that are sources: they are unpacked, not installed.
    """

    name: str
    pinned: Mapping[str, str]
    packages: Sequence[str] = ()
    unpacked: Sequence[str] = field(default=())

    @property
    def directory(self) -> Path:
        """Where it lies; a changed pin is another place."""
        lock = self._lock.read_text() if self._lock.is_file() else ""
        text = repr((sys.version_info[:2], sorted(self.pinned.items()), list(self.packages), lock))
        return CACHE / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "venv" / "bin" / "python"

    @property
    def _lock(self) -> Path:
        return CONSTRAINTS / f"{self.name}.txt"

    def source(self, requirement: str) -> Path:
        """The directory of an unpacked package."""
        (found,) = (self.directory / "unpacked" / requirement.partition("==")[0]).iterdir()
        return found

    def make(self) -> Environment:
        """Build it where it is not there yet.

        Raises:
            UnreachableError: the registry cannot be reached.
        """
        stamp = self.directory / "complete"
        with locked(CACHE / f"{self.name}.lock"):
            if not stamp.exists():
                shutil.rmtree(self.directory, ignore_errors=True)
                self.directory.mkdir(parents=True)
                files = [self._download(requirement, sha256) for requirement, sha256 in self.pinned.items()]
                venv.create(self.directory / "venv", with_pip=False, symlinks=True)
                installed = [str(file) for file in files if file is not None]
                lock = ["-c", str(self._lock)] if self._lock.is_file() else []
                _pip(["--python", str(self.python), "install", *lock, *installed, *self.packages])
                stamp.touch()
        return self

    def _download(self, requirement: str, sha256: str) -> Path | None:
        """Fetch a package; ``None`` for one that was unpacked."""
        place = self.directory / "packages" / requirement.partition("==")[0]
        place.mkdir(parents=True)
        wanted = place / "wanted.txt"
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        source = requirement in self.unpacked
        kind = ["--no-binary", requirement.partition("==")[0]] if source else ["--only-binary", ":all:"]
        _pip(["download", "--no-deps", "--require-hashes", *kind, "-d", str(place), "-r", str(wanted)])
        (file,) = (path for path in place.iterdir() if path != wanted)
        if not source:
            return file
        _unpack(file, self.directory / "unpacked" / requirement.partition("==")[0])
        return None


def _unpack(file: Path, place: Path) -> None:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(place)
    else:
        with tarfile.open(file) as archive:
            archive.extractall(place, filter="data")


def _pip(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    run(command, timeout=500)


def run(command: Sequence[str], timeout: float, **options: object) -> str:
    """Run an installer; what it printed.

    Raises:
        UnreachableError: it reached no registry.
    """
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            **options,
        )
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"{command[0]} got no answer for {timeout:.0f} s") from None
    if done.returncode == 0:
        return str(done.stdout)
    if any(word in done.stdout for word in AWAY):
        raise UnreachableError(f"the package registry cannot be reached: {done.stdout.strip().splitlines()[-1]}")
    raise AssertionError(f"{' '.join(command)}\n{done.stdout[-4000:]}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
