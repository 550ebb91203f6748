"""A thin vector-value layer over ``llvmlite.ir``, so that a kernel reads like its math.

``Value`` carries an LLVM value and gives it operators; ``Function`` is a function under
construction, with loads, stores, loops and the few vector operations that kernels need.

No operation carries fast-math flags and nothing is contracted behind the kernel's back: a fused
multiply-add is written :meth:`Function.fma`. So the same expression gives the same bits in every
variant of a kernel, which is what makes batches invariant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
PTR = ir.PointerType()

Number: TypeAlias = int | float
LINE = 64
"""Bytes of a cache line, which :meth:`Function.prefetch` asks for."""
_FLOATS = (ir.HalfType, ir.FloatType, ir.DoubleType)


@cache
def vec(element: ir.Type, lanes: int) -> ir.VectorType:
    """The type of a vector of ``lanes`` elements."""
    return ir.VectorType(element, lanes)


def element_of(type_: ir.Type) -> ir.Type:
    """The element type of a vector, or a scalar's own type."""
    return type_.element if isinstance(type_, ir.VectorType) else type_


def constant(type_: ir.Type, value: Number | Sequence[Number]) -> ir.Constant:
    """A constant; one number is repeated over a vector's lanes."""
    key = tuple(value) if isinstance(value, Sequence) else value
    return _constant(type_, key, str(key))


@cache
def _constant(type_: ir.Type, value: Number | tuple[Number, ...], text: str) -> ir.Constant:
    """The same object for the same constant: each remembers its text, which otherwise half of a build's time goes into.

    ``text`` tells 0.0 from -0.0, which are equal.
    """
    del text
    if isinstance(type_, ir.VectorType):
        return ir.Constant(type_, list(value) if isinstance(value, tuple) else [value] * type_.count)
    return ir.Constant(type_, value)


@cache
def _undefined(type_: ir.Type) -> ir.Constant:
    return ir.Constant(type_, ir.Undefined)


