"""Opening a bundle: everything but the weights' own bytes is checked before it is trusted."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ryzc import targets
from ryzc.bundle import manifest as manifests
from ryzc.bundle import plan_json, weights_file
from ryzc.bundle.manifest import Manifest
from ryzc.bundle.plan import Plan
from ryzc.bundle.strict_json import REBUILD
from ryzc.errors import BundleError, TargetError

if TYPE_CHECKING:
    from ryzc.targets import Cpu, Target


def is_bundle(path: str | Path) -> bool:
    """Whether a path looks like a bundle, sound or not: a directory with a manifest."""
    return (Path(path) / manifests.MANIFEST).is_file()


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: its directory.
        manifest: what it says of itself.
        plan: the compiled step.
        weights_data_offset: where the data section starts in the weights file, in bytes.
    """

    path: Path
    manifest: Manifest
    plan: Plan
    weights_data_offset: int

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle: hash code and small files, check the size and header of the weights.

        Raises:
            BundleError: where it is missing, damaged, or from another version; :func:`ryzc.bundle.verify`
                also hashes the weights.
        """
        root = Path(path)
        manifest = manifests.read(root)
        for name in manifest.files:
            if name not in (manifests.WEIGHTS, manifests.PLAN):
                read_file(root, manifest, name)
        plan = read_plan(root, manifest)
        return cls(root, manifest, plan, check_weights_header(root, manifest, plan))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets it holds code for."""
        return tuple(self.manifest.targets)

    @property
    def weights_path(self) -> Path:
        """The weights file."""
        return locate(self.path, self.manifest, manifests.WEIGHTS)

    def kernel_path(self, target: str) -> Path:
        """The shared object of a target.

        Raises:
            TargetError: where the bundle holds none for it.
        """
        if target not in self.manifest.targets:
            raise TargetError(
                f"{self.path}: holds no code for {target!r}", hint=f"it holds code for {', '.join(self.targets)}"
            )
        return locate(self.path, self.manifest, manifests.kernel_name(target)).resolve()

    def has(self, name: str) -> bool:
        """Whether it holds a file of that name, e.g. ``chat_template.jinja``."""
        return name in self.manifest.files

    def text(self, name: str) -> str:
        """A small file's text, checked again as it is read.

        Raises:
            BundleError: where there is no such file, or it is damaged.
        """
        return read_text(self.path, self.manifest, name)

    def choose(self, cpu: Cpu) -> Target:
        """The best target that a CPU can run.

        Raises:
            TargetError: where none fits; names the missing features.
        """
        target = targets.best(self.targets, cpu)
        missing = set(self.manifest.targets[target.name].features) - set(cpu.features)
        if missing:
            raise TargetError(
                f"{self.path}: its code for {target.name} needs {', '.join(sorted(missing))}, which this CPU lacks",
                hint="build the model on this machine, or with --target for an older CPU",
            )
        return target


def locate(root: Path, manifest: Manifest, name: str) -> Path:
    """The path of a file that the manifest lists, of the size that it lists.

    Raises:
        BundleError: where it is missing, leads outside the bundle, is no plain file, or has another size.
    """
    entry = manifest.files.get(name)
    if entry is None:
        raise BundleError(f"{root}: holds no {name}", hint=REBUILD)
    path = root / name
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise BundleError(f"{path}: a link that leads out of the bundle", hint=REBUILD)
        status = path.stat()
    except FileNotFoundError as error:
        raise BundleError(f"{path}: missing", hint=REBUILD) from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: not a plain file", hint=REBUILD)
    if status.st_size != entry.bytes:
        raise BundleError(f"{path}: has {status.st_size} bytes instead of {entry.bytes}", hint=REBUILD)
    return path


def read_file(root: Path, manifest: Manifest, name: str) -> bytes:
    """A small file's bytes.

    Raises:
        BundleError: as :func:`locate`, and where its checksum does not match.
    """
    path = locate(root, manifest, name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    check_hash(path, hashlib.sha256(content).hexdigest(), manifest.files[name].sha256)
    return content


def read_text(root: Path, manifest: Manifest, name: str) -> str:
    """A small file's text; see :func:`read_file`."""
    try:
        return read_file(root, manifest, name).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{root / name}: not UTF-8", hint=REBUILD) from error


def read_plan(root: Path, manifest: Manifest) -> Plan:
    """The plan, held against the manifest.

    Raises:
        BundleError: where it is damaged, or the two contradict each other.
    """
    where = str(root / manifests.PLAN)
    plan = plan_json.from_json(read_text(root, manifest, manifests.PLAN), where)
    if (plan.abi, plan.architecture, plan.kv) != (manifest.abi, manifest.architecture, manifest.kv):
        raise BundleError(f"{where}: contradicts {manifests.MANIFEST}", hint=REBUILD)
    return plan


def check_weights_header(root: Path, manifest: Manifest, plan: Plan) -> int:
    """Hold the weights file's size and header against the plan; returns the bytes before the data section.

    Raises:
        BundleError: where they differ.
    """
    path = locate(root, manifest, manifests.WEIGHTS)
    expected = weights_file.header(plan.weights)
    size = len(expected) + weights_file.data_bytes(plan.weights)
    if manifest.files[manifests.WEIGHTS].bytes != size:
        raise BundleError(
            f"{path}: has {manifest.files[manifests.WEIGHTS].bytes} bytes, but the plan needs {size}", hint=REBUILD
        )
    try:
        with path.open("rb") as file:
            found = file.read(len(expected))
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != expected:
        raise BundleError(f"{path}: its header is damaged", hint=REBUILD)
    return len(expected)


def check_hash(path: Path, found: str, expected: str) -> None:
    """Compare checksums.

    Raises:
        BundleError: where they differ.
    """
    if found != expected:
        raise BundleError(f"{path}: damaged: its sha256 is {found} instead of {expected}", hint=REBUILD)


def _unreadable(path: Path, error: Exception) -> BundleError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return BundleError(f"{path}: cannot be read: {reason}", hint="check its permissions")
