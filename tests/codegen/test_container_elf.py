"""Objects become shared objects that load and compute the same as under LLVM's own linker."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzc.codegen import container
from ryzc.codegen.compile import TRIPLE, compile_object, parse
from ryzc.codegen.container import elf, elf_format, elf_reader
from ryzc.errors import InternalError

HEAD = f'target triple = "{TRIPLE}"\n'

CALLS = """
@table = constant [4 x i32] [i32 10, i32 20, i32 30, i32 40]
@private = private unnamed_addr constant [3 x i64] [i64 7, i64 -8, i64 9]
define internal i32 @inner(i32 %x) noinline { %r = mul i32 %x, 3
 ret i32 %r }
define i32 @middle(i32 %x) noinline { %r = call i32 @inner(i32 %x)
 %s = add i32 %r, 1
 ret i32 %s }
define i32 @outer(i32 %x) { %r = call i32 @middle(i32 %x)
 %i = and i32 %r, 3
 %p = getelementptr i32, ptr @table, i32 %i
 %v = load i32, ptr %p
 ret i32 %v }
define i64 @second(i64 %i) { %p = getelementptr i64, ptr @private, i64 %i
 %v = load i64, ptr %p
 ret i64 %v }
define ptr @address() { ret ptr @outer }
define i32 @through_got(i32 %x) { %r = call i32 @lazy(i32 %x)
 ret i32 %r }
define i32 @tail_through_got(i32 %x) { %r = tail call i32 @lazy(i32 %x)
 ret i32 %r }
define i32 @lazy(i32 %x) noinline nonlazybind { %r = sub i32 %x, 5
 ret i32 %r }
"""

SWITCH = (
    """
declare void @llvm.trap()
define i64 @choose(i64 %x, i64 %y) {
  switch i64 %x, label %default [
"""
    + "".join(f"    i64 {i}, label %case{i}\n" for i in range(12))
    + "  ]\n"
    + "".join(
        f"case{i}:\n  %v{i} = {op} i64 %y, {i + 3}\n  ret i64 %v{i}\n"
        for i, op in enumerate(["add", "sub", "mul", "xor", "or", "and", "shl", "lshr", "ashr", "udiv", "urem", "sdiv"])
    )
    + "default:\n  ret i64 -1\n}\n"
)

VECTORS = """
define void @polynomial(ptr %x, ptr %y) {
  %v = load <8 x float>, ptr %x, align 4
  %a = fmul <8 x float> %v, <float 1.0, float 2.0, float 3.0, float 4.0, float 5.0, float 6.0, float 7.0, float 8.0>
  %b = fadd <8 x float> %a, <float 0.5, float 0.25, float 0.5, float 0.25, float 0.5, float 0.25, float 0.5, float 0.75>
  %c = shufflevector <8 x float> %b, <8 x float> %v,
                     <8 x i32> <i32 15, i32 0, i32 7, i32 9, i32 1, i32 2, i32 13, i32 4>
  store <8 x float> %c, ptr %y, align 4
  ret void
}
define double @mix(double %x) { %a = fmul double %x, 0x400921FB54442D18
 %b = fadd double %a, 0x3FB999999999999A
 ret double %b }
"""


def build(text: str, cpu: str = "x86-64-v3") -> bytes:
    return compile_object(parse(HEAD + text, where="test"), cpu=cpu)


def load(path: Path, shared_object: bytes) -> ctypes.CDLL:
    path.write_bytes(shared_object)
    return ctypes.CDLL(str(path))


@contextmanager
def jit(text: str) -> Iterator[Callable[[str], int]]:
    """LLVM's own loader of the same text: a function from names to addresses."""
    module = parse(HEAD + text, where="test")
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu="x86-64-v3", reloc="pic", jit=True)
    with llvm.create_mcjit_compiler(module, machine) as engine:
        engine.finalize_object()
        yield engine.get_function_address


def test_calls_and_tables(tmp_path: Path) -> None:
    library = load(tmp_path / "calls.so", container.link(build(CALLS)))
    library.second.argtypes, library.second.restype = [ctypes.c_int64], ctypes.c_int64
    with jit(CALLS) as address:
        outer = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32)(address("outer"))
        for x in range(-50, 50):
            assert library.outer(x) == outer(x) == [10, 20, 30, 40][(3 * x + 1) & 3]
    assert [library.second(i) for i in range(3)] == [7, -8, 9]
    assert library.through_got(8) == library.tail_through_got(8) == 3
    library.address.restype = ctypes.c_void_p
    assert library.address() == ctypes.cast(library.outer, ctypes.c_void_p).value


