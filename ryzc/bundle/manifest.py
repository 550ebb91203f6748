"""``manifest.json``: what a bundle is, what it needs, and the checksum of every file in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ryzc.bundle import abi, strict_json
from ryzc.bundle.plan import KVSpec, Parameter
from ryzc.bundle.strict_json import REBUILD
from ryzc.errors import BundleError

FORMAT: Final = "ryzc-bundle"
VERSION: Final = 1
"""Changes whenever the files of a bundle or their meaning change."""

MANIFEST: Final = "manifest.json"
PLAN: Final = "plan.json"
WEIGHTS: Final = "weights.safetensors"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
GENERATION_CONFIG: Final = "generation_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
REQUIRED: Final = (PLAN, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG)

MAX_MANIFEST: Final = 1 << 24
MAX_SMALL_FILE: Final = 1 << 30
"""Bound for every file that is read whole: all but the weights."""

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*(/[A-Za-z0-9_+-][A-Za-z0-9_.+-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHECKSUM = "checksum"


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum of a file of a bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class TargetEntry:
    """CPU features that a target's code needs."""

    features: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The manifest.

    Attributes:
        format: :data:`FORMAT`.
        version: :data:`VERSION` it was written by.
        abi: :data:`ryzc.bundle.abi.VERSION` of its native code.
        architecture: e.g. ``llama``.
        kv: equal to the plan's.
        targets: by name; each has a file ``kernels/<name>.so``.
        files: by path inside the bundle, slashes between parts; all but the manifest itself.
        provenance: where it came from: source, options, versions.
    """

    format: str
    version: int
    abi: int
    architecture: str
    kv: KVSpec
    targets: Mapping[str, TargetEntry]
    files: Mapping[str, FileEntry]
    provenance: Mapping[str, Parameter]


def kernel_name(target: str) -> str:
    """The path inside a bundle of a target's code."""
    return f"kernels/{target}.so"


def is_safe_name(name: str) -> bool:
    """Whether a path inside a bundle is plain: relative, no dots leading a part, no odd characters."""
    return len(name) <= 255 and _NAME.fullmatch(name) is not None


def to_text(manifest: Manifest) -> str:
    """Text of a manifest, its own checksum included."""
    data = strict_json.encode(manifest)
    checksum = hashlib.sha256(strict_json.dumps(data, sort_keys=True).encode()).hexdigest()
    return strict_json.dumps({**data, _CHECKSUM: checksum}, sort_keys=True)


def read(root: Path) -> Manifest:
    """Read and check the manifest of the bundle at ``root``.

    Raises:
        BundleError: where there is none, or it is damaged, from another version, or names odd paths.
    """
    where = str(root / MANIFEST)
    text = _text(root)
    data = strict_json.loads(text, where)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f"{where}: not the manifest of a ryzc bundle", hint=REBUILD)
    for key, ours, what in (("version", VERSION, "bundle format"), ("abi", abi.VERSION, "step ABI")):
        if data.get(key) != ours:
            raise BundleError(
                f"{where}: {what} {data.get(key)!r:.40} is not {ours}, which this version of ryzc reads",
                hint=f"{REBUILD}, or use the version of ryzc that wrote it",
            )
    data.pop(_CHECKSUM, None)
    manifest = strict_json.decode(Manifest, data, where)
    if to_text(manifest) != text:
        raise BundleError(f"{where}: its checksum does not match: it is damaged or was edited", hint=REBUILD)
    _check(manifest, where)
    return manifest


def _text(root: Path) -> str:
    path = root / MANIFEST
    try:
        if not root.exists():
            raise BundleError(f"{root}: there is no such bundle", hint="check the path, or build it with `ryzc build`")
        if not path.is_file():
            raise BundleError(f"{root}: not a ryzc bundle: it has no {MANIFEST}", hint=REBUILD)
        if path.stat().st_size > MAX_MANIFEST:
            raise BundleError(f"{path}: too large for a manifest", hint=REBUILD)
        return path.read_bytes().decode()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}", hint="check its permissions") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: damaged: not UTF-8", hint=REBUILD) from error


def _check(manifest: Manifest, where: str) -> None:
    for name, entry in manifest.files.items():
        if not is_safe_name(name) or name == MANIFEST:
            raise BundleError(f"{where}: {name!r:.80} is no path that a bundle may hold", hint=REBUILD)
        if not _SHA256.fullmatch(entry.sha256):
            raise BundleError(f"{where}: files.{name}: {entry.sha256!r:.80} is no sha256", hint=REBUILD)
        if name != WEIGHTS and entry.bytes > MAX_SMALL_FILE:
            raise BundleError(f"{where}: files.{name}: {entry.bytes} bytes are too many", hint=REBUILD)
    if not manifest.targets:
        raise BundleError(f"{where}: it has no targets", hint=REBUILD)
    for name in (*REQUIRED, *map(kernel_name, manifest.targets)):
        if name not in manifest.files:
            raise BundleError(f"{where}: {name} is missing", hint=REBUILD)
