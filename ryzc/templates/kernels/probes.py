"""Roofline probes: what this CPU can do at most, measured beside the model.

``probe_read(base, bytes, out)`` reads memory in one stream, and ``probe_read_ahead`` does so asking for lines ahead
of their use, as kernels do: which of them is faster depends on the CPU, and the faster one is what it can do.
``probe_int8(iterations, out)`` keeps the integer dot product's pipes full from registers. ``probe_blocks`` is the same
for weights and activations with a scale a block of 32: after every 32 products of a sum come two fused multiply-adds,
one for either scale, which on many CPUs want the same pipes. Each runs on the calling thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llvmlite import ir

from ryzc.codegen.isa import Dot, Isa
from ryzc.codegen.vector import F32, I32, I64, LINE, PTR, Function, Value, vec
from ryzc.templates.kernels import activations as act
from ryzc.templates.kernels.weights import EARLIER

_STREAMS: Final = 8
_AHEAD: Final = 1024
"""How far ahead of a read its lines are asked for into L1; into L2 it is ``EARLIER`` times as far, as in kernels."""
BLOCK_OPERANDS: Final = 8
"""Dot products of four bytes in a block of 32."""
READ_CHUNK: Final = 4 * _STREAMS * 16
"""The reading probes take a multiple of this many bytes."""


def accumulators(isa: Isa) -> int:
    """Independent sums of ``probe_int8``: enough to hide latencies, few enough for the registers.

    Without VNNI a sum has a register of 16-bit sums beside it.
    """
    return isa.registers // 2 - 2 if isa.registers == 16 else 16


def macs_per_iteration(isa: Isa) -> int:
    """Multiply-accumulates of one iteration of ``probe_int8``."""
    return accumulators(isa) * isa.lanes * 4


def emit(module: ir.Module, isa: Isa) -> None:
    """Add all probes to a module, exported."""
    _emit_read(module, isa, "probe_read", ahead=False)
    _emit_read(module, isa, "probe_read_ahead", ahead=True)
    _emit_int8(module, isa)
    _emit_blocks(module, isa)


def _emit_read(module: ir.Module, isa: Isa, name: str, *, ahead: bool) -> None:
    fn = Function(module, name, [("base", PTR), ("bytes", I64), ("out", PTR)], internal=False)
    register, width = vec(I32, isa.lanes), 4 * isa.lanes
    zeros = [fn.const(register, 0)] * _STREAMS
    with fn.loop(0, fn.args["bytes"], _STREAMS * width, zeros) as loop:
        at, values = fn.at(fn.args["base"], loop.index), []
        for i, value in enumerate(loop.values):
            if ahead and i * width % LINE == 0:
                fn.prefetch(at, EARLIER * _AHEAD + i * width, level=2)
                fn.prefetch(at, _AHEAD + i * width)
            values.append(value ^ fn.load(register, at, i * width, align=width))
        loop.values = values
    _keep(fn, loop.results)
    fn.finish()


def _emit_int8(module: ir.Module, isa: Isa) -> None:
    fn = Function(module, "probe_int8", [("iterations", I64), ("out", PTR)], internal=False)
    register, count = vec(I32, isa.lanes), accumulators(isa)
    xs, moving = _operands(fn, isa, count)
    if isa.registers == 32:
        xs = xs[:1] * count  # sums differ from the start, and with an operand for each they would not fit in registers
    start = [fn.const(register, i) for i in range(count)]
    with fn.loop(0, fn.args["iterations"], BLOCK_OPERANDS, [*start, moving]) as loop:
        *sums, moving = loop.values
        sums, moving = _products(isa, sums, moving, xs)
        loop.values = [*sums, moving]
    _keep(fn, loop.results)
    fn.finish()


def _emit_blocks(module: ir.Module, isa: Isa) -> None:
    """As ``_emit_int8``, and as many multiply-accumulates an iteration, a block of 32 for every few sums."""
    fn = Function(module, "probe_blocks", [("iterations", I64), ("out", PTR)], internal=False)
    floats = vec(F32, isa.lanes)
    count = accumulators(isa) // 2  # half of the registers hold integer sums, half float ones
    xs, moving = _operands(fn, isa, count)
    scale = fn.load(floats, fn.args["out"])
    origin = scale * -act.ORIGIN
    with fn.loop(0, fn.args["iterations"], BLOCK_OPERANDS // 2, [*([fn.const(floats, 0.0)] * count), moving]) as loop:
        *totals, moving = loop.values
        starts = [fn.const(moving.type, act.ORIGIN_BITS)] * count
        sums, after = _products(isa, starts, moving, xs)
        scaled = [fn.fma(total.bits(floats), scale, origin) for total in sums]
        # Some bits of the codes as a number from 1 to 2: all of them would at times be a slow one, near zero.
        x_scale = (after & 0x007FFFFF | 0x3F800000).bits(floats)
        loop.values = [*(fn.fma(s, x_scale, total) for s, total in zip(scaled, totals, strict=True)), after]
    _keep(fn, loop.results)
    fn.finish()


def _operands(fn: Function, isa: Isa, count: int) -> tuple[list[Value], Value]:
    """An operand for every sum, and codes for all."""
    register, width = vec(I32, isa.lanes), 4 * isa.lanes
    x = [fn.load(register, fn.args["out"], i * width) for i in range(count + 1)]
    return x[:count], x[count]


def _products(isa: Isa, sums: Sequence[Value], codes: Value, xs: Sequence[Value]) -> tuple[list[Value], Value]:
    """Add a block's products to every sum; the codes change, as equal products would be made but once."""
    dots = [Dot(value) for value in sums]
    for _ in range(BLOCK_OPERANDS):
        dots = [isa.add(dot, codes, x, 15) for dot, x in zip(dots, xs, strict=True)]
        codes = codes + 0x01010101
    return [isa.total(dot) for dot in dots], codes


def _keep(fn: Function, values: Sequence[Value]) -> None:
    total = values[0]
    for value in values[1:]:
        total = total + value.bits(total.type)
    fn.store(total, fn.args["out"])