def test_jump_tables(tmp_path: Path) -> None:
    library = load(tmp_path / "switch.so", container.link(build(SWITCH)))
    library.choose.argtypes, library.choose.restype = [ctypes.c_int64, ctypes.c_int64], ctypes.c_int64
    with jit(SWITCH) as address:
        choose = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address("choose"))
        for x in range(-2, 15):
            for y in (0, 1, 1000, -77):
                assert library.choose(x, y) == choose(x, y)


def test_vector_constants(tmp_path: Path) -> None:
    library = load(tmp_path / "vectors.so", container.link(build(VECTORS)))
    x, y = np.random.default_rng(0).normal(size=8).astype(np.float32), np.zeros(8, np.float32)
    library.polynomial.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.polynomial(x.ctypes.data, y.ctypes.data)
    b = x * np.arange(1, 9, dtype=np.float32) + np.array([0.5, 0.25, 0.5, 0.25, 0.5, 0.25, 0.5, 0.75], np.float32)
    assert np.array_equal(y, np.concatenate([b, x])[[15, 0, 7, 9, 1, 2, 13, 4]])
    library.mix.argtypes, library.mix.restype = [ctypes.c_double], ctypes.c_double
    assert library.mix(2.0) == 2.0 * np.pi + 0.1


constants = st.lists(
    st.tuples(st.integers(1, 70), st.sampled_from([1, 2, 4, 16, 64, 256, 4096]), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(constants, st.integers(1, 5))
def test_any_constants(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, int, bool]], functions: int
) -> None:
    """Constants of any size, alignment and visibility keep bytes and alignment; functions see them all."""
    rng = np.random.default_rng(len(shapes))
    tables = [rng.integers(0, 256, size).astype(np.uint8) for size, _, _ in shapes]
    text = ""
    for i, ((size, align, private), table) in enumerate(zip(shapes, tables, strict=True)):
        values = ", ".join(f"i8 {v}" for v in table)
        kind = "internal" if private else "hidden"
        text += f"@t{i} = {kind} constant [{size} x i8] [{values}], align {align}\n"
        for j in range(functions):
            text += f"define ptr @at_{i}_{j}(i64 %x) {{ %p = getelementptr i8, ptr @t{i}, i64 %x\n ret ptr %p }}\n"
    shared = container.link(build(text))
    assert len(container.symbols(shared)) == functions * len(shapes)
    library = load(tmp_path_factory.mktemp("so") / "x.so", shared)
    for i, ((size, align, _), table) in enumerate(zip(shapes, tables, strict=True)):
        for j in range(functions):
            function = library[f"at_{i}_{j}"]
            function.argtypes, function.restype = [ctypes.c_int64], ctypes.c_void_p
            start = function(0)
            assert start % align == 0
            assert ctypes.string_at(start, size) == table.tobytes()


def test_only_global_functions_are_exported(tmp_path: Path) -> None:
    text = CALLS + "define hidden i32 @hidden() noinline { ret i32 4 }\n"
    shared = container.link(build(text))
    library = load(tmp_path / "x.so", shared)
    for name in ("inner", "hidden", "table"):
        assert not hasattr(library, name)
    found = container.symbols(shared)
    assert {"inner", "hidden", "outer", "middle"} <= set(found)
    assert "table" not in found


def test_symbols_point_at_code(tmp_path: Path) -> None:
    shared = container.link(build("define i32 @seven() { ret i32 7 }"))
    offset, size = container.symbols(shared)["seven"]
    assert shared[offset : offset + size] == bytes.fromhex("b807000000c3")  # mov $7, %eax; ret
    assert container.symbols(shared).keys() == {"seven"}


def test_same_object_gives_same_bytes() -> None:
    assert container.link(build(CALLS)) == container.link(build(CALLS))


