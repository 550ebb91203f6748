"""The build: from a source to a bundle, one function that reads top to bottom."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ryzc import __version__, bundle, models, sources
from ryzc import targets as target_table
from ryzc.bundle import tuning
from ryzc.errors import QualityError, UsageError
from ryzc.formats import trits
from ryzc.kv_formats import KV_FORMATS, USUAL
from ryzc.lower import Lowered, layouts, lower, shared_object, tuner
from ryzc.lower.weights import Produce
from ryzc.passes import pipeline, quantize_weights
from ryzc.runtime import kv_quality, weight_quality
from ryzc.runtime.perplexity import Perplexity
from ryzc.runtime.tokenizer import Tokenizer
from ryzc.sources import tokenizers
from ryzc.sources.checkpoint import Checkpoint

Observer = Callable[[str, ir.Model], None]
_CHARACTERS = 16
"""A token has fewer on average."""


class Progress(Protocol):
    """Told what the build is doing."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of a stage are finished."""


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


def _unheard(sentence: str) -> None:
    del sentence


def build(
    source: str | Path,
    output: str | Path | None = None,
    *,
    targets: Sequence[str] = ("native",),
    activations: str = "int8",
    tune: bool = False,
    kv: str | None = None,
    ternary: str | None = None,
    quant: str | None = None,
    head: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    observer: Observer | None = None,
) -> Path:
    """Compile a model into a bundle.

    Args:
        source: a GGUF file, a directory of safetensors, a named sample or ``hf:ORG/REPO[:FILE]``.
        output: the bundle's directory; by default ``NAME.ryzc`` in the current directory.
        targets: names of targets, see ``ryzc targets``; ``native`` is this CPU.
        activations: ``int8`` (blocks of 32) or ``f32``, which is exact and slow.
        tune: measure on this CPU which method each kernel takes, for some seconds; changes speed, no bits.
        kv: how keys and values are kept, see :mod:`ryzc.kv_formats`; by default ``int16``, or ``f32`` beside f32
            activations. What keeps them in fewer bits is tried first: see :mod:`ryzc.runtime.kv_quality`.
        ternary: layout of ternary weights, see :mod:`ryzc.formats.trits`; by default what is faster on this CPU where
            the build is tuned, else ``planes``.
        quant: round the linear layers to ``ternary`` or ``ternary2`` (one or two ternary digits a weight), see
            :mod:`ryzc.passes.quantize_weights`. What that costs is measured: see :mod:`ryzc.runtime.weight_quality`.
        head: round the head to this weight format: ``q8_0``, ``q4_1`` or ``q4_0``.
        force: build even where keys and values as asked for cost more than their bound, and measure neither that nor
            what ``quant`` and ``head`` cost.
        progress: called as stages advance.
        notice: called with what should be told of the bundle; its manifest has it too.
        observer: called with the graph after every pass.

    Returns:
        The bundle's directory.

    Raises:
        QualityError: keys and values as asked for cost this model more of its perplexity than their bound.
        RyzcError: see :mod:`ryzc.errors`; nothing is left behind where the build fails.
    """
    tell = progress or _silent
    chosen = [target_table.get(name) for name in dict.fromkeys(targets)]
    if not chosen:
        raise UsageError("a build needs at least one target", hint="use --target native")
    if tune:
        tuner.check(chosen)

    tell("read", 0, 1)
    quantize_weights.check(quant, head)
    checkpoint = sources.open(source)
    destination = Path(output) if output is not None else Path(f"{sources.stem(checkpoint.path)}.ryzc")
    bundle.check_destination(destination)
    tokenizer_json = tokenizers.build(checkpoint.vocabulary)
    tell("read", 1, 1)

    weights = _ask(checkpoint, quant, head, tell) if quant or head else None

    tell("plan", 0, 1)
    planned = partial(plan, checkpoint, activations=activations, kv=kv, weights=weights)
    lowered = planned(ternary=ternary or trits.USUAL, observer=observer)
    if ternary and not layouts.present(lowered):
        raise UsageError(
            f"{checkpoint.path.name} has no ternary weights to lay out as {ternary}", hint="build it without --ternary"
        )
    tell("plan", 1, 1)

    found = {key: name for key, name in (("quant", quant), ("head", head)) if name}
    if weights is not None and not weights.done:
        raise UsageError(
            f"{checkpoint.path.name}: there is nothing to round to {' or '.join(found.values())}",
            hint="a BitNet's layers are ternary already; build without --quant and --head",
        )
    if KV_FORMATS[lowered.plan.kv.dtype].bound and not force:
        found["kv_cost"] = str(_try_kv(checkpoint, lowered, planned(kv="f16"), destination.absolute().parent, tell))
    if weights is not None and not force:
        loss = _try_weights(checkpoint, lowered, planned(weights=None), destination.absolute().parent, tell)
        found["quant_cost"] = str(loss)
        (notice or _unheard)(str(loss))

    files = {}
    if tune:
        laid_out: tuple[tuning.LayoutChoice, ...] = ()
        if ternary is None and layouts.present(lowered):
            laid_out = _choose_layouts(lowered, planned, chosen[0])
            lowered = planned(ternary=layouts.by_shape(laid_out))
        lowered, record = tuner.tune(lowered, chosen[0], lambda done, total: tell("tune", done, total), laid_out)
        files[tuning.FILE] = tuning.to_json(record).encode()

    kernels = {}
    for i, target in enumerate(chosen):
        tell("compile", i, len(chosen))
        kernels[target.name] = shared_object(lowered.plan, target)
    tell("compile", len(chosen), len(chosen))

    total = len(lowered.weights)
    packed = 0

    def weights_done() -> None:
        nonlocal packed
        packed += 1
        tell("pack", packed, total)

    bundle.write(
        destination,
        plan=lowered.plan,
        weights=[(weight, _counted(produce, weights_done)) for weight, produce in lowered.weights],
        kernels=kernels,
        required={target.name: sorted(target.features) for target in chosen},
        tokenizer_json=tokenizer_json,
        tokenizer_config=tokenizers.settings(checkpoint.vocabulary),
        chat_template=checkpoint.chat_template,
        generation_config=checkpoint.generation,
        provenance={**_provenance(checkpoint, activations), "kv": lowered.plan.kv.dtype, **found},
        files=files,
    )
    return destination


