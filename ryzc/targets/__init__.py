"""Which CPU this is, and which of the CPUs that ryzc compiles for it can stand in for.

``detect()`` asks the CPU; ``get("znver4")`` finds a target by name; ``best(names, cpu)`` chooses among
several what a CPU runs fastest, and never what it cannot run.
"""

from __future__ import annotations

from collections.abc import Iterable

from ryzc.errors import TargetError
from ryzc.targets.cpu import OVERRIDE, Cpu, detect
from ryzc.targets.table import TARGETS, Target, find
from ryzc.targets.topology import Core, Domain, Package, Topology, default_threads, free_memory, spare_memory

__all__ = [
    "OVERRIDE",
    "Core",
    "Cpu",
    "Domain",
    "Package",
    "Target",
    "Topology",
    "best",
    "default_threads",
    "detect",
    "free_memory",
    "get",
    "names",
    "runnable",
    "spare_memory",
]


def names() -> tuple[str, ...]:
    """The names of all targets, the most preferred first."""
    return tuple(target.name for target in TARGETS)


def get(name: str) -> Target:
    """The target of that name; ``v3`` and ``v4`` are short for ``x86-64-v3`` and ``-v4``, ``native`` is this CPU.

    Raises:
        TargetError: where there is none; ``native``, where this CPU cannot run any.
    """
    return best(names(), detect()) if name == "native" else find(name)


def runnable(target: Target, cpu: Cpu) -> frozenset[str]:
    """The features that a target's code needs and a CPU lacks: empty where the CPU can run it."""
    return target.features - cpu.features


def best(among: Iterable[str], cpu: Cpu) -> Target:
    """The most preferred of the named targets that a CPU can run.

    Names that this version of ryzc does not know are passed over: a bundle may be newer.

    Raises:
        TargetError: where the CPU can run none of them; says what it lacks for each.
    """
    wanted = set(among)
    lacking = []
    # The features do not tell Zen 1 from Zen 2: code tuned for a later CPU than this comes last.
    for target in sorted(TARGETS, key=lambda target: cpu.zen is not None and (target.zen or 0) > cpu.zen):
        if target.name in wanted:
            missing = runnable(target, cpu)
            if not missing:
                return target
            lacking.append(f"{target.name} needs {', '.join(sorted(missing))}")
    lacking += [f"{name} is not known" for name in sorted(wanted - set(names()))]
    reasons = "; ".join(lacking) or "no target was named"
    hint = "build the model for this CPU: ryzc build SRC --target native"
    if runnable(find("x86-64-v3"), cpu):
        hint = "ryzc needs a CPU with AVX2 and FMA; every Ryzen has them"
    raise TargetError(f"this CPU ({cpu.name}) can run none of the targets: {reasons}", hint=hint)