def test_memory_is_protected_as_promised(tmp_path: Path) -> None:
    """In the running process: no page writable and executable, constants not executable, nothing writable."""
    path = tmp_path / "protected.so"
    library = load(path, container.link(build(CALLS)))
    assert library.outer(0) == 20
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert [line[1] for line in lines] == ["r--p", "r-xp", "r--p"]
    assert mmap.PAGESIZE == elf_format.PAGE


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are not installed")
@pytest.mark.parametrize("text", [CALLS, SWITCH, VECTORS])
def test_readelf_finds_no_fault(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(container.link(build(text)))
    done = subprocess.run(["readelf", "--lint", "-aW", str(path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "Warning" not in done.stdout
    assert "There are no relocations" in done.stdout


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("declare i32 @puts(ptr)\ndefine i32 @f(ptr %x) { %r = call i32 @puts(ptr %x)\n ret i32 %r }", "'puts'"),
        ("@x = external global i32\ndefine ptr @f() { ret ptr @x }", "'x'"),
        ("@x = global i32 5\ndefine ptr @f() { ret ptr @x }", r"\.data"),
        ("@x = internal global [99 x i8] zeroinitializer\ndefine ptr @f() { ret ptr @x }", r"\.bss"),
        ("@x = constant [2 x ptr] [ptr @f, ptr @f]\ndefine ptr @f() { ret ptr @x }", r"\.data\.rel\.ro"),
        ("@x = thread_local constant i32 5\ndefine ptr @f() { ret ptr @x }", r"\.tdata"),
        ("@x = constant i8 5, align 8192\ndefine ptr @f() { ret ptr @x }", "alignment 8192"),
        ("@x = constant i32 5", "no code"),
        (
            "@x = constant [9 x i8] zeroinitializer\n"
            "define ptr @f(i64 %i) { %p = getelementptr i8, ptr @x, i64 %i\n ret ptr %p }",
            "against 'x' in .text: .* internal linkage",
        ),
    ],
)
def test_objects_that_do_not_stand_alone(text: str, mentions: str) -> None:
    with pytest.raises(InternalError, match=mentions):
        container.link(build(text))


def with_relocation(change: Callable[[list[int], int], None]) -> bytes:
    """The object of CALLS with its first relocation of the code changed: [offset, info, addend], symbol count."""
    data = bytearray(build(CALLS))
    file = elf_reader.read(bytes(data))
    table = next(s for s in file.sections if s.name == ".rela.text")
    fields = list(elf_format.RELOCATION.unpack_from(data, table.header.offset))
    change(fields, len(file.symbols))
    elf_format.RELOCATION.pack_into(data, table.header.offset, *fields)
    return bytes(data)


def set_type(kind: int) -> Callable[[list[int], int], None]:
    def change(fields: list[int], _: int) -> None:
        fields[1] = fields[1] >> 32 << 32 | kind

    return change


@pytest.mark.parametrize("kind", [1, 3, 9, 10, 11, 23, 25, 26, 41, 42, 43, 999])
def test_unsupported_relocations_are_named(kind: int) -> None:
    with pytest.raises(
        InternalError, match=rf"R_X86_64_{elf_format.RELOCATION_NAMES.get(kind, kind)} against .*\.text"
    ):
        container.link(with_relocation(set_type(kind)))


def test_relocations_are_bounded() -> None:
    def outside(fields: list[int], _: int) -> None:
        fields[0] = 2**63

    def far(fields: list[int], _: int) -> None:
        fields[2] = 2**40

    def no_symbol(fields: list[int], count: int) -> None:
        fields[1] = count << 32 | 4

    for change, message in ((outside, "outside the section"), (far, "does not fit"), (no_symbol, "does not exist")):
        with pytest.raises(InternalError, match=message):
            container.link(with_relocation(change))


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"MZ", bytes(64), b"\x7fELF" + bytes(60), b"\x7fELF\2\1\1" + b"\xff" * 57]
)
def test_not_an_object(data: bytes) -> None:
    with pytest.raises(InternalError):
        container.link(data)
    with pytest.raises(InternalError):
        container.symbols(data)


def test_shared_objects_are_not_linked_again() -> None:
    with pytest.raises(InternalError, match="relocatable"):
        container.link(container.link(build(CALLS)))


