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
from ryzc.kv_formats import KV_FORMATS
from ryzc.lower import Lowered, layouts, lower, shared_object, tuner
from ryzc.lower.weights import Produce
from ryzc.passes import pipeline
from ryzc.runtime import kv_quality
from ryzc.runtime.perplexity import Perplexity
from ryzc.sources import tokenizers
from ryzc.sources.checkpoint import Checkpoint

Observer = Callable[[str, ir.Model], None]


class Progress(Protocol):
    """Told what the build is doing."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of a stage are finished."""


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


def build(
    source: str | Path,
    output: str | Path | None = None,
    *,
    targets: Sequence[str] = ("native",),
    activations: str = "int8",
    tune: bool = False,
    kv: str | None = None,
    ternary: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    observer: Observer | None = None,
) -> Path:
    """Compile a model into a bundle.

    Args:
        source: a GGUF file, a directory of safetensors, a named sample or ``hf:ORG/REPO[:FILE]``.
        output: the bundle's directory; by default ``NAME.ryzc`` in the current directory.
        targets: names of targets, see ``ryzc targets``; ``native`` is this CPU.
        activations: ``int8`` (blocks of 32) or ``f32``, which is exact and slow.
        tune: measure on this CPU which method each kernel takes, for some seconds; changes speed, no bits.
        kv: how keys and values are kept, see :mod:`ryzc.kv_formats`; by default ``f16``, or ``f32`` beside activations
            of f32. What keeps them as codes is tried first: see :mod:`ryzc.runtime.kv_quality`.
        ternary: layout of ternary weights, see :mod:`ryzc.formats.trits`; by default what is faster on this CPU where
            the build is tuned, else ``planes``.
        force: build even where keys and values as asked for cost more than their bound, and do not try.
        progress: called as stages advance.
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
    checkpoint = sources.open(source)
    destination = Path(output) if output is not None else Path(f"{sources.stem(checkpoint.path)}.ryzc")
    bundle.check_destination(destination)
    tokenizer_json = tokenizers.build(checkpoint.vocabulary)
    tell("read", 1, 1)

    tell("plan", 0, 1)
    planned = partial(plan, checkpoint, activations=activations, kv=kv)
    lowered = planned(ternary=ternary or layouts.USUAL, observer=observer)
    if ternary and not layouts.present(lowered):
        raise UsageError(
            f"{checkpoint.path.name} has no ternary weights to lay out as {ternary}", hint="build it without --ternary"
        )
    tell("plan", 1, 1)

    found = {}
    if KV_FORMATS[lowered.plan.kv.dtype].coded and not force:
        found["kv_cost"] = str(_try_kv(checkpoint, lowered, destination.absolute().parent, tell))

    files = {}
    if tune:
        laid_out = () if ternary else _choose_layouts(lowered, planned, chosen[0])
        if laid_out:
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
    ternary: layouts.Layouts | str = layouts.USUAL,
    observer: Observer | None = None,
) -> Lowered:
    """The middle of a build: graph, passes and plan of a checkpoint, without code or packed weights."""
    if activations not in ("int8", "f32"):
        raise UsageError(f"activations {activations!r} are not known", hint="choose int8 or f32")
    semantic = models.load(checkpoint)
    if observer is not None:
        observer("model", semantic.ir_model)
    kv_dtype = kv or ("f16" if activations == "int8" else "f32")
    reports = pipeline.run(semantic.ir_model, activations=activations, kv_dtype=kv_dtype, observer=observer)
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


def _try_kv(checkpoint: Checkpoint, asked: Lowered, directory: Path, tell: Progress) -> kv_quality.Cost:
    """What keys and values as asked for cost beside float16, measured on this CPU with bundles that are thrown away.

    Raises:
        QualityError: more than the format's bound.
        TargetError: this CPU runs no bundle.
    """
    target, total = target_table.get("native"), 2 * kv_quality.WINDOWS
    lowered = {"f16": plan(checkpoint, activations=asked.plan.activations, kv="f16"), asked.plan.kv.dtype: asked}
    found: list[Perplexity] = []
    with tempfile.TemporaryDirectory(prefix=".ryzc-kv-", dir=directory if directory.is_dir() else None) as place:
        for name, each in lowered.items():
            path, before = Path(place) / f"{name}.ryzc", len(found) * kv_quality.WINDOWS
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
    cost = kv_quality.cost(asked.plan.kv.dtype, found[1], found[0])
    if cost.excessive:
        raise QualityError(
            f"{checkpoint.path.name}: {cost.format.name} keys and values cost above {cost.format.bound:.1%}: {cost}",
            hint="keep more bits (`ryzc eval kv` compares), or build all the same with --force (force=True)",
        )
    return cost


def _tried(tell: Progress, before: int, total: int, done: int, windows: int, value: float) -> None:
    del windows, value
    tell("try", before + done, total)


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
