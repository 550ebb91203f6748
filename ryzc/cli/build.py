"""``ryzc build``"""

from __future__ import annotations

from pathlib import Path

import click

from ryzc.cli import _terminal
from ryzc.cli._models import STAGES, local
from ryzc.errors import UsageError


@click.command()
@click.argument("source", metavar="SRC")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The bundle's directory; by default NAME.ryzc here."
)
@click.option(
    "--target", default="native", show_default=True, help="CPUs to compile for, see `ryzc targets`; several by comma."
)
@click.option(
    "--activations",
    type=click.Choice(["int8", "f32"]),
    default="int8",
    show_default=True,
    help="What linear layers compute with; f32 is exact and slow.",
)
@click.option("--tune", is_flag=True, help="Measure on this CPU which method suits each kernel; see `ryzc inspect`.")
@click.option(
    "--kv",
    type=click.Choice(["f16", "int8", "int8-int4", "int4", "f32"]),
    help="How keys and values are kept: by default f16, or f32 with --activations f32; int8 is half of f16.",
)
def command(source: str, output: Path | None, target: str, activations: str, tune: bool, kv: str | None) -> None:
    """Compile a model into a bundle.

    SRC is a GGUF file, a named sample (see `ryzc pull --help`) or hf:ORG/REPO[:FILE].
    """
    names = tuple(name.strip() for name in target.split(","))
    if not all(names):
        raise UsageError(f"--target {target!r} holds an empty name", hint="separate names by single commas")
    from ryzc.compiler import build

    here = local(source)
    with _terminal.progress(STAGES) as update:
        bundle = build(here, output, targets=names, activations=activations, kv=kv, tune=tune, progress=update)
    click.echo(bundle)