def plan(
    checkpoint: Checkpoint,
    *,
    activations: str = "int8",
    kv: str | None = None,
    weights: quantize_weights.Asked | None = None,
    ternary: layouts.Layouts | str = trits.USUAL,
    observer: Observer | None = None,
) -> Lowered:
    """The middle of a build: graph, passes and plan of a checkpoint, without code or packed weights."""
    if activations not in ("int8", "f32"):
        raise UsageError(f"activations {activations!r} are not known", hint="choose int8 or f32")
    semantic = models.load(checkpoint)
    if observer is not None:
        observer("model", semantic.ir_model)
    kv_dtype = kv or (USUAL if activations == "int8" else "f32")
    reports = pipeline.run(
        semantic.ir_model, activations=activations, kv_dtype=kv_dtype, weights=weights, observer=observer
    )
    notes = {report.name: json.dumps(dict(report.figures), sort_keys=True) for report in reports}
    return lower(
        semantic.ir_model,
        semantic.config,
        architecture=checkpoint.architecture,
        activations=activations,
        ternary=ternary,
        notes=notes,
    )


def _choose_layouts(
    lowered: Lowered, planned: Callable[..., Lowered], target: target_table.Target
) -> tuple[tuning.LayoutChoice, ...]:
    """Measure how ternary weights should lie, on as many threads as the model will run on."""
    cpu = target_table.detect()
    return layouts.choose(
        lambda layout: planned(ternary=layout), target, cpu.threads, tuner.cold_bytes(lowered.plan, cpu)
    )


