"""``ryzc inspect``"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ryzc.cli import _terminal, _tuning
from ryzc.cli._models import local
from ryzc.errors import UsageError

if TYPE_CHECKING:
    from ryzc.bundle import Bundle
    from ryzc.bundle.plan import Plan
    from ryzc.sources.checkpoint import Checkpoint

DEFAULT_CONTEXT = 4096


@click.command()
@click.argument("model", metavar="BUNDLE|SRC")
@click.option("-c", "--ctx-size", type=click.IntRange(1), help="Context for which to state the memory.")
@click.option("--after", metavar="PASS", help="The graph after a pass of the compiler; `model` is before the first.")
@click.option("--asm", metavar="KERNEL", help="The assembly of a kernel.")
@click.option("--tuning", "show_tuning", is_flag=True, help="What the tuner measured and chose (`ryzc build --tune`).")
@click.option("--target", help="The CPU for --asm; by default the best for this machine.")
@click.option("--memory", is_flag=True, help="What a process that runs the bundle holds in memory, part by part.")
@click.option("--json", "as_json", is_flag=True, help="The contents, or --tuning or --memory, as JSON.")
def command(
    model: str,
    ctx_size: int | None,
    after: str | None,
    asm: str | None,
    show_tuning: bool,
    target: str | None,
    memory: bool,
    as_json: bool,
) -> None:
    """Show what is inside a bundle or a source."""
    views = {"--after": after is not None, "--asm": asm is not None, "--tuning": show_tuning, "--memory": memory}
    given = [name for name, chosen in views.items() if chosen]
    if len(given) > 1 or (as_json and given in (["--after"], ["--asm"])):
        raise UsageError(
            f"{' and '.join([*given, *(['--json'] if as_json else [])])} exclude each other", hint="give one of them"
        )
    if target is not None and asm is None:
        raise UsageError("--target says for which CPU --asm shows a kernel", hint="add --asm KERNEL")
    from ryzc.bundle import Bundle, is_bundle

    if is_bundle(model):
        if after is not None:
            raise UsageError("a bundle holds no graph, only what became of it", hint="give its source to --after")
        bundle = Bundle.open(model)
        if show_tuning:
            record = _tuning.report(_tuning.read(bundle))
            click.echo(json.dumps(record, indent=2) if as_json else _terminal.printable(_tuning.text(record)))
            return
        plan, about = bundle.plan, about_bundle(bundle)
    else:
        from ryzc import sources
        from ryzc.compiler import plan as make_plan

        if show_tuning:
            raise UsageError("only a bundle can be tuned", hint="build one: ryzc build SRC --tune")
        checkpoint = sources.open(local(model))
        if after is not None:
            click.echo(graph_after(checkpoint, after))
            return
        bundle = None
        plan, about = make_plan(checkpoint).plan, about_source(checkpoint)
    if asm is not None:
        click.echo(assembly(plan, asm, target, bundle))
        return
    context = min(plan.context_length, DEFAULT_CONTEXT) if ctx_size is None else ctx_size
    if context > plan.context_length:
        raise UsageError(
            f"a context of {context} tokens is not possible",
            hint=f"this model was trained for up to {plan.context_length} tokens (-c)",
        )
    if memory:
        from ryzc.cli import _memory

        if bundle is None:
            raise UsageError("--memory is about the process that runs a bundle", hint=f"build it: ryzc build {model}")
        footprint = _memory.predict(bundle, context)
        said = _memory.report(footprint, context, plan.kv)
        click.echo(json.dumps(said, indent=2) if as_json else _memory.text(footprint, context, plan.kv))
        return
    report = {**about, **about_plan(plan, context)}
    click.echo(json.dumps(report, indent=2) if as_json else _terminal.printable(text(report)))


def about_bundle(bundle: Bundle) -> dict[str, Any]:
    """What a bundle says of itself."""
    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "made_from": dict(bundle.manifest.provenance),
        "chat_template": bundle.has("chat_template.jinja"),
        "targets": {name: list(entry.features) for name, entry in bundle.manifest.targets.items()},
        "files": {name: entry.bytes for name, entry in bundle.manifest.files.items()},
    }


def about_source(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a source says of itself."""
    return {
        "kind": "source",
        "path": str(checkpoint.path),
        "made_from": dict(checkpoint.provenance),
        "chat_template": checkpoint.chat_template is not None,
        "tokenizer": f"{checkpoint.vocabulary.model} ({checkpoint.vocabulary.pre})",
        "tensors": len(checkpoint.tensors),
    }


