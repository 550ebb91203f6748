"""Roofline probes: what this CPU can do at most, measured beside the model.

``probe_read(base, bytes, out)`` reads memory in one stream; ``probe_int8(iterations, out)`` keeps the
integer dot product's pipes full from registers. ``probe_blocks`` is the same for weights and activations with
a scale a block of 32: after every 32 products of a sum come a conversion to float, the product of both scales and
a fused multiply-add, which on many CPUs want the same pipes. No kernel of such formats can be faster.
Each runs on the calling thread.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from ryzc.codegen.isa import Dot, Isa
from ryzc.codegen.vector import F32, I32, I64, PTR, Function, vec

_STREAMS: Final = 8
BLOCK_OPERANDS: Final = 8
"""Dot products of four bytes in a block of 32."""
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
    _emit_blocks(module, isa)


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


def _emit_blocks(module: ir.Module, isa: Isa) -> None:
    """As ``_emit_int8``, and as many multiply-accumulates an iteration, a block of 32 for every few sums."""
    fn = Function(module, "probe_blocks", [("iterations", I64), ("out", PTR)], internal=False)
    register, floats = vec(I32, isa.lanes), vec(F32, isa.lanes)
    count = accumulators(isa) // 2  # half of the registers hold integer sums, half float ones
    codes = fn.load(register, fn.args["out"])
    scale = fn.load(floats, fn.args["out"], 8 * isa.lanes)
    x = fn.load(register, fn.args["out"], 4 * isa.lanes)
    with fn.loop(0, fn.args["iterations"], BLOCK_OPERANDS // 2, [*([fn.const(floats, 0.0)] * count), x]) as loop:
        moving = loop.values[count] + 0x01010101
        dots = [Dot(moving ^ i) for i in range(count)]
        for _ in range(BLOCK_OPERANDS):
            dots = [isa.add(dot, codes, moving, 15) for dot in dots]
        x_scale = moving.bits(floats)
        added = [
            fn.fma(isa.total(dot).to_float(), scale * (x_scale + float(i)), total)
            for i, (dot, total) in enumerate(zip(dots, loop.values, strict=False))
        ]
        loop.values = [*added, moving]
    total = loop.results[0]
    for value in loop.results[1:count]:
        total = total + value
    fn.store(total, fn.args["out"])
    fn.finish()
