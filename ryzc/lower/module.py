"""Plan to native code: kernels and scaffold in one module, compiled for one target."""

from __future__ import annotations

from dataclasses import replace

from llvmlite import binding, ir

from ryzc.bundle.plan import KernelSpec, Plan
from ryzc.codegen import compile as llvm
from ryzc.codegen import container
from ryzc.codegen import isa as instruction_sets
from ryzc.errors import UsageError
from ryzc.targets import Target
from ryzc.templates import scaffold
from ryzc.templates.kernels import from_spec, probes

_PROBES = ("probe_read", "probe_read_ahead", "probe_int8", "probe_blocks")


def shared_object(plan: Plan, target: Target) -> bytes:
    """The whole step for a target, as a shared object with ``step``, ``worker``, ``stop`` and the probes."""
    module = _link(plan.kernels, target)
    module.link_in(_probes(target))
    module.link_in(llvm.parse(scaffold.step_text(plan), where="step scaffold"))
    _hide_all_but(module, {"step", "worker", "stop", *_PROBES})
    return _compiled(module, target)


def trial_object(specs: tuple[KernelSpec, ...], target: Target, operands: int) -> bytes:
    """Kernels of ``operands`` operands alone, by their symbols, with ``repeat`` to call them and the probes."""
    module = _link(specs, target)
    module.link_in(_probes(target))
    module.link_in(llvm.parse(scaffold.repeat_text(operands), where="trial scaffold"))
    return _compiled(module, target)


def assembly(plan: Plan, symbol: str, target: Target) -> str:
    """Assembly text of one kernel of a plan.

    Raises:
        UsageError: where the plan has no such kernel; the hint lists those it has.
    """
    specs = {k.symbol: k for k in plan.kernels}
    if symbol not in specs:
        raise UsageError(f"this model has no kernel {symbol!r}", hint=f"its kernels: {', '.join(sorted(specs))}")
    module = _link((replace(specs[symbol]),), target)
    return llvm.compile_assembly(module, cpu=target.llvm_cpu, features=target.llvm_features)


def _compiled(module: binding.ModuleRef, target: Target) -> bytes:
    return container.link(llvm.compile_object(module, cpu=target.llvm_cpu, features=target.llvm_features))


def _probes(target: Target) -> binding.ModuleRef:
    module = ir.Module("probes")
    module.triple = llvm.TRIPLE
    probes.emit(module, instruction_sets.BY_NAME[target.isa])
    return llvm.parse(str(module), where="probes")


def _link(specs: tuple[KernelSpec, ...], target: Target) -> binding.ModuleRef:
    """The kernels in one module, still exported so that the step can be linked to them."""
    isa = instruction_sets.BY_NAME[target.isa]
    linked: binding.ModuleRef | None = None
    for spec in specs:
        module = ir.Module(spec.symbol)
        module.triple = llvm.TRIPLE
        from_spec(spec).emit(module, isa, spec.symbol)
        for function in module.functions:
            if not function.is_declaration:
                function.linkage = ""
        parsed = llvm.parse(str(module), where=f"kernel {spec.symbol}")
        if linked is None:
            linked = parsed
        else:
            linked.link_in(parsed)
    assert linked is not None
    return linked


def _hide_all_but(module: binding.ModuleRef, exported: set[str]) -> None:
    for function in module.functions:
        if not function.is_declaration and function.name not in exported:
            function.linkage = "internal"
