"""GGUF files of the Hugging Face hub, by the optional library ``huggingface_hub``.

Tokens, mirrors, proxies and offline mode are that library's own business (``HF_TOKEN``, ``HF_ENDPOINT``,
``HF_HUB_OFFLINE``, …). Nothing is pinned: what a repository holds under a name is what comes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ryzc.errors import DownloadError, UsageError

PREFIX: Final = "hf:"
FORM: Final = "hf:ORG/REPO[:FILE]"
_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_ADDRESS: Final = re.compile(rf"hf:(?P<repo>{_PART}/{_PART})(?::(?P<file>{_PART}(?:/{_PART})*\.gguf))?")


@dataclass(frozen=True)
class HubAddress:
    """A repository and a file in it; ``file`` is ``None`` where the repository's only GGUF file is meant."""

    repo: str
    file: str | None


def parse(name: str) -> HubAddress:
    """Read ``hf:ORG/REPO[:FILE]``.

    Raises:
        UsageError: it has another form.
    """
    match = _ADDRESS.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is no hub address", hint=f"write {FORM}, where FILE ends in .gguf")
    return HubAddress(match["repo"], match["file"])


def fetch(name: str, cache: Path) -> Path:
    """The file that ``hf:ORG/REPO[:FILE]`` names, kept in the layout of the hub's library below ``cache``.

    Raises:
        UsageError: no such form, the library is not installed, or the repository does not hold one GGUF file.
        DownloadError: it cannot be fetched.
    """
    address = parse(name)
    try:
        import huggingface_hub
    except ImportError as error:
        raise UsageError(
            f"{name}: hub access needs the package huggingface_hub, which is not installed",
            hint="install it with: pip install 'ryzc[hub]'",
        ) from error
    try:
        file = address.file or only_gguf(name, huggingface_hub.list_repo_files(address.repo))
        return Path(huggingface_hub.hf_hub_download(address.repo, file, cache_dir=cache))
    except UsageError:
        raise
    # The library raises its own errors, those of its HTTP client (which one depends on its version), and OSError.
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"{name}: {first_line}",
            hint="check the name and the connection; a gated repository needs its terms accepted and HF_TOKEN set",
        ) from error


def only_gguf(name: str, files: Sequence[str]) -> str:
    """The one GGUF file among a repository's files.

    Raises:
        UsageError: there is none, or a choice.
    """
    found = sorted(f for f in files if f.endswith(".gguf"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"{name} holds no GGUF file", hint="choose a repository with a .gguf file")
    shown = ", ".join(found[:8]) + (", …" if len(found) > 8 else "")
    raise UsageError(f"{name} holds {len(found)} GGUF files: {shown}", hint=f"name one, e.g. {name}:{found[0]}")
