"""The CPU that runs this process: who it is, what it can do, how many threads suit it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ryzc.errors import TargetError
from ryzc.targets import cpuid, cpuinfo, topology
from ryzc.targets.identity import Identity, zen_generation
from ryzc.targets.table import Target, find
from ryzc.targets.topology import Topology

OVERRIDE = "RYZC_CPU"
"""The environment variable that names a lesser target to be taken for."""


@dataclass(frozen=True)
class Cpu:
    """A CPU, as far as this process may use it.

    Attributes:
        vendor: ``AuthenticAMD`` or another.
        name: the marketing name.
        family, model: with the extended bits.
        zen: the Zen generation (Zen+ is 1), ``None`` for other CPUs.
        features: names as in ``/proc/cpuinfo``, of those that targets ask for.
        topology: packages, L3 domains, cores and hardware threads.
        threads: how many threads suit it: usable physical cores, within the cgroup's quota.
        pretended: the target that ``RYZC_CPU`` names, or ``None``.
    """

    vendor: str
    name: str
    family: int
    model: int
    zen: int | None
    features: frozenset[str]
    topology: Topology
    threads: int
    pretended: str | None = None


def detect(
    *,
    root: Path = Path("/"),
    ask: Callable[[], Identity | None] = cpuid.read,
    affinity: frozenset[int] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Cpu:
    """The CPU of this process.

    A feature counts where both the CPU and the kernel report it: the CPU may be an emulated one under
    a kernel that reports another, and the kernel may have been told not to use a feature.

    Args:
        root: where ``proc`` and ``sys`` lie.
        ask: executes CPUID; says ``None`` where that is not possible.
        affinity: logical CPUs that may be used; by default those of this process.
        environ: where ``RYZC_CPU`` is looked for.

    Raises:
        TargetError: where this is no x86-64 CPU, or ``RYZC_CPU`` names an unknown or a greater one.
    """
    asked, told = ask(), cpuinfo.read(root)
    identity = asked or told
    if identity is None:
        raise TargetError("this CPU could not be identified", hint="ryzc runs on x86-64 CPUs under Linux")
    features = frozenset(cpuid.FEATURES) & identity.features
    if told is not None:
        features &= told.features
    zen = zen_generation(identity)
    pretended = environ.get(OVERRIDE) or None
    if pretended is not None:
        target = _pretend(pretended, identity.name, features)
        features, zen = target.features, target.zen
    layout = topology.read(root, affinity)
    return Cpu(
        vendor=identity.vendor,
        name=identity.name,
        family=identity.family,
        model=identity.model,
        zen=zen,
        features=features,
        topology=layout,
        threads=layout.default_threads(),
        pretended=pretended,
    )


def _pretend(name: str, cpu: str, features: frozenset[str]) -> Target:
    """The named target, all of whose features the CPU must have."""
    try:
        target = find(name)
    except TargetError as error:
        raise TargetError(f"{OVERRIDE}: {error}", hint=error.hint) from error
    missing = target.features - features
    if missing:
        raise TargetError(
            f"{OVERRIDE}={name}: this CPU ({cpu}) lacks {', '.join(sorted(missing))}",
            hint=f"{OVERRIDE} only names a lesser CPU than this one; unset it",
        )
    return target
