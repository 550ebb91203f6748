"""``ryzc verify``"""

from __future__ import annotations

from pathlib import Path

import click

from ryzc.cli import _terminal


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def command(bundle: Path) -> None:
    """Check every byte of a bundle against its checksums."""
    from ryzc.bundle import verify

    with _terminal.progress(unit="bytes") as update:
        checked = verify(bundle, lambda _, done, total: update("checking", done, total))
    click.echo(_terminal.table([["ok", file.sha256[:16], str(file.bytes), file.name] for file in checked]))
    total = sum(file.bytes for file in checked)
    _terminal.say(f"{bundle}: {len(checked)} files, {_terminal.size(total)}: sound")