TWO = (
    """
declare i32 @other(i32)
define i32 @one(i32 %x) { %r = call i32 @other(i32 %x)
 %s = mul i32 %r, 2
 ret i32 %s }
""",
    """
@table = private unnamed_addr constant [4 x i32] [i32 10, i32 20, i32 30, i32 40]
declare i32 @third(i32)
define hidden i32 @other(i32 %x) { %i = and i32 %x, 3
 %p = getelementptr i32, ptr @table, i32 %i
 %v = load i32, ptr %p
 %r = call i32 @third(i32 %v)
 ret i32 %r }
""",
    """
@table = private unnamed_addr constant [2 x i32] [i32 1, i32 2]
define hidden i32 @third(i32 %x) { %r = add i32 %x, 5
 ret i32 %r }
define i32 @fourth(i32 %i) { %p = getelementptr i32, ptr @table, i32 %i
 %v = load i32, ptr %p
 ret i32 %v }
""",
)


def test_several_objects_find_each_other(tmp_path: Path) -> None:
    for number, texts in enumerate((TWO, TWO[::-1])):
        shared = container.link(*map(build, texts))
        library = load(tmp_path / f"{number}.so", shared)
        assert [library.one(x) for x in range(4)] == [30, 50, 70, 90]
        assert [library.fourth(i) for i in range(2)] == [1, 2]
        assert set(container.symbols(shared)) == {"one", "other", "third", "fourth"}
        assert not any(hasattr(library, name) for name in ("other", "third"))


def test_exports_are_what_was_asked_for(tmp_path: Path) -> None:
    library = load(tmp_path / "few.so", container.link(*map(build, TWO), exports=["one"]))
    assert library.one(3) == 90
    assert not any(hasattr(library, name) for name in ("other", "third", "fourth"))
    for name in ("nobody", "third"):
        with pytest.raises(InternalError, match=f"no global function {name}"):
            container.link(*map(build, TWO), exports=["one", name])


def test_several_objects_must_fit_together() -> None:
    with pytest.raises(InternalError, match=r"other.*not defined"):
        container.link(*map(build, (TWO[0], TWO[2])))
    with pytest.raises(InternalError, match="two have the same"):
        container.link(*map(build, (TWO[2], TWO[2])))
    with pytest.raises(InternalError, match="not a relocatable object"):
        container.link(build(TWO[2]), container.link(build(TWO[2])))


SOUND = build(CALLS)
SHARED = container.link(SOUND)


@settings(max_examples=400, deadline=2000)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SOUND) - 8),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_malformed_objects_never_crash(changes: list[tuple[int, int, int]], in_headers: bool) -> None:
    data = bytearray(SOUND)
    headers = struct.unpack_from("<Q", SOUND, 40)[0]
    for position, width, value in changes:
        place = headers + position % (len(SOUND) - headers - 8) if in_headers else position
        data[place : place + width] = (value % 256**width).to_bytes(width, "little")
    try:
        shared = container.link(bytes(data))
    except InternalError:
        return
    elf.check(shared)


@settings(max_examples=200, deadline=2000)
@given(st.integers(0, len(SOUND)) | st.binary(max_size=200))
def test_truncated_objects_never_crash(part: int | bytes) -> None:
    data = SOUND[:part] if isinstance(part, int) else elf_format.IDENT + part
    if data == SOUND:
        return
    with pytest.raises(InternalError):
        container.link(data)


def patched(position: int, layout: str, value: int) -> bytes:
    data = bytearray(SHARED)
    struct.pack_into(layout, data, position, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("segment", "offset", "layout", "value", "mentions"),
    [
        (1, 4, "<I", 7, "writable and executable"),
        (1, 16, "<Q", 0x1001, "misplaced"),
        (2, 16, "<Q", 0, "misplaced"),
        (2, 40, "<Q", 1 << 40, "past the end"),
        (5, 4, "<I", 7, "executable stack"),
        (4, 0, "<I", 0, "must appear once"),
        (1, 4, "<I", 4, "outside the code"),
    ],
)
def test_check_sees_bad_headers(segment: int, offset: int, layout: str, value: int, mentions: str) -> None:
    elf.check(SHARED)
    place = elf_format.FILE_HEADER.size + segment * elf_format.PROGRAM_HEADER.size + offset
    with pytest.raises(InternalError, match=mentions):
        elf.check(patched(place, layout, value))