def _ask(checkpoint: Checkpoint, quant: str | None, head: str | None, tell: Progress) -> quantize_weights.Asked:
    """How weights are to be rounded; for layers, what their columns count is seen in a text that no build measures."""
    if quant is None:
        return quantize_weights.Asked(layers=None, head=head)
    tell("calibrate", 0, 1)
    tokenizer = Tokenizer(tokenizers.build(checkpoint.vocabulary), tokenizers.settings(checkpoint.vocabulary))
    semantic = models.load(checkpoint)
    size = min(kv_quality.CONTEXT, semantic.config.context_length)
    text = kv_quality.text()[-size * _CHARACTERS :]
    importance = quantize_weights.importance(semantic.ir_model, tokenizer.encode(text)[:size])
    tell("calibrate", 1, 1)
    return quantize_weights.Asked(quantize_weights.LAYERS[quant], head, importance)


def _try_kv(
    checkpoint: Checkpoint, asked: Lowered, reference: Lowered, directory: Path, tell: Progress
) -> kv_quality.Cost:
    """What keys and values as asked for cost beside float16.

    Raises:
        QualityError: more than the format's bound.
        TargetError: this CPU runs no bundle.
    """
    before, after = _measured(checkpoint, [reference, asked], directory, partial(tell, "try"))
    cost = kv_quality.cost(asked.plan.kv.dtype, after, before)
    if cost.excessive:
        raise QualityError(
            f"{checkpoint.path.name}: {cost.format.name} keys and values cost above {cost.format.bound:.1%}: {cost}",
            hint="keep more bits (`ryzc eval kv` compares), or build all the same with --force (force=True)",
        )
    return cost


def _try_weights(
    checkpoint: Checkpoint, asked: Lowered, reference: Lowered, directory: Path, tell: Progress
) -> weight_quality.Loss:
    """What rounded weights cost beside those of the source.

    Raises:
        TargetError: this CPU runs no bundle.
    """
    before, after = _measured(checkpoint, [reference, asked], directory, partial(tell, "judge"))
    return weight_quality.Loss(after.value, before.value)


def _measured(
    checkpoint: Checkpoint, plans: Sequence[Lowered], directory: Path, tell: Callable[[int, int], None]
) -> list[Perplexity]:
    """Perplexities on this CPU, of bundles that are thrown away."""
    target, total = target_table.get("native"), len(plans) * kv_quality.WINDOWS
    found: list[Perplexity] = []
    with tempfile.TemporaryDirectory(prefix=".ryzc-try-", dir=directory if directory.is_dir() else None) as place:
        for each in plans:
            path, before = Path(place) / "model.ryzc", len(found) * kv_quality.WINDOWS
            bundle.write(
                path,
                plan=each.plan,
                weights=each.weights,
                kernels={target.name: shared_object(each.plan, target)},
                required={target.name: sorted(target.features)},
                tokenizer_json=tokenizers.build(checkpoint.vocabulary),
                tokenizer_config=tokenizers.settings(checkpoint.vocabulary),
            )
            found.append(kv_quality.measure(path, progress=partial(_tried, tell, before, total)))
            shutil.rmtree(path)
    return found


def _tried(tell: Callable[[int, int], None], before: int, total: int, done: int, windows: int, value: float) -> None:
    del windows, value
    tell(before + done, total)


def _counted(produce: Produce, done: Callable[[], None]) -> Produce:
    def run() -> npt.NDArray[np.uint8]:
        result = produce()
        done()
        return result

    return run


def _provenance(checkpoint: Checkpoint, activations: str) -> dict[str, str | int | float | bool]:
    """Where a bundle comes from: the source, what made it, and what was asked for."""
    return {
        **checkpoint.provenance,
        "sha256": sources.digest(checkpoint.path),
        "ryzc": __version__,
        "llvmlite": version("llvmlite"),
        "activations": activations,
    }
