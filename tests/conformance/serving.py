"""``ryzc serve`` as a user starts it, for as long as a test needs it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import tiny_chat
from listening import Listening

from ryzc.bundle import manifest as manifests
from ryzc.cli._models import bundle_for

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
"""One that knows tools, in the manner of Qwen."""


@contextmanager
def serve(*models: str, **flags: str | int) -> Iterator[str]:
    """A server of models (``NAME=SOURCE`` or ``SOURCE``); its URL.

    Args:
        models: what it serves.
        flags: of ``ryzc serve``, with underscores.
    """
    options = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    with Listening(["-m", "ryzc", "serve", *models, "--port", "0", *options]) as server:
        yield server.url
        assert server.process.poll() is None, "the server died"
        server.stop()


@contextmanager
def tiny(*names: str, **flags: str | int) -> Iterator[str]:
    """A server of a tiny random model under some names; its URL."""
    with tempfile.TemporaryDirectory() as directory:
        bundle = tiny_chat.write(Path(directory) / "tiny.ryzc", template=TEMPLATE, context=8192)
        with serve(*(f"{name}={bundle}" for name in names or ("tiny",)), ctx_size=8192, threads=1, **flags) as url:
            yield url


@contextmanager
def greedy(model: str = "smollm2", penalty: float = 1.0, **flags: str | int) -> Iterator[str]:
    """A server of a real model that answers the same question the same way; its URL.

    Args:
        model: what it serves.
        penalty: for repetitions; small models end their answers with one.
        flags: of ``ryzc serve``.
    """
    with tempfile.TemporaryDirectory() as directory:
        bundle = _decided(bundle_for(model), Path(directory) / f"{model}.ryzc", penalty)
        with serve(f"{model}={bundle}", **flags) as url:
            yield url


def _decided(bundle: Path, copy: Path, penalty: float) -> Path:
    """A bundle whose makers recommend to take the best token."""
    shutil.copytree(bundle, copy)
    text = json.dumps({"temperature": 0, "repetition_penalty": penalty}).encode()
    (copy / manifests.GENERATION_CONFIG).write_bytes(text)
    found = manifests.read(copy)
    entry = manifests.FileEntry(len(text), hashlib.sha256(text).hexdigest())
    changed = replace(found, files={**found.files, manifests.GENERATION_CONFIG: entry})
    (copy / manifests.MANIFEST).write_text(manifests.to_text(changed))
    return copy