def about_plan(plan: Plan, context: int) -> dict[str, Any]:
    """What a model is and needs."""
    pages = -(-context // plan.kv.page_tokens)
    memory = {
        "weights": sum(weight.bytes for weight in plan.weights),
        "keys_and_values": pages * plan.kv.page_bytes,
        "scratch": plan.arena_bytes,
    }
    calls = Counter(call.kernel for phase in plan.phases for call in phase)
    return {
        "architecture": plan.architecture,
        "parameters": sum(weight.rows * weight.columns for weight in plan.weights),
        "vocabulary": plan.vocab_size,
        "context_length": plan.context_length,
        "activations": plan.activations,
        "formats": formats(plan),
        "rounded": json.loads(str(plan.notes.get("quantize_weights", "{}"))),
        "context": context,
        "memory": {**memory, "total": sum(memory.values())},
        "kv_bytes_per_token": plan.kv.page_bytes / plan.kv.page_tokens,
        "kv_dtype": plan.kv.dtype,
        "macs_per_token": plan.macs_per_token + plan.head_macs,
        "step": {"tokens": plan.max_tokens, "rows": plan.max_rows, "phases": len(plan.phases)},
        "kernels": [
            {"symbol": kernel.symbol, "family": kernel.family, "calls": calls[kernel.symbol]} for kernel in plan.kernels
        ],
    }


def formats(plan: Plan) -> list[dict[str, Any]]:
    """How much of the model is kept in which format, the largest part first."""
    found: dict[str, dict[str, Any]] = {}
    for weight in plan.weights:
        entry = found.setdefault(weight.format, {"format": weight.format, "tensors": 0, "parameters": 0, "bytes": 0})
        entry["tensors"] += len(weight.sources)
        entry["parameters"] += weight.rows * weight.columns
        entry["bytes"] += weight.bytes
    for entry in found.values():
        entry["bits_per_weight"] = 8 * entry["bytes"] / entry["parameters"]
    return sorted(found.values(), key=lambda entry: -entry["bytes"])


def errors(figures: Mapping[str, Any]) -> list[list[str]]:
    """Rows about weights that a build rounded: errors of all matrices, and of those of equal name in all blocks."""
    found: dict[str, list[float]] = {}
    kept = [[name, value] for name, value in figures.items() if isinstance(value, str)]
    for name, value in figures.items():
        if isinstance(value, float):
            found.setdefault("all" if name == "error" else re.sub(r"\.\d+\.", ".*.", name), []).append(value)
    rows = [
        [name, " to ".join(f"{v:.2%}" for v in sorted({min(values), max(values)}))] for name, values in found.items()
    ]
    return [*rows, *kept]


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    size, memory, step = _terminal.size, report["memory"], report["step"]
    facts = [
        ["model", f"{report['architecture']}, {_terminal.count(report['parameters'])} parameters"],
        [
            "vocabulary",
            f"{report['vocabulary']} tokens" + (f", {report['tokenizer']}" if "tokenizer" in report else ""),
        ],
        ["context", f"{report['context_length']} tokens"],
        ["chat template", "yes" if report["chat_template"] else "no: it continues texts"],
        ["activations", report["activations"]],
        ["a step", f"up to {step['tokens']} tokens and {step['rows']} rows of logits, {step['phases']} phases"],
        ["a token", f"{_terminal.count(report['macs_per_token'])} multiply-accumulates"],
    ]
    facts += [[f"target {name}", f"needs {', '.join(needs)}"] for name, needs in report.get("targets", {}).items()]
    facts += [[key.replace("_", " "), str(value)] for key, value in report["made_from"].items()]
    kept = [
        [
            f["format"],
            f"{f['bits_per_weight']:.2f} bits/weight",
            f"{_terminal.count(f['parameters'])} weights",
            size(f["bytes"]),
        ]
        for f in report["formats"]
    ]
    needed = [
        ["weights", size(memory["weights"])],
        [
            "keys and values",
            f"{size(memory['keys_and_values'])} ({size(report['kv_bytes_per_token'])} a token, {report['kv_dtype']})",
        ],
        ["scratch", size(memory["scratch"])],
        ["total", size(memory["total"])],
    ]
    kernels = [[k["symbol"], k["family"], f"× {k['calls']}"] for k in report["kernels"]]
    sections = [
        (f"{report['kind']} {report['path']}", facts),
        ("weights", kept),
        ("error of rounded weights, relative, by the Frobenius norm", errors(report["rounded"])),
        (f"memory at a context of {report['context']} tokens", needed),
        ("files", [[name, size(nbytes)] for name, nbytes in report.get("files", {}).items()]),
        ("kernels", kernels),
    ]
    return "\n".join(f"{title}\n{_terminal.table(rows, indent='  ')}" for title, rows in sections if rows)


def graph_after(checkpoint: Checkpoint, name: str) -> str:
    """The graph of a source after a pass, as text.

    Raises:
        UsageError: there is no such pass.
    """
    from ryzc.compiler import plan as make_plan
    from ryzc.graph.text import summary
    from ryzc.passes import pipeline

    known = ["model", *(pass_.name for pass_ in pipeline.passes())]
    if name not in known:
        raise UsageError(f"there is no pass {name!r}", hint=f"choose one of {', '.join(known)}")
    graphs: dict[str, str] = {}

    def keep(after: str, model: Any) -> None:
        if after == name:
            graphs[after] = summary(model)

    make_plan(checkpoint, observer=keep)
    return graphs[name]


def assembly(plan: Plan, kernel: str, target: str | None, bundle: Bundle | None) -> str:
    """The assembly of a kernel.

    Raises:
        UsageError: there is no such kernel or target.
        TargetError: this CPU runs none of the bundle's targets, and none was named.
    """
    from ryzc import lower, targets

    if target is not None:
        chosen = targets.get(target)
    elif bundle is not None:
        chosen = bundle.choose(targets.detect())
    else:
        chosen = targets.get("native")
    return lower.assembly(plan, kernel, chosen)
