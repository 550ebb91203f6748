"""``ryzc build``"""

from __future__ import annotations

from pathlib import Path

import click

from ryzc.cli import _terminal
from ryzc.cli._models import STAGES, local
from ryzc.errors import UsageError
from ryzc.kv_formats import KV_FORMATS


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
    type=click.Choice(list(KV_FORMATS)),
    help="How keys and values are kept: by default f16, or f32 with --activations f32. int8 takes half of f16,"
    " int8-int4 (keys in 8 bits, values in 4) two fifths, int4 a third. What costs perplexity beyond a bound (0.1 %,"
    " 0.5 %, 0.5 %) is refused: 24 windows of 512 tokens are compared with f16 (about 20 s for 135M parameters on one"
    " thread).",
)
@click.option(
    "--ternary",
    type=click.Choice(["planes", "dense", "lookup"]),
    help="How ternary weights lie: 2 bits each, or 1.6 that are taken apart or looked up in tables; by default planes,"
    " or what --tune finds.",
)
@click.option("--force", is_flag=True, help="Take --kv at any cost, and skip the comparison.")
def command(
    source: str,
    output: Path | None,
    target: str,
    activations: str,
    tune: bool,
    kv: str | None,
    ternary: str | None,
    force: bool,
) -> None:
    """Compile a model into a bundle.

    SRC is a GGUF file, a directory of safetensors, a named sample (see `ryzc pull --help`) or hf:ORG/REPO[:FILE].
    """
    names = tuple(name.strip() for name in target.split(","))
    if not all(names):
        raise UsageError(f"--target {target!r} holds an empty name", hint="separate names by single commas")
    from ryzc.compiler import build

    here = local(source)
    with _terminal.progress(STAGES) as update:
        bundle = build(
            here,
            output,
            targets=names,
            activations=activations,
            kv=kv,
            ternary=ternary,
            force=force,
            tune=tune,
            progress=update,
        )
    click.echo(bundle)
