"""``ryzc train``"""

from __future__ import annotations

import math
import os
from pathlib import Path

import click

from ryzc.cli import _terminal
from ryzc.errors import UsageError

NEEDED = "pip install 'ryzc[train]'; a CPU is enough"


@click.command()
@click.option(
    "--text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A text in UTF-8; repeatable.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The GGUF file.")
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Steps in all.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Windows of a step.")
@click.option("-s", "--seed", type=click.IntRange(0), default=1, show_default=True, help="Of weights and order.")
@click.option("--rate", type=float, default=3e-3, show_default=True, help="Highest learning rate.")
@click.option("--vocab", type=click.IntRange(258), default=2048, show_default=True, help="Tokens to learn.")
@click.option("-c", "--ctx-size", type=click.IntRange(2), default=512, show_default=True, help="Tokens of a window.")
@click.option("--layers", type=click.IntRange(1), default=6, show_default=True, help="Blocks of the model.")
@click.option("--hidden", type=click.IntRange(1), default=256, show_default=True, help="Width; a multiple of 256.")
@click.option("--heads", type=click.IntRange(1), default=4, show_default=True, help="Attention's heads.")
@click.option("--kv-heads", type=click.IntRange(1), default=2, show_default=True, help="Heads of keys and values.")
@click.option(
    "--feed-forward", type=click.IntRange(1), default=768, show_default=True, help="Inner width; a multiple of 256."
)
@click.option("--held-out", type=float, default=0.03, show_default=True, help="Share of documents that only measures.")
@click.option("--every", type=click.IntRange(1), default=100, show_default=True, help="Steps between checkpoints.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside --out.")
@click.option("--device", default="cpu", show_default=True, help="As PyTorch names it.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads; by default PyTorch's choice.")
@click.option("--bf16", is_flag=True, help="Multiply in bfloat16: faster on CPUs with AMX and on GPUs.")
@click.option("--compile", "fuse", is_flag=True, help="Let PyTorch compile the model; needs a C++ compiler.")
@click.option("--license", "license_", default="", help="Stated in the file.")
def command(
    texts: tuple[Path, ...],
    out: Path,
    steps: int,
    batch: int,
    seed: int,
    rate: float,
    vocab: int,
    ctx_size: int,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    held_out: float,
    every: int,
    resume: bool,
    device: str,
    threads: int | None,
    bf16: bool,
    fuse: bool,
    license_: str,
) -> None:
    """Train a small BitNet b1.58 on texts and write it as a GGUF file.

    Documents are separated by lines <|endoftext|>. The state is kept in OUT.checkpoint: a run that was killed goes on
    with --resume and ends in the same weights. The sha256 of the texts, the options and the held-out loss are written
    into the file.
    """
    # Threads that spin while they wait for each other starve on a busy machine; PyTorch reads this when imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import torch
    except ImportError as error:
        raise UsageError("training needs PyTorch, which is not installed", hint=NEEDED) from error
    from ryzc.training import export, text
    from ryzc.training.model import Shape
    from ryzc.training.trainer import Progress, Recipe, Training

    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if checkpoint.exists() and not resume:
        raise UsageError(f"{checkpoint} is there already", hint="go on from it with --resume, or remove it")
    shape = Shape(
        vocabulary=vocab,
        context=ctx_size,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        feed_forward=feed_forward,
    )
    recipe = Recipe(steps=steps, batch=batch, seed=seed, peak=rate, second_peak=rate * 2 / 3, narrow=bf16)
    corpus = text.read(texts, held_out)
    training = Training(corpus, text.vocabulary(corpus.documents, vocab), shape, recipe, device)
    if resume and checkpoint.exists():
        training.load(checkpoint)
    if fuse:
        training.compile()
    weights = sum(w.numel() for w in training.model.parameters())
    trained_on, kept = len(corpus.documents), len(corpus.held_out)
    _terminal.say(
        f"{_terminal.count(weights)} weights; {trained_on} documents to train on, {kept} held out; "
        f"{training.windows.steps_per_epoch} steps an epoch; {training.step} of {steps} done"
    )
    with _terminal.progress() as update:

        def told(at: Progress) -> None:
            update("steps", at.step, steps)
            if at.held_out is not None:
                _terminal.say(
                    f"step {at.step}: loss {at.loss:.4f}, held out {at.held_out:.4f}, rate {at.rate:.2e}, "
                    f"{at.speed:.0f} tok/s"
                )

        training.run(told, checkpoint=checkpoint, every=every)
    training.settle()
    export.write(training, out, name=out.stem, license_=license_)
    loss = training.held_out_loss()
    _terminal.say(f"held out: loss {loss:.4f}, perplexity {math.exp(loss):.3f} of {training.held_out_tokens()} tokens")
    click.echo(out)
