"""What a kernel family is.

A family is a file of this package with a frozen dataclass whose fields are its parameters (shapes,
formats, options), and ``KERNEL`` naming the class. The class gives

* ``operands``: the pointers that a call hands over, in order;
* ``emit``: the code, written with the vector builder for one instruction set;
* a module-level ``reference``: its meaning in numpy, which the tests hold the code to.

Every kernel has the signature ``void (context*, i64 thread, i64 threads, operand*...)``: all threads
call it and each takes its share of the work items. Results must not depend on who does which item,
nor on which tokens share a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from llvmlite import ir

from ryzc.bundle import abi
from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import F32, I32, I64, LINE, PTR, Function, Value
from ryzc.errors import UnsupportedError

_TYPES = {"f32": F32, "i32": I32, "i64": I64, "ptr": PTR}


class Kernel(ABC):
    """A kernel with its parameters set; a frozen dataclass in each family."""

    operands: ClassVar[tuple[str, ...]]

    @abstractmethod
    def emit(self, module: ir.Module, isa: Isa, symbol: str) -> None:
        """Add the function ``symbol`` to a module."""

    def methods(self, isa: Isa) -> tuple[str, ...]:
        """Ways to compute it on an instruction set, all to the same bits; empty where there is but one.

        A family that has several has a field ``schedule`` too: entries ``N:METHOD``, ascending, where batches
        of up to ``N`` tokens take the method and the last entry takes all larger ones. Empty stands for
        :meth:`default_schedule`.
        """
        del isa
        return ()

    def default_schedule(self, isa: Isa) -> tuple[str, ...]:
        """The schedule of a kernel that nobody tuned; empty where :meth:`methods` is."""
        del isa
        return ()


def require_multiple(kernel: Kernel, of: int, **values: int) -> None:
    """Check sizes that a kernel can only take in whole vectors or blocks.

    Raises:
        UnsupportedError: where one is not a positive multiple of ``of``.
    """
    for name, value in values.items():
        if value <= 0 or value % of:
            raise UnsupportedError(
                f"{type(kernel).__name__}: {name} is {value}, which is not a multiple of {of}",
                hint="models with such a shape are not supported yet",
            )


def begin(module: ir.Module, symbol: str, operands: Sequence[str]) -> Function:
    """A function with the kernel signature; its ``args`` hold ``context``, ``thread``, ``threads``, operands."""
    parameters = [("context", PTR), ("thread", I64), ("threads", I64), *((o, PTR) for o in operands)]
    return Function(module, symbol, parameters)


def context_field(fn: Function, name: str) -> Value:
    """A member of the step's context, loaded."""
    member = abi.BY_NAME[name]
    return fn.load(_TYPES[member.type], fn.args["context"], member.offset, align=8)


def row_field(fn: Function, row: Value, name: str) -> Value:
    """A member of the parameters of a row of logits, loaded."""
    member = abi.ROW_BY_NAME[name]
    record = fn.at(context_field(fn, "row_parameters"), row * abi.ROW_SIZE)
    return fn.load(_TYPES[member.type], record, member.offset, align=4)


def share(fn: Function, items: Value | int) -> tuple[Value, Value]:
    """This thread's contiguous range of work items."""
    total = items if isinstance(items, Value) else fn.i64(items)
    thread, threads = fn.args["thread"], fn.args["threads"]
    return (total * thread) // threads, (total * (thread + 1)) // threads


def ask_for_next(fn: Function, row: Value, row_bytes: int, offset: Value | int, nbytes: int) -> None:
    """Ask for what the next row has where this one has ``nbytes`` from byte ``offset`` on.

    Rows of a prompt do not fit into a near cache, and what a CPU reads ahead by itself ends with each page of memory.
    """
    for line in range(0, nbytes, LINE):
        fn.prefetch(row, offset, row_bytes + line)


def mine(fn: Function, item: Value) -> Value:
    """Whether a work item is this thread's, where threads take items in turn."""
    return (item % fn.args["threads"]).compare("==", fn.args["thread"])
