"""Asking the CPU itself: the CPUID and XGETBV instructions, executed.

Python has no way to them, so a page of machine code is written, then made executable and no longer
writable. Where a hardened system forbids that, :func:`read` says ``None``.

Sources: AMD64 Architecture Programmer's Manual, volume 3, appendices D and E; Intel SDM, CPUID.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple, TypeAlias

from ryzc.targets.identity import Identity

Registers: TypeAlias = tuple[int, int, int, int]
CpuidCall: TypeAlias = Callable[[int, int], Registers]

_ENDBR64 = b"\xf3\x0f\x1e\xfa"
# void cpuid(uint32 leaf, uint32 subleaf, uint32 out[4]), System V; rbx belongs to the caller
_CPUID = _ENDBR64 + bytes.fromhex(
    "53"  # push rbx
    "4989d0"  # mov r8, rdx
    "89f8"  # mov eax, edi
    "89f1"  # mov ecx, esi
    "0fa2"  # cpuid
    "418900"  # mov [r8], eax
    "41895804"  # mov [r8 + 4], ebx
    "41894808"  # mov [r8 + 8], ecx
    "4189500c"  # mov [r8 + 12], edx
    "5b"  # pop rbx
    "c3"  # ret
)
# uint64 xgetbv(void): XCR0, the register state that the operating system saves
_XGETBV = _ENDBR64 + bytes.fromhex(
    "31c9"  # xor ecx, ecx
    "0f01d0"  # xgetbv
    "48c1e220"  # shl rdx, 32
    "4809d0"  # or rax, rdx
    "c3"  # ret
)
_XGETBV_AT = 64

_EAX, _EBX, _ECX = 0, 1, 2
_AVX_STATE = 0b0000_0110  # XCR0: SSE and AVX
_AVX512_STATE = 0b1110_0110  # and the mask registers and both halves of the zmm


class _Bit(NamedTuple):
    """Where CPUID reports a feature, and which register state its instructions need."""

    leaf: int
    subleaf: int
    register: int
    bit: int
    state: int = 0


FEATURES = {
    "pni": _Bit(1, 0, _ECX, 0),
    "pclmulqdq": _Bit(1, 0, _ECX, 1),
    "ssse3": _Bit(1, 0, _ECX, 9),
    "fma": _Bit(1, 0, _ECX, 12, _AVX_STATE),
    "cx16": _Bit(1, 0, _ECX, 13),
    "sse4_1": _Bit(1, 0, _ECX, 19),
    "sse4_2": _Bit(1, 0, _ECX, 20),
    "movbe": _Bit(1, 0, _ECX, 22),
    "popcnt": _Bit(1, 0, _ECX, 23),
    "aes": _Bit(1, 0, _ECX, 25),
    "avx": _Bit(1, 0, _ECX, 28, _AVX_STATE),
    "f16c": _Bit(1, 0, _ECX, 29, _AVX_STATE),
    "bmi1": _Bit(7, 0, _EBX, 3),
    "avx2": _Bit(7, 0, _EBX, 5, _AVX_STATE),
    "bmi2": _Bit(7, 0, _EBX, 8),
    "avx512f": _Bit(7, 0, _EBX, 16, _AVX512_STATE),
    "avx512dq": _Bit(7, 0, _EBX, 17, _AVX512_STATE),
    "avx512ifma": _Bit(7, 0, _EBX, 21, _AVX512_STATE),
    "avx512cd": _Bit(7, 0, _EBX, 28, _AVX512_STATE),
    "avx512bw": _Bit(7, 0, _EBX, 30, _AVX512_STATE),
    "avx512vl": _Bit(7, 0, _EBX, 31, _AVX512_STATE),
    "avx512vbmi": _Bit(7, 0, _ECX, 1, _AVX512_STATE),
    "avx512_vbmi2": _Bit(7, 0, _ECX, 6, _AVX512_STATE),
    "gfni": _Bit(7, 0, _ECX, 8),
    "vaes": _Bit(7, 0, _ECX, 9, _AVX_STATE),
    "vpclmulqdq": _Bit(7, 0, _ECX, 10, _AVX_STATE),
    "avx512_vnni": _Bit(7, 0, _ECX, 11, _AVX512_STATE),
    "avx512_bitalg": _Bit(7, 0, _ECX, 12, _AVX512_STATE),
    "avx512_vpopcntdq": _Bit(7, 0, _ECX, 14, _AVX512_STATE),
    "avx_vnni": _Bit(7, 1, _EAX, 4, _AVX_STATE),
    "avx512_bf16": _Bit(7, 1, _EAX, 5, _AVX512_STATE),
    "lahf_lm": _Bit(0x80000001, 0, _ECX, 0),
    "abm": _Bit(0x80000001, 0, _ECX, 5),
}
"""The features that targets ask for, or asked for when older bundles were built; named as in ``/proc/cpuinfo``."""
_OSXSAVE = _Bit(1, 0, _ECX, 27)


def read() -> Identity | None:
    """What the CPU that runs this says of itself; ``None`` where it cannot be asked."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 2**32:
        return None
    try:
        with _instructions() as (cpuid, xgetbv):
            return decode(cpuid, xgetbv)
    except OSError:
        return None


