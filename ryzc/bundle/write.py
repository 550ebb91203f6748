"""Writing a bundle: beside its destination, in one pass over the weights, then swapped into place."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ryzc.bundle import manifest as manifests
from ryzc.bundle import plan_json, strict_json, weights_file
from ryzc.bundle.manifest import FileEntry, Manifest, TargetEntry
from ryzc.bundle.plan import PackedWeight, Parameter, Plan
from ryzc.bundle.verify import strangers
from ryzc.errors import BundleError, InternalError

Produce: TypeAlias = Callable[[], npt.NDArray[np.uint8]]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write(
    directory: str | Path,
    *,
    plan: Plan,
    weights: Iterable[tuple[PackedWeight, Produce]],
    kernels: Mapping[str, bytes],
    required: Mapping[str, Sequence[str]],
    tokenizer_json: str,
    tokenizer_config: Mapping[str, object],
    chat_template: str | None = None,
    generation_config: Mapping[str, object] | None = None,
    provenance: Mapping[str, Parameter] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a bundle, all of it or nothing; equal arguments give equal bytes.

    Args:
        directory: where it shall lie; a bundle that is there already is replaced.
        plan: the compiled step.
        weights: ``plan.weights`` in order, each with a function that gives its bytes, ``uint8``;
            called one after the other, so that one weight at a time is in memory.
        kernels: shared objects by target.
        required: the CPU features that each target's code needs.
        tokenizer_json: text of ``tokenizer.json``.
        tokenizer_config, generation_config: what ``tokenizer_config.json`` and ``generation_config.json`` hold.
        chat_template: Jinja text, where the model has one.
        provenance: facts for the manifest; no times, or the same input gives other bytes.
        files: further files by path inside the bundle.

    Raises:
        BundleError: where something else lies at ``directory``, or it cannot be written.
        InternalError: where plan, weights and kernels contradict each other.
    """
    destination = check_destination(directory)
    small = _small_files(plan, kernels, tokenizer_json, tokenizer_config, chat_template, generation_config, files)
    if set(required) != set(kernels) or not kernels:
        raise InternalError(f"bundle: kernels for {sorted(kernels)}, but features for {sorted(required)}")
    staged = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.partial")
    try:
        staging = _Staging(staged, destination)
        for name, content in sorted(small.items()):
            staging.add(name, [content])
        staging.add(manifests.WEIGHTS, _weight_chunks(plan, weights))
        manifest = Manifest(
            format=manifests.FORMAT,
            version=manifests.VERSION,
            abi=plan.abi,
            architecture=plan.architecture,
            kv=plan.kv,
            targets={name: TargetEntry(tuple(sorted(required[name]))) for name in sorted(kernels)},
            files=dict(sorted(staging.entries.items())),
            provenance=dict(provenance or {}),
        )
        staging.add(manifests.MANIFEST, [manifests.to_text(manifest).encode()])
        staging.install()
    finally:
        # Whatever lies there now is unwanted: a part of a bundle, or the one that was replaced.
        shutil.rmtree(staged, ignore_errors=True)


def check_destination(directory: str | Path) -> Path:
    """Where a bundle would be written, links followed.

    Raises:
        BundleError: where its parent is missing, or something lies there that is not entirely a bundle:
            nothing that ryzc did not write is ever deleted.
    """
    destination = Path(directory).resolve()
    if not destination.parent.is_dir():
        raise BundleError(
            f"{destination}: its parent directory does not exist", hint=f"create it: mkdir -p {destination.parent}"
        )
    if destination.exists() and not (destination.is_dir() and _is_ours(destination)):
        raise BundleError(
            f"{destination}: already exists and holds other things than a bundle",
            hint="choose another place with -o, or move it away",
        )
    return destination


def _is_ours(directory: Path) -> bool:
    """Whether a directory is empty or a bundle of any version, damaged or not, with no other files in it."""
    with suppress(OSError, UnicodeDecodeError, BundleError):
        if not any(directory.iterdir()):
            return True
        manifest = strict_json.loads((directory / manifests.MANIFEST).read_text("utf-8"), manifests.MANIFEST)
        if isinstance(manifest, dict) and manifest.get("format") == manifests.FORMAT:
            known = manifest.get("files")
            return isinstance(known, dict) and not strangers(directory, known)
    return False


