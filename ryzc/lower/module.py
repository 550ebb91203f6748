"""Plan to native code: every kernel is compiled by itself for a target, then linked with the step's scaffold.

A process compiles the same kernel for the same target once, whichever plans it is part of.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from llvmlite import binding, ir

from ryzc.bundle.plan import KernelSpec, Parameter, Plan
from ryzc.codegen import compile as llvm
from ryzc.codegen import container
from ryzc.codegen import isa as instruction_sets
from ryzc.errors import UsageError
from ryzc.targets import Target
from ryzc.templates import scaffold
from ryzc.templates.kernels import from_spec, probes

OBJECTS: Final = 1024
"""Compiled kernels that are kept, each of some ten thousand bytes."""
MODULES: Final = 64
"""Kernels whose IR is kept, more than a plan has: targets of one instruction set share it."""

EXPORTS: Final = ("step", "worker", "stop", "probe_read", "probe_read_ahead", "probe_int8", "probe_blocks")
"""Functions of a compiled step; its kernels are its own."""

_Parameters = tuple[tuple[str, Parameter], ...]


def shared_object(plan: Plan, target: Target) -> bytes:
    """The whole step for a target, as a shared object with ``step``, ``worker``, ``stop`` and the probes."""
    step = _object(llvm.parse(scaffold.step_text(plan), where="step scaffold"), target)
    return container.link(*(_kernel(spec, target) for spec in plan.kernels), _probes(target), step, exports=EXPORTS)


def trial_object(specs: tuple[KernelSpec, ...], target: Target, operands: int) -> bytes:
    """Kernels of ``operands`` operands alone, by their symbols, with ``repeat`` to call them and the probes."""
    repeat = _object(llvm.parse(scaffold.repeat_text(operands), where="trial scaffold"), target)
    return container.link(*(_kernel(spec, target) for spec in specs), _probes(target), repeat)


def assembly(plan: Plan, symbol: str, target: Target) -> str:
    """Assembly text of one kernel of a plan.

    Raises:
        UsageError: where the plan has no such kernel; the hint lists those it has.
    """
    specs = {k.symbol: k for k in plan.kernels}
    if symbol not in specs:
        raise UsageError(f"this model has no kernel {symbol!r}", hint=f"its kernels: {', '.join(sorted(specs))}")
    module = binding.parse_bitcode(_bitcode(*_key(specs[symbol]), target.isa))
    return llvm.compile_assembly(module, cpu=target.llvm_cpu, features=target.llvm_features)


def forget() -> None:
    """Forget all kernels, so that the next ones are compiled anew."""
    _compiled.cache_clear()
    _bitcode.cache_clear()


def _kernel(spec: KernelSpec, target: Target) -> bytes:
    return _compiled(*_key(spec), target)


def _key(spec: KernelSpec) -> tuple[str, str, _Parameters]:
    return spec.symbol, spec.family, tuple(sorted(spec.parameters.items()))


@lru_cache(OBJECTS)
def _compiled(symbol: str, family: str, parameters: _Parameters, target: Target) -> bytes:
    """A kernel's object, in which it is global."""
    return _object(binding.parse_bitcode(_bitcode(symbol, family, parameters, target.isa)), target)


@lru_cache(MODULES)
def _bitcode(symbol: str, family: str, parameters: _Parameters, isa: str) -> bytes:
    """A kernel's IR, as LLVM writes it."""
    module = ir.Module(symbol)
    module.triple = llvm.TRIPLE
    from_spec(KernelSpec(symbol, family, dict(parameters))).emit(module, instruction_sets.BY_NAME[isa], symbol)
    for function in module.functions:
        if not function.is_declaration:
            function.linkage = ""
    return bytes(llvm.parse(str(module), where=f"kernel {symbol}").as_bitcode())


@lru_cache
def _probes(target: Target) -> bytes:
    module = ir.Module("probes")
    module.triple = llvm.TRIPLE
    probes.emit(module, instruction_sets.BY_NAME[target.isa])
    return _object(llvm.parse(str(module), where="probes"), target)


def _object(module: binding.ModuleRef, target: Target) -> bytes:
    return llvm.compile_object(module, cpu=target.llvm_cpu, features=target.llvm_features)
