"""The CPU as Linux describes it in ``/proc/cpuinfo``."""

from __future__ import annotations

from pathlib import Path

from ryzc.targets.identity import Identity


def read(root: Path) -> Identity | None:
    """The first processor of ``root/proc/cpuinfo``; ``None`` where that is missing or not of an x86 CPU."""
    try:
        text = (root / "proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return None
    return parse(text)


def parse(text: str) -> Identity | None:
    """The first processor of a ``/proc/cpuinfo``; ``None`` where a field is missing.

    The kernel leaves out features whose registers it does not save, and those switched off at boot.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if not colon and fields:
            break
        fields[key.strip()] = value.strip()
    try:
        return Identity(
            vendor=fields["vendor_id"],
            name=fields.get("model name") or fields["vendor_id"],
            family=int(fields["cpu family"]),
            model=int(fields["model"]),
            features=frozenset(fields["flags"].split()),
        )
    except (KeyError, ValueError):
        return None
