"""``ryzc targets``"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ryzc.cli import _terminal

if TYPE_CHECKING:
    from ryzc.targets import Cpu, Target


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(as_json: bool) -> None:
    """Show this CPU and the CPUs that ryzc compiles for."""
    from ryzc import targets

    cpu = targets.detect()
    known = [targets.get(name) for name in targets.names()]
    report = {
        "cpu": about_cpu(cpu),
        "targets": [about_target(target, cpu) for target in known],
        "native": next((target.name for target in known if not targets.runnable(target, cpu)), None),
    }
    click.echo(json.dumps(report, indent=2) if as_json else _terminal.printable(text(report)))


def about_cpu(cpu: Cpu) -> dict[str, Any]:
    """What was detected."""
    layout = cpu.topology
    return {
        "name": cpu.name,
        "vendor": cpu.vendor,
        "family": cpu.family,
        "model": cpu.model,
        "zen": cpu.zen,
        "pretended": cpu.pretended,
        "features": sorted(cpu.features),
        "threads": cpu.threads,
        "usable_cpus": sorted(layout.usable),
        "cpu_quota": layout.quota,
        "packages": [
            {
                "domains": [
                    {
                        "l3": domain.l3,
                        "cores": [{"cpus": list(core.cpus), "l1d": core.l1d, "l2": core.l2} for core in domain.cores],
                    }
                    for domain in package.domains
                ]
            }
            for package in layout.packages
        ],
    }


def about_target(target: Target, cpu: Cpu) -> dict[str, Any]:
    """A row of the table."""
    from ryzc import targets

    return {
        "name": target.name,
        "kernels": target.isa,
        "vector_bits": target.vector_bits,
        "products": list(target.products),
        "features": sorted(target.features),
        "missing_here": sorted(targets.runnable(target, cpu)),
    }


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    cpu = report["cpu"]
    zen = "" if cpu["zen"] is None else f", Zen {cpu['zen']}"
    facts = [
        ["cpu", f"{cpu['name']} (family {cpu['family']:#x}, model {cpu['model']:#x}{zen})"],
        *([["taken for", cpu["pretended"]]] if cpu["pretended"] else []),
        ["features", ", ".join(cpu["features"])],
        *([f"package {i}", _package(package)] for i, package in enumerate(cpu["packages"])),
        ["usable", _usable(cpu)],
        ["threads", f"{cpu['threads']} by default"],
        ["native", report["native"] or "none of the targets"],
    ]
    rows = [["target", "kernels", "vectors", "for", "here"]]
    for target in report["targets"]:
        missing = target["missing_here"]
        here = "runs" if not missing else f"lacks {', '.join(missing)}"
        if target["name"] == report["native"]:
            here = "runs, native"
        rows.append(
            [target["name"], target["kernels"], f"{target['vector_bits']} bit", ", ".join(target["products"]), here]
        )
    return f"{_terminal.table(facts)}\n\n{_terminal.table(rows)}"


def _package(package: dict[str, Any]) -> str:
    """Its L3 domains, cores and hardware threads."""
    return "; ".join(
        f"{len(domain['cores'])} cores, {sum(len(core['cpus']) for core in domain['cores'])} hardware threads"
        + (f", {domain['l3'] >> 20} MiB L3" if domain["l3"] else "")
        for domain in package["domains"]
    )


def _usable(cpu: dict[str, Any]) -> str:
    """The logical CPUs that this process may use."""
    quota = "" if cpu["cpu_quota"] is None else f", {cpu['cpu_quota']:g} CPUs' worth of time"
    return f"{len(cpu['usable_cpus'])} logical CPUs{quota}"
