"""Code of a benchmark's own, compiled and loaded into this process."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

from llvmlite import ir

from ryzc.codegen import compile as llvm
from ryzc.codegen import container
from ryzc.targets import Target


def module(name: str) -> ir.Module:
    """An empty module for :func:`load`."""
    found = ir.Module(name)
    found.triple = llvm.TRIPLE
    return found


def load(module: ir.Module, target: Target) -> ctypes.CDLL:
    """The exported functions of a module, which this CPU must be able to run."""
    parsed = llvm.parse(str(module), where=module.name)
    code = container.link(llvm.compile_object(parsed, cpu=target.llvm_cpu, features=target.llvm_features))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "compiled.so"
        path.write_bytes(code)
        return ctypes.CDLL(str(path))
