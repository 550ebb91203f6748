"""How a machine's CPUs hang together: packages, L3 domains (a CCX), cores, hardware threads.

Read from Linux's sysfs. What it does not tell (some containers and hypervisors hide it) is taken to
be simple: one package, one L3 domain a package, a core a logical CPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Core:
    """A physical core.

    Attributes:
        cpus: its hardware threads, numbers of logical CPUs.
        l1d, l2: bytes of its caches; 0 where unknown.
    """

    cpus: tuple[int, ...]
    l1d: int = 0
    l2: int = 0


@dataclass(frozen=True)
class Domain:
    """Cores that share an L3 cache: a CCX. ``l3`` in bytes, 0 where unknown."""

    cores: tuple[Core, ...]
    l3: int = 0


@dataclass(frozen=True)
class Package:
    """What sits in a socket."""

    domains: tuple[Domain, ...]


@dataclass(frozen=True)
class Topology:
    """All CPUs that are online, and what this process may use of them.

    Attributes:
        packages: in order of their first logical CPU, as are domains and cores.
        usable: logical CPUs that the process may run on.
        quota: CPUs' worth of time that the process's cgroups allow, ``None`` for no limit.
    """

    packages: tuple[Package, ...]
    usable: frozenset[int]
    quota: float | None = None

    @property
    def domains(self) -> tuple[Domain, ...]:
        return tuple(domain for package in self.packages for domain in package.domains)

    @property
    def cores(self) -> tuple[Core, ...]:
        return tuple(core for domain in self.domains for core in domain.cores)

    @property
    def usable_cores(self) -> tuple[Core, ...]:
        """Cores of which at least one hardware thread may be used."""
        return tuple(core for core in self.cores if self.usable.intersection(core.cpus))

    def default_threads(self) -> int:
        """Usable physical cores, and no more than the quota covers whole: threads that wait for each
        other all stand still while one of them has used up its time."""
        threads = len(self.usable_cores) or len(self.usable)
        return max(1, threads if self.quota is None else min(threads, int(self.quota)))

    def seats(self, threads: int) -> tuple[frozenset[int], ...]:
        """For each thread of a pool, the logical CPUs that it may run on: those of an L3 domain.

        Threads spread over the domains of a package before they crowd one: a step reads far more memory
        than any cache holds, and each domain has its own, narrow link to memory. Within a domain the
        kernel may move a thread, away from a busy neighbour for one; so no thread is tied to a CPU. Every
        usable core gets a thread before any gets a second, and a package is filled before the next one,
        for memory belongs to one of them. Threads of a domain have consecutive numbers, in the order of
        the domains, so that they read neighbouring rows and can meet each other first.
        """
        domains = [
            (
                number,
                self.usable.intersection(cpu for core in domain.cores for cpu in core.cpus),
                sum(1 for core in domain.cores if self.usable.intersection(core.cpus)),
            )
            for number, package in enumerate(self.packages)
            for domain in package.domains
        ]
        domains = [entry for entry in domains if entry[1]] or [(0, self.usable, len(self.usable))]
        taken = [0] * len(domains)
        for _ in range(threads):

            def crowding(i: int) -> tuple[int, int, float, int]:
                package, _, cores = domains[i]
                return taken[i] // cores, package, taken[i] / cores, i

            taken[min(range(len(domains)), key=crowding)] += 1
        return tuple(cpus for count, (_, cpus, _) in zip(taken, domains, strict=True) for _ in range(count))


def default_threads() -> int:
    """How many threads suit this process on this machine."""
    return read().default_threads()


def read(root: Path = Path("/"), affinity: frozenset[int] | None = None) -> Topology:
    """The topology of the machine.

    Args:
        root: where ``proc`` and ``sys`` lie.
        affinity: logical CPUs that may be used; by default those of this process.
    """
    if affinity is None:
        affinity = frozenset(os.sched_getaffinity(0))
    online = _cpu_list(root / "sys/devices/system/cpu/online") or tuple(sorted(affinity))
    places = sorted(_place(root, cpu) for cpu in online)
    packages = tuple(
        Package(tuple(_domain(cpus) for _, cpus in groupby(members, key=lambda place: place.domain)))
        for _, members in groupby(places, key=lambda place: place.package)
    )
    return Topology(packages, frozenset(online) & affinity or affinity, quota(root))


@dataclass(frozen=True, order=True)
class _Place:
    """Where a logical CPU sits. Package, domain and core are named by their first logical CPU."""

    package: int
    domain: int
    core: int
    cpu: int
    l1d: int
    l2: int
    l3: int


def _place(root: Path, cpu: int) -> _Place:
    directory = root / f"sys/devices/system/cpu/cpu{cpu}"
    topology = directory / "topology"
    package = _cpu_list(topology / "package_cpus_list") or _cpu_list(topology / "core_siblings_list") or (0,)
    core = _cpu_list(topology / "core_cpus_list") or _cpu_list(topology / "thread_siblings_list") or (cpu,)
    domain = package
    sizes = {1: 0, 2: 0, 3: 0}
    for cache in sorted((directory / "cache").glob("index*")):
        level = _number(cache / "level")
        if level in sizes and _text(cache / "type") in ("Data", "Unified"):
            sizes[level] = _size(cache / "size")
            if level == 3:
                domain = _cpu_list(cache / "shared_cpu_list") or package
    return _Place(package[0], domain[0], core[0], cpu, sizes[1], sizes[2], sizes[3])


def _domain(places: Iterable[_Place]) -> Domain:
    members = list(places)
    cores = []
    for _, threads in groupby(members, key=lambda place: place.core):
        siblings = list(threads)
        cores.append(Core(tuple(place.cpu for place in siblings), siblings[0].l1d, siblings[0].l2))
    return Domain(tuple(cores), members[0].l3)


def quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the cgroups of this process and those above allow, ``None`` for no limit."""
    limits = [limit for group in _cgroups(root, "cpu") if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still fill without hurting others, ``None`` where the system doesn't tell.

    Caches count as free. A cgroup's limit counts whole, whatever is used of it.
    """
    found = [] if (available := _field(root / "proc/meminfo", "MemAvailable:")) is None else [available << 10]
    for group in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(group / name)
            if limit >= 0:
                found.append(limit)
    return min(found, default=None)


def spare_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can fill now, on top of what it and its cgroups hold; ``None`` where the system doesn't
    tell. May be negative. File pages that the system can drop count as spare.
    """
    found = [] if (available := _field(root / "proc/meminfo", "MemAvailable:")) is None else [available << 10]
    for group in _cgroups(root, "memory"):
        for limits, usage, droppable in (
            (("memory.max", "memory.high"), "memory.current", "inactive_file"),
            (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
        ):
            used = _number(group / usage)
            if used >= 0:
                used -= _field(group / "memory.stat", droppable) or 0
                found += [limit - used for name in limits if (limit := _number(group / name)) >= 0]
    return min(found, default=None)


def _field(path: Path, name: str) -> int | None:
    """The number that follows a name in a file of such lines."""
    for line in (_text(path) or "").splitlines():
        words = line.split()
        if words[:1] == [name] and words[1:] and words[1].isdecimal():
            return int(words[1])
    return None


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of this process's cgroups, of versions 1 and 2, and of all that contain them."""
    mounts = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            bases = [mounts, mounts / "unified"]
        elif controller in controllers.split(","):
            bases = [mounts / controllers, mounts / controller]
        else:
            continue
        # A path that leads upwards lies outside of what this container sees.
        inside = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
        for base in bases:
            for group in (inside, *inside.parents):
                yield base / group.relative_to("/")


def _limit(group: Path) -> float | None:
    """The quota of one cgroup."""
    words = (_text(group / "cpu.max") or "").split()
    if len(words) == 2:
        allowed, period = words
    else:
        allowed, period = _text(group / "cpu.cfs_quota_us") or "", _text(group / "cpu.cfs_period_us") or ""
    if not (allowed.isdecimal() and period.isdecimal() and int(period)):  # "max" and -1 are no limits
        return None
    return int(allowed) / int(period)


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int:
    text = _text(path) or ""
    return int(text) if text.isdecimal() else -1


def _size(path: Path) -> int:
    """Bytes, from ``32K`` or ``16M``; 0 where it is something else."""
    match = re.fullmatch(r"(\d+)([KMG]?)", _text(path) or "")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0


def _cpu_list(path: Path) -> tuple[int, ...]:
    """Sorted numbers, from ``0-3,8-11``; empty where it is something else."""
    text = _text(path) or ""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return ()
    spans = [span.partition("-") for span in text.split(",")]
    return tuple(sorted({cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)}))