def _small_files(
    plan: Plan,
    kernels: Mapping[str, bytes],
    tokenizer_json: str,
    tokenizer_config: Mapping[str, object],
    chat_template: str | None,
    generation_config: Mapping[str, object] | None,
    files: Mapping[str, bytes] | None,
) -> dict[str, bytes]:
    """All files but the weights and the manifest."""
    texts = {
        manifests.PLAN: _checked_plan_text(plan),
        manifests.TOKENIZER: tokenizer_json,
        manifests.TOKENIZER_CONFIG: strict_json.dumps(tokenizer_config, sort_keys=True),
        manifests.GENERATION_CONFIG: strict_json.dumps(generation_config or {}, sort_keys=True),
    }
    if chat_template is not None:
        texts[manifests.CHAT_TEMPLATE] = chat_template
    result = {name: text.encode() for name, text in texts.items()}
    result |= {manifests.kernel_name(target): code for target, code in kernels.items()}
    for name, content in (files or {}).items():
        if name in result or name in (manifests.MANIFEST, manifests.WEIGHTS):
            raise InternalError(f"bundle: file {name!r} has its own argument")
        result[name] = content
    for name in result:
        if not manifests.is_safe_name(name):
            raise InternalError(f"bundle: {name!r} is no path that a bundle may hold")
    return result


def _checked_plan_text(plan: Plan) -> str:
    text = plan_json.to_json(plan)
    try:
        same = plan_json.from_json(text, "plan") == plan
    except BundleError as error:
        raise InternalError(f"bundle: the plan is unsound: {error}") from error
    if not same:
        raise InternalError("bundle: the plan holds values that plan.json cannot keep")
    return text


def _weight_chunks(plan: Plan, weights: Iterable[tuple[PackedWeight, Produce]]) -> Iterator[memoryview]:
    """The bytes of the weights file, a weight at a time."""
    planned = plan.weights
    yield memoryview(weights_file.header(planned))
    if planned:
        yield memoryview(bytes(planned[0].offset))
    count = 0
    for i, (weight, produce) in enumerate(weights):
        if i >= len(planned) or weight != planned[i]:
            raise InternalError(f"bundle: weight {weight.name!r} is not number {i} of the plan")
        data = produce()
        if data.dtype != np.uint8 or data.nbytes != weight.bytes:
            raise InternalError(f"bundle: weight {weight.name!r} came as {data.nbytes} bytes of {data.dtype}")
        yield np.ascontiguousarray(data).reshape(-1).data
        yield memoryview(bytes(weights_file.gap_after(planned, i)))
        count = i + 1
    if count < len(planned):
        raise InternalError(f"bundle: {count} weights came for {len(planned)} in the plan")


class _Staging:
    """A directory being filled, file by file, with the checksums of what it holds."""

    def __init__(self, path: Path, destination: Path) -> None:
        self.path = path
        self.destination = destination
        self.entries: dict[str, FileEntry] = {}
        with self._disk_errors():
            path.mkdir()

    def add(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a file to the disk, hashing on the way."""
        path = self.path / name
        digest, size = hashlib.sha256(), 0
        with self._disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb", buffering=0)  # unbuffered: closing cannot fail for want of space
        with file:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                with self._disk_errors():
                    _write_all(file, chunk)
            with self._disk_errors():
                os.fsync(file.fileno())
        self.entries[name] = FileEntry(size, digest.hexdigest())

    def install(self) -> None:
        """Put the directory into its place; what was there takes the place of the staged one."""
        with self._disk_errors():
            for directory in (self.path, *(p for p in self.path.rglob("*") if p.is_dir())):
                _sync_directory(directory)
            check_destination(self.destination)  # again: building took a while
            if self.destination.exists():
                _exchange(self.path, self.destination)
            else:
                os.rename(self.path, self.destination)
            _sync_directory(self.destination.parent)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hints = {
                errno.ENOSPC: "free some space, or choose another disk with -o",
                errno.EDQUOT: "free some of your quota, or choose another disk with -o",
                errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another disk with -o",
            }
            raise BundleError(
                f"{self.destination}: cannot be written: {error.strerror}",
                hint=hints.get(error.errno or 0, "check the permissions of its parent directory"),
            ) from error


def _write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> None:
    """Swap two directories, in one step where the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL):  # EINVAL: not on this file system
            raise OSError(code, os.strerror(code), str(second))
    aside = first.with_suffix(".old")
    os.rename(second, aside)
    try:
        os.rename(first, second)
    except BaseException:
        os.rename(aside, second)
        raise
    os.rename(aside, first)
