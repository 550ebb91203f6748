"""Kernel families, one file each. ``get("linear")`` finds a family's ``Kernel`` by its file's name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from ryzc.bundle.plan import KernelSpec, Parameter
from ryzc.templates.kernels.kernel import Kernel

__all__ = ["Kernel", "from_spec", "get"]


def get(family: str) -> type[Kernel]:
    """The kernel class of a family."""
    kernel: type[Kernel] = import_module(f"{__name__}.{family}").KERNEL
    return kernel


def from_spec(spec: KernelSpec) -> Kernel:
    """The kernel that a plan names."""
    parameters: Mapping[str, Parameter] = spec.parameters
    return get(spec.family)(**parameters)
