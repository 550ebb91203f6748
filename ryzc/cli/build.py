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
    help="How keys and values are kept: by default int16 (16-bit codes, as exact as f16 and faster), or f32 with"
    " --activations f32. int8 takes half of their memory, int8-int4 (keys in 8 bits, values in 4) two fifths, int4 a"
    " third. What costs perplexity beyond a bound (0.1 %, 0.5 %, 0.5 %) is refused: 24 windows of 512 tokens are"
    " compared with f16 (about 20 s for 135M parameters on one thread).",
)
@click.option(
    "--ternary",
    type=click.Choice(["planes", "dense", "lookup"]),
    help="How ternary weights lie: 2 bits each, or 1.6 that are taken apart or looked up in tables; by default planes,"
    " or what --tune finds.",
)
@click.option(
    "--quant",
    type=click.Choice(["ternary", "ternary2"]),
    help="Round the linear layers' weights: ternary to one ternary digit each (2.5 bits with scales), which destroys"
    " models that were not trained for it, ternary2 to two (3.5 bits). Calibrates on a text and tells perplexity"
    " beside the source's; about a minute for 135M parameters.",
)
@click.option(
    "--head",
    type=click.Choice(["q8_0", "q4_1", "q4_0"]),
    help="Round the head's weights too; by default it stays as it is.",
)
@click.option(
    "--force", is_flag=True, help="Take --kv at any cost, and skip the comparisons of --kv, --quant and --head."
)
def command(
    source: str,
    output: Path | None,
    target: str,
    activations: str,
    tune: bool,
    kv: str | None,
    ternary: str | None,
    quant: str | None,
    head: str | None,
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
    notices: list[str] = []
    with _terminal.progress(STAGES) as update:
        bundle = build(
            here,
            output,
            targets=names,
            activations=activations,
            kv=kv,
            ternary=ternary,
            quant=quant,
            head=head,
            force=force,
            tune=tune,
            progress=update,
            notice=notices.append,
        )
    for sentence in notices:
        _terminal.say(sentence)
    click.echo(bundle)