class Value:
    """An LLVM value with arithmetic; integers wrap, ``>>`` is logical, :meth:`sar` arithmetic."""

    __slots__ = ("fn", "ir")

    def __init__(self, fn: Function, value: Any) -> None:
        self.fn = fn
        self.ir = value

    @property
    def type(self) -> ir.Type:
        return self.ir.type

    @property
    def lanes(self) -> int:
        return int(self.type.count) if isinstance(self.type, ir.VectorType) else 1

    @property
    def is_float(self) -> bool:
        return isinstance(element_of(self.type), _FLOATS)

    def _operand(self, other: Value | Number) -> Any:
        return other.ir if isinstance(other, Value) else constant(self.type, other)

    def _binary(self, other: Value | Number, integer: str, floating: str) -> Value:
        operation = getattr(self.fn.builder, floating if self.is_float else integer)
        return Value(self.fn, operation(self.ir, self._operand(other)))

    def __add__(self, other: Value | Number) -> Value:
        return self._binary(other, "add", "fadd")

    def __sub__(self, other: Value | Number) -> Value:
        return self._binary(other, "sub", "fsub")

    def __mul__(self, other: Value | Number) -> Value:
        return self._binary(other, "mul", "fmul")

    def __truediv__(self, other: Value | Number) -> Value:
        return self._binary(other, "sdiv", "fdiv")

    def __floordiv__(self, other: Value | Number) -> Value:
        return Value(self.fn, self.fn.builder.udiv(self.ir, self._operand(other)))

    def __mod__(self, other: Value | Number) -> Value:
        return Value(self.fn, self.fn.builder.urem(self.ir, self._operand(other)))

    def __and__(self, other: Value | Number) -> Value:
        return Value(self.fn, self.fn.builder.and_(self.ir, self._operand(other)))

    def __or__(self, other: Value | Number) -> Value:
        return Value(self.fn, self.fn.builder.or_(self.ir, self._operand(other)))

    def __xor__(self, other: Value | Number) -> Value:
        return Value(self.fn, self.fn.builder.xor(self.ir, self._operand(other)))

    def __lshift__(self, other: Value | Number) -> Value:
        return Value(self.fn, self.fn.builder.shl(self.ir, self._operand(other)))

    def __rshift__(self, other: Value | Number) -> Value:
        return Value(self.fn, self.fn.builder.lshr(self.ir, self._operand(other)))

    def __neg__(self) -> Value:
        operation = self.fn.builder.fneg if self.is_float else self.fn.builder.neg
        return Value(self.fn, operation(self.ir))

    def sar(self, bits: Value | Number) -> Value:
        """Arithmetic shift right."""
        return Value(self.fn, self.fn.builder.ashr(self.ir, self._operand(bits)))

    def compare(self, relation: str, other: Value | Number) -> Value:
        """Lanes of ``i1``: signed comparison of integers, ordered comparison of floats."""
        builder = self.fn.builder
        operation = builder.fcmp_ordered if self.is_float else builder.icmp_signed
        return Value(self.fn, operation(relation, self.ir, self._operand(other)))

    def select(self, yes: Value, no: Value | Number) -> Value:
        """Per lane of this ``i1``: ``yes`` or ``no``."""
        return Value(self.fn, self.fn.builder.select(self.ir, yes.ir, yes._operand(no)))

    def _like(self, element: ir.Type) -> ir.Type:
        return vec(element, self.lanes) if isinstance(self.type, ir.VectorType) else element

    def bits(self, type_: ir.Type) -> Value:
        """The same bits as another type."""
        return Value(self.fn, self.fn.builder.bitcast(self.ir, type_))

    def to_float(self, element: ir.Type = F32, *, unsigned: bool = False) -> Value:
        """Convert integers or other floats to a float type."""
        builder, target = self.fn.builder, self._like(element)
        if not self.is_float:
            return Value(self.fn, (builder.uitofp if unsigned else builder.sitofp)(self.ir, target))
        widths = {F16: 16, F32: 32, F64: 64}
        wider = widths[element] > widths[element_of(self.type)]
        return Value(self.fn, (builder.fpext if wider else builder.fptrunc)(self.ir, target))

    def to_int(self, element: ir.Type) -> Value:
        """Convert floats (truncating) or wider integers; narrower integers are sign-extended."""
        builder, target = self.fn.builder, self._like(element)
        if self.is_float:
            return Value(self.fn, builder.fptosi(self.ir, target))
        narrower = element.width < element_of(self.type).width
        return Value(self.fn, (builder.trunc if narrower else builder.sext)(self.ir, target))

    def zext(self, element: ir.Type) -> Value:
        """Widen unsigned integers."""
        return Value(self.fn, self.fn.builder.zext(self.ir, self._like(element)))

    def splat(self, lanes: int) -> Value:
        """A scalar in every lane of a vector."""
        undefined = _undefined(vec(self.type, lanes))
        first = self.fn.builder.insert_element(undefined, self.ir, constant(I32, 0))
        return Value(self.fn, first).shuffle([0] * lanes)

    def shuffle(self, indices: Sequence[int], other: Value | None = None) -> Value:
        """Lanes picked by index from this vector and, past its end, from ``other``."""
        second = other.ir if other else _undefined(self.type)
        mask = constant(vec(I32, len(indices)), indices)
        return Value(self.fn, self.fn.builder.shuffle_vector(self.ir, second, mask))

    def lane(self, index: int) -> Value:
        """One lane as a scalar; of a scalar itself."""
        if not isinstance(self.type, ir.VectorType):
            return self
        return Value(self.fn, self.fn.builder.extract_element(self.ir, constant(I32, index)))

    def _fold(self, combine: Any) -> Value:
        value = self
        while value.lanes > 1:
            half = value.lanes // 2
            value = combine(value.shuffle(range(half)), value.shuffle(range(half, 2 * half)))
        return value.lane(0)

    def sum(self) -> Value:
        """Sum of the lanes by halving: a fixed order, so float sums are reproducible."""
        return self._fold(lambda a, b: a + b)

    def max(self) -> Value:
        """Largest float lane."""
        return self._fold(lambda a, b: a.maximum(b))

    def smallest(self) -> Value:
        """Smallest signed integer lane."""
        return self._fold(lambda a, b: a.compare("<", b).select(a, b))

    def maximum(self, other: Value | Number) -> Value:
        """Per lane the larger float; either operand where the other is a NaN."""
        return self.fn.intrinsic("llvm.maxnum", self.type, self, self.fn.value(self._operand(other)))

    def larger(self, other: Value | Number) -> Value:
        """As :meth:`maximum` in a third of the instructions, but ``other`` where either is a NaN."""
        return self.compare(">", other).select(self, other)

    def minimum(self, other: Value | Number) -> Value:
        """Per lane the smaller float."""
        return self.fn.intrinsic("llvm.minnum", self.type, self, self.fn.value(self._operand(other)))

    def abs(self) -> Value:
        """Magnitude of floats."""
        return self.fn.intrinsic("llvm.fabs", self.type, self)

    def rint(self) -> Value:
        """Round floats to the nearest integer, ties to even."""
        return self.fn.intrinsic("llvm.rint", self.type, self)

    def nearest(self) -> Value:
        """Floats within the range of 32-bit integers to the nearest of these, ties to even."""
        name = f"llvm.lrint.{_suffix(self._like(I32))}.{_suffix(self.type)}"
        return self.fn.call(name, self._like(I32), self)

    def sqrt(self) -> Value:
        """Correctly rounded square root."""
        return self.fn.intrinsic("llvm.sqrt", self.type, self)


