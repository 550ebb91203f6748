"""Runs one kernel: compiled for a target, linked by ryzc's own container, on buffers that end at unreadable pages.

A read or write past the end of an operand is a segmentation fault of the test process, and one before its
start is found by :func:`run` afterwards where it is a write.
"""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from llvmlite import ir

from ryzc import targets
from ryzc.bundle import abi
from ryzc.codegen import compile as llvm
from ryzc.codegen import container
from ryzc.codegen import isa as instruction_sets
from ryzc.templates.kernels import Kernel

Array: TypeAlias = npt.NDArray[Any]
Entry: TypeAlias = Callable[..., None]
Context: TypeAlias = Mapping[str, int | Array]

WANTED = ("znver4", "znver3", "x86-64-v3")
"""One target of each instruction set; x86-64-v3 where the CPU is not AMD's."""

_FRONT, _PATTERN, _PROT_NONE = 64, 0xA5, 0
_PAGE = mmap.PAGESIZE


def _runnable() -> list[str]:
    """The targets of WANTED that this CPU runs, one of each instruction set."""
    cpu = targets.detect()
    found: dict[str, str] = {}
    for name in WANTED:
        target = targets.get(name)
        if not targets.runnable(target, cpu):
            found.setdefault(target.isa, name)
    return list(found.values())


RUNNABLE = _runnable()
for_every_isa = pytest.mark.parametrize("target", RUNNABLE)
best_isa_first = pytest.mark.parametrize(
    "target", [*RUNNABLE[:1], *(pytest.param(name, marks=pytest.mark.thorough) for name in RUNNABLE[1:])]
)
"""As ``for_every_isa``, for tests whose kernels take long to compile: the default suite runs the first alone."""
examples = settings(deadline=None, max_examples=30)
"""Of property tests here; an example may have to compile a kernel first, so there is no deadline."""


@cache
def compiled(kernel: Kernel, target: str) -> Entry:
    """The kernel as a C function."""
    chosen = targets.get(target)
    module = ir.Module("kernel")
    module.triple = llvm.TRIPLE
    kernel.emit(module, instruction_sets.BY_NAME[chosen.isa], "kernel")
    for function in module.functions:
        if not function.is_declaration:
            assert function.linkage == "internal"
            function.linkage = ""
    parsed = llvm.parse(str(module), where=type(kernel).__name__)
    code = llvm.compile_object(parsed, cpu=chosen.llvm_cpu, features=chosen.llvm_features)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.so"
        path.write_bytes(container.link(code))
        entry: Any = ctypes.CDLL(str(path))["kernel"]
    entry.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * len(kernel.operands)]
    entry.restype = None
    function_: Entry = entry
    return function_


class Guarded:
    """A copy of an array that ends where memory ends, aligned to 16 bytes, behind bytes of a known pattern."""

    def __init__(self, source: Array) -> None:
        length = -(-source.nbytes // 16) * 16
        readable = -(-(length + _FRONT) // _PAGE) * _PAGE
        self._memory = mmap.mmap(-1, readable + _PAGE)
        raw = np.frombuffer(self._memory, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        status = libc.mprotect(ctypes.c_void_p(raw.ctypes.data + readable), ctypes.c_size_t(_PAGE), _PROT_NONE)
        assert status == 0, f"mprotect: error {ctypes.get_errno()}"
        start = readable - length
        self._around = [raw[start - _FRONT : start], raw[start + source.nbytes : readable]]
        for part in self._around:
            part[:] = _PATTERN
        self.array: Array = raw[start : start + source.nbytes].view(source.dtype).reshape(source.shape)
        self.array[...] = source

    def check(self, name: str) -> None:
        """Fail where something beside the array was written."""
        for part in self._around:
            assert (part == _PATTERN).all(), f"the kernel wrote outside of {name}"


def _context(values: Context, guarded: Mapping[str, Guarded]) -> Array:
    raw = np.zeros(abi.SIZE + 64, np.uint8)
    context = raw[-raw.ctypes.data % 64 :][: abi.SIZE]
    words = context.view(np.uint64)
    for name, value in values.items():
        field = abi.BY_NAME[name]
        assert (field.type == "ptr") == (name in guarded), f"{name} is {field.type}"
        words[field.offset // 8] = guarded[name].array.ctypes.data if name in guarded else value
    return context


def run(
    kernel: Kernel,
    target: str,
    operands: Sequence[Array | int],
    *,
    threads: int = 1,
    **context: Any,
) -> None:
    """Call a kernel once for every thread, the last thread first; operands and context arrays change in place.

    Args:
        operands: the kernel's arrays in order; one that is not writeable must be left as it was. A number is
            an address that is handed over as it is.
        context: members of the step's context by name: numbers, or arrays for pointers.
    """
    assert len(operands) == len(kernel.operands)
    arrays = {n: v for n, v in context.items() if isinstance(v, np.ndarray)}
    guarded = {name: Guarded(value) for name, value in arrays.items()}
    handed = [o if isinstance(o, int) else Guarded(o) for o in operands]
    raw = _context(context, guarded)
    entry = compiled(kernel, target)
    addresses = [h if isinstance(h, int) else h.array.ctypes.data for h in handed]
    for thread in reversed(range(threads)):
        entry(raw.ctypes.data, thread, threads, *addresses)
    names = [*kernel.operands, *arrays]
    for name, source, copy in zip(names, [*operands, *arrays.values()], [*handed, *guarded.values()], strict=True):
        if isinstance(source, int) or isinstance(copy, int):
            continue
        copy.check(name)
        if source.flags.writeable:
            source[...] = copy.array
        else:
            assert same_bits(source, copy.array), f"the kernel changed {name}"


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def frozen(array: Array) -> Array:
    """A copy that :func:`run` checks to be left as it was."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def floats(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
    """Normally distributed float32 whose rows differ in size by up to a thousand."""
    spread = 10.0 ** rng.uniform(-1.5, 1.5, (*shape[:-1], 1))
    return (rng.normal(size=shape) * spread * scale).astype(np.float32)


def worst(error: Array, bound: Array) -> str:
    """Says where an error is largest compared with its bound."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(error / bound, nan=np.inf, posinf=np.inf)
    cell = np.unravel_index(int(np.argmax(ratio)), error.shape)
    where = tuple(int(i) for i in cell)
    return f"worst cell {where}: error {error[cell]:.3e}, bound {np.broadcast_to(bound, error.shape)[cell]:.3e}"


def close(found: Array, expected: Array, bound: Array) -> None:
    """Assert ``|found - expected| <= bound``, naming the worst cell; a NaN is never close."""
    error = np.abs(found.astype(np.float64) - expected)
    assert (error <= bound).all(), worst(error, bound)