def decode(cpuid: CpuidCall, xgetbv: Callable[[], int]) -> Identity:
    """An identity from the two instructions; ``xgetbv`` is called only where the CPU has it."""
    cpuid = cache(cpuid)  # a hypervisor makes each one slow
    last, *_ = cpuid(0, 0)
    last_extended, *_ = cpuid(0x80000000, 0)
    last_subleaf = cpuid(7, 0)[_EAX] if last >= 7 else 0

    def has(bit: _Bit) -> bool:
        if bit.leaf > (last_extended if bit.leaf >= 0x80000000 else last):
            return False
        if bit.leaf == 7 and bit.subleaf > last_subleaf:
            return False
        return bool(cpuid(bit.leaf, bit.subleaf)[bit.register] >> bit.bit & 1)

    state = xgetbv() if has(_OSXSAVE) else 0
    features = frozenset(name for name, bit in FEATURES.items() if state & bit.state == bit.state and has(bit))
    _, b, c, d = cpuid(0, 0)
    vendor = _text(b, d, c)
    name = ""
    if last_extended >= 0x80000004:
        name = _text(*(value for leaf in range(0x80000002, 0x80000005) for value in cpuid(leaf, 0)))
    family, model = _family_and_model(cpuid(1, 0)[_EAX])
    return Identity(vendor=vendor, name=name or vendor, family=family, model=model, features=features)


def _family_and_model(signature: int) -> tuple[int, int]:
    family, model = signature >> 8 & 0xF, signature >> 4 & 0xF
    if family in (0x6, 0xF):
        model |= signature >> 12 & 0xF0
    if family == 0xF:
        family += signature >> 20 & 0xFF
    return family, model


def _text(*words: int) -> str:
    return b"".join(word.to_bytes(4, "little") for word in words).partition(b"\0")[0].decode("ascii", "replace").strip()


@contextmanager
def _instructions() -> Iterator[tuple[CpuidCall, Callable[[], int]]]:
    """The two instructions as functions.

    Raises:
        OSError: where the system does not let a page become executable.
    """
    with mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[: len(_CPUID)] = _CPUID
        page[_XGETBV_AT : _XGETBV_AT + len(_XGETBV)] = _XGETBV
        anchor = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(anchor)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
            if libc.mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
                raise OSError(ctypes.get_errno(), "mprotect")
            words = ctypes.c_uint32 * 4
            call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, words)(address)

            def cpuid(leaf: int, subleaf: int) -> Registers:
                out = words()
                call(leaf, subleaf, out)
                return out[0], out[1], out[2], out[3]

            yield cpuid, ctypes.CFUNCTYPE(ctypes.c_uint64)(address + _XGETBV_AT)
        finally:
            del anchor  # the page cannot be closed while something points into it