_NO_BUILTINS, _ALIGNED = '"no-builtins"', '"stackrealign"'


class _Attributes(ir.values.FunctionAttributes):  # type: ignore[misc]
    """What every function here carries.

    Shared kernels stay calls: inlined into every layer they would multiply code and compile time. And a
    loop that fills or copies memory must not become a call of the C library, which is not there. And a register that
    has to wait on the stack lies within one cache line: the caller's stack is aligned to a quarter of one.
    """

    _known = ir.values.FunctionAttributes._known | {_NO_BUILTINS, _ALIGNED}


@dataclass
class Loop:
    """A loop under construction: set ``values`` in its body; read ``results`` after it."""

    index: Value
    values: list[Value]
    results: list[Value] = field(default_factory=list)


@dataclass
class Branch:
    """A body under construction that may be left out: set ``values`` in it; read ``results`` after it."""

    values: list[Value]
    results: list[Value] = field(default_factory=list)


@dataclass
class Repeat:
    """A body under construction that runs until ``again`` is false; ``values`` and ``results`` as in a loop."""

    values: list[Value]
    again: Value | None = None
    results: list[Value] = field(default_factory=list)


class Function:
    """An LLVM function under construction; ``args`` are its parameters by name."""

    def __init__(
        self, module: ir.Module, name: str, parameters: Sequence[tuple[str, ir.Type]], *, internal: bool = True
    ) -> None:
        self.module = module
        self.ir = ir.Function(module, ir.FunctionType(ir.VoidType(), [t for _, t in parameters]), name)
        self.ir.attributes = _Attributes(("nounwind", "noinline", _NO_BUILTINS, _ALIGNED))
        if internal:
            self.ir.linkage = "internal"
        for argument, (label, _) in zip(self.ir.args, parameters, strict=True):
            argument.name = label
        self._entry = self.ir.append_basic_block("entry")
        self.builder = ir.IRBuilder(self._entry)
        self.args = {label: Value(self, a) for a, (label, _) in zip(self.ir.args, parameters, strict=True)}

    def value(self, raw: Any) -> Value:
        """Wrap an LLVM value."""
        return Value(self, raw)

    def const(self, type_: ir.Type, number: Number | Sequence[Number]) -> Value:
        """A constant of a type; one number fills a vector."""
        return Value(self, constant(type_, number))

    def i64(self, number: int) -> Value:
        """A 64-bit integer constant."""
        return self.const(I64, number)

    def at(self, pointer: Value, *offsets: Value | int) -> Value:
        """A pointer moved by byte offsets."""
        for offset in offsets:
            if isinstance(offset, int) and offset == 0:
                continue
            raw = offset.ir if isinstance(offset, Value) else constant(I64, offset)
            pointer = Value(self, self.builder.gep(pointer.ir, [raw], source_etype=I8))
        return pointer

    def load(self, type_: ir.Type, pointer: Value, *offsets: Value | int, align: int = 1) -> Value:
        """Read a value of a type at a pointer plus byte offsets."""
        return Value(self, self.builder.load(self.at(pointer, *offsets).ir, typ=type_, align=align))

    def store(self, value: Value, pointer: Value, *offsets: Value | int, align: int = 1) -> None:
        """Write a value at a pointer plus byte offsets."""
        self.builder.store(value.ir, self.at(pointer, *offsets).ir, align=align)

    def load_masked(self, type_: ir.Type, mask: Value, pointer: Value, *offsets: Value | int) -> Value:
        """Read only the lanes of ``mask``; the others are zero and their memory is not touched."""
        where = self.at(pointer, *offsets)
        name = f"llvm.masked.load.{_suffix(type_)}.p0"
        args = [where, self.const(I32, 1), mask, self.const(type_, 0)]
        return self.call(name, type_, *args)

    def store_masked(self, value: Value, mask: Value, pointer: Value, *offsets: Value | int) -> None:
        """Write only the lanes of ``mask``."""
        where = self.at(pointer, *offsets)
        self.call(f"llvm.masked.store.{_suffix(value.type)}.p0", ir.VoidType(), value, where, self.const(I32, 1), mask)

    def prefetch(self, pointer: Value, *offsets: Value | int, level: int = 1, write: bool = False) -> None:
        """Ask for the cache line at a pointer plus byte offsets, which need not be readable memory.

        It keeps its place among the loads around it. LLVM's own prefetch may be moved next to others, and a dozen
        at once fill the buffers that loads miss into.

        ``level`` is the nearest cache it shall reach: 1, or 2 for what is not needed at once. ``write`` asks for a line
        that will be written: by itself a store only asks when its turn comes, and stores wait in line behind it.
        """
        at = self.at(pointer, *(offset for offset in offsets if isinstance(offset, Value)))
        ahead = sum(offset for offset in offsets if isinstance(offset, int))
        type_ = ir.FunctionType(ir.VoidType(), [PTR])
        text = f"{'prefetchw' if write else f'prefetcht{level - 1}'} {ahead}($0)"
        self.builder.call(ir.InlineAsm(type_, text, "r,~{memory}", side_effect=True), [at.ir])

    def stack(self, type_: ir.Type, count: int) -> Value:
        """An array on the stack, aligned to 64 bytes, alive in the whole function."""
        with self.builder.goto_block(self._entry):
            if self._entry.instructions:
                self.builder.position_before(self._entry.instructions[0])
            slot = self.builder.alloca(ir.ArrayType(type_, count))
            slot.align = 64
        slot.type = PTR  # llvmlite gives allocations a typed pointer, which refuses vector stores
        return Value(self, slot)

    def call(self, name: str, result: ir.Type, *args: Value) -> Value:
        """Call a function by name, declaring it on first use."""
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(result, [a.type for a in args]), name)
        return Value(self, self.builder.call(function, [a.ir for a in args]))

    def intrinsic(self, name: str, result: ir.Type, *args: Value) -> Value:
        """Call an overloaded LLVM intrinsic, e.g. ``llvm.fma`` on any float type."""
        return self.call(f"{name}.{_suffix(result)}", result, *args)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """``a * b + c`` with one rounding."""
        return self.intrinsic("llvm.fma", a.type, a, b, c)

    @contextmanager
    def loop(
        self, start: Value | int, stop: Value | int, step: int = 1, carried: Sequence[Value] = ()
    ) -> Iterator[Loop]:
        """``for index in range(start, stop, step)`` with loop-carried values; may run zero times."""
        first, last = (x if isinstance(x, Value) else self.i64(x) for x in (start, stop))
        before = self.builder.block
        head, body, after = (self.ir.append_basic_block(n) for n in ("head", "body", "after"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        index = self.builder.phi(I64)
        index.add_incoming(first.ir, before)
        phis = [self.builder.phi(c.type) for c in carried]
        for phi, initial in zip(phis, carried, strict=True):
            phi.add_incoming(initial.ir, before)
        self.builder.cbranch(self.builder.icmp_signed("<", index, last.ir), body, after)
        self.builder.position_at_end(body)
        current = Loop(Value(self, index), [Value(self, p) for p in phis])
        yield current
        end = self.builder.block
        index.add_incoming(self.builder.add(index, ir.Constant(I64, step)), end)
        for phi, value in zip(phis, current.values, strict=True):
            phi.add_incoming(value.ir, end)
        self.builder.branch(head)
        self.builder.position_at_end(after)
        current.results = [Value(self, p) for p in phis]

    def below(self, a: Value, limit: Value | int) -> Value:
        """The smaller of two signed integers."""
        return a.compare("<", limit).select(a, limit)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Run the body where an ``i1`` is true."""
        with self.builder.if_then(condition.ir):
            yield

    @contextmanager
    def branch(self, condition: Value, carried: Sequence[Value]) -> Iterator[Branch]:
        """As :meth:`when`, for a body that changes values; without it they stay as they are."""
        before = self.builder.block
        body, after = (self.ir.append_basic_block(n) for n in ("then", "after"))
        self.builder.cbranch(condition.ir, body, after)
        self.builder.position_at_end(body)
        current = Branch(list(carried))
        yield current
        end = self.builder.block
        self.builder.branch(after)
        self.builder.position_at_end(after)
        current.results = [self._merge(c, before, v, end) for c, v in zip(carried, current.values, strict=True)]

    def _merge(self, a: Value, from_a: Any, b: Value, from_b: Any) -> Value:
        phi = self.builder.phi(a.type)
        phi.add_incoming(a.ir, from_a)
        phi.add_incoming(b.ir, from_b)
        return Value(self, phi)

    @contextmanager
    def repeat(self, carried: Sequence[Value]) -> Iterator[Repeat]:
        """Run the body once, and on as long as it sets ``again`` to true."""
        before = self.builder.block
        body = self.ir.append_basic_block("again")
        self.builder.branch(body)
        self.builder.position_at_end(body)
        phis = [self.builder.phi(c.type) for c in carried]
        current = Repeat([Value(self, p) for p in phis])
        yield current
        assert current.again is not None
        end = self.builder.block
        for phi, first, next_ in zip(phis, carried, current.values, strict=True):
            phi.add_incoming(first.ir, before)
            phi.add_incoming(next_.ir, end)
        current.results = current.values
        after = self.ir.append_basic_block("after")
        self.builder.cbranch(current.again.ir, body, after)
        self.builder.position_at_end(after)

    def finish(self) -> None:
        """End the function."""
        self.builder.ret_void()


def _suffix(type_: ir.Type) -> str:
    names = {I8: "i8", I16: "i16", I32: "i32", I64: "i64", F16: "f16", F32: "f32", F64: "f64"}
    element = names[element_of(type_)]
    return f"v{type_.count}{element}" if isinstance(type_, ir.VectorType) else element
