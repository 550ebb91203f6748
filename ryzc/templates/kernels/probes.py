"""Roofline probes: what this CPU can do at most, measured beside the model.

``probe_read(base, bytes, out)`` reads memory in one stream; ``probe_int8(iterations, out)`` keeps the
integer dot product's pipes full from registers. Each runs on the calling thread.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from ryzc.codegen.isa import Isa
from ryzc.codegen.vector import I32, I64, PTR, Function, vec

_STREAMS: Final = 8
READ_CHUNK: Final = 4 * _STREAMS * 16
"""``probe_read`` takes a multiple of this many bytes."""


def accumulators(isa: Isa) -> int:
    """Independent sums of ``probe_int8``: enough to hide the latency of the dot product."""
    return isa.registers // 2 - 2 if isa.registers == 16 else 16


def macs_per_iteration(isa: Isa) -> int:
    """Multiply-accumulates of one iteration of ``probe_int8``."""
    return accumulators(isa) * isa.lanes * 4


def emit(module: ir.Module, isa: Isa) -> None:
    """Add both probes to a module, exported."""
    _emit_read(module, isa)
    _emit_int8(module, isa)


def _emit_read(module: ir.Module, isa: Isa) -> None:
    fn = Function(module, "probe_read", [("base", PTR), ("bytes", I64), ("out", PTR)], internal=False)
    register, width = vec(I32, isa.lanes), 4 * isa.lanes
    zeros = [fn.const(register, 0)] * _STREAMS
    with fn.loop(0, fn.args["bytes"], _STREAMS * width, zeros) as loop:
        loop.values = [
            v ^ fn.load(register, fn.args["base"], loop.index, i * width, align=width)
            for i, v in enumerate(loop.values)
        ]
    total = loop.results[0]
    for value in loop.results[1:]:
        total = total ^ value
    fn.store(total, fn.args["out"])
    fn.finish()


def _emit_int8(module: ir.Module, isa: Isa) -> None:
    fn = Function(module, "probe_int8", [("iterations", I64), ("out", PTR)], internal=False)
    register, count = vec(I32, isa.lanes), accumulators(isa)
    codes = fn.load(register, fn.args["out"])
    start = [fn.const(register, i) for i in range(count)]
    x = fn.load(register, fn.args["out"], 4 * isa.lanes)
    with fn.loop(0, fn.args["iterations"], 1, [*start, x]) as loop:
        # x changes, or the products would leave the loop on instruction sets that multiply apart.
        moving = loop.values[count] + 0x01010101
        loop.values = [*(isa.dot(v, codes, moving) for v in loop.values[:count]), moving]
    total = loop.results[0]
    for value in loop.results[1:]:
        total = total + value
    fn.store(total, fn.args["out"])
    fn.finish()
