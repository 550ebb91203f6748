"""Module to optimized object code, for a CPU that need not be this one."""

from __future__ import annotations

from functools import cache

import llvmlite.binding as llvm

from ryzc.errors import InternalError

TRIPLE = "x86_64-unknown-linux-gnu"


@cache
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()  # inline assembly aborts the process without it


def _machine(cpu: str, features: str) -> llvm.TargetMachine:
    _initialize()
    target = llvm.Target.from_triple(TRIPLE)
    return target.create_target_machine(cpu=cpu, features=features, opt=3, reloc="pic", codemodel="small")


def parse(text: str, *, where: str) -> llvm.ModuleRef:
    """Parse and verify LLVM IR.

    Raises:
        InternalError: where LLVM refuses it, naming ``where``.
    """
    _initialize()
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise InternalError(f"{where}: LLVM refuses the generated code: {error}") from error
    return module


def optimize(module: llvm.ModuleRef, cpu: str, features: str) -> llvm.TargetMachine:
    """Run LLVM's pipeline in place; kernels come unrolled and vectorized as they should be."""
    machine = _machine(cpu, features)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_interleaving = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return machine


def compile_object(module: llvm.ModuleRef, *, cpu: str, features: str = "") -> bytes:
    """Optimize and emit a relocatable object. ``cpu`` must come from the table of targets."""
    machine = optimize(module, cpu, features)
    return bytes(machine.emit_object(module))


def compile_assembly(module: llvm.ModuleRef, *, cpu: str, features: str = "") -> str:
    """Optimize and emit assembly text."""
    machine = optimize(module, cpu, features)
    return str(machine.emit_assembly(module))
