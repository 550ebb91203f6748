"""What a CPU says of itself, and which Zen generation that makes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """A CPU as CPUID or the kernel describes it.

    Attributes:
        vendor: ``AuthenticAMD`` or another.
        name: the marketing name, e.g. ``AMD Ryzen 9 7950X 16-Core Processor``.
        family, model: with the extended bits, e.g. 0x19 and 0x61.
        features: names as in Linux's ``/proc/cpuinfo``, of what the operating system lets programs use.
    """

    vendor: str
    name: str
    family: int
    model: int
    features: frozenset[str]


_GENERATIONS = {
    # family: (first model, last model, generation); AMD's revision guides, as Linux tells them apart
    0x17: ((0x00, 0x2F, 1), (0x50, 0x5F, 1), (0x30, 0x4F, 2), (0x60, 0x7F, 2), (0x90, 0x91, 2), (0xA0, 0xAF, 2)),
    0x18: ((0x00, 0xFF, 1),),  # Hygon's Zen 1
    0x19: ((0x00, 0x0F, 3), (0x20, 0x5F, 3), (0x10, 0x1F, 4), (0x60, 0xAF, 4)),
    0x1A: ((0x00, 0x2F, 5), (0x40, 0x4F, 5), (0x60, 0x7F, 5), (0x50, 0x5F, 6), (0x80, 0xAF, 6), (0xC0, 0xCF, 6)),
}


def zen_generation(identity: Identity) -> int | None:
    """1 to 6 for a Zen CPU (Zen+ counts as 1), ``None`` for any other."""
    if identity.vendor not in ("AuthenticAMD", "HygonGenuine"):
        return None
    for first, last, generation in _GENERATIONS.get(identity.family, ()):
        if first <= identity.model <= last:
            return generation
    return None
