"""What LLVM makes of each target: it knows the CPU, and uses nothing that the target does not promise.

LLVM ends the whole process on a CPU that it does not know, so each compilation is a process of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache

import pytest

from ryzc import targets

COMPILE = """
import sys
from llvmlite import binding as llvm
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(
    cpu=sys.argv[1], features=sys.argv[2], opt=3, reloc="pic"
)
print(machine.emit_assembly(llvm.parse_assembly(sys.stdin.read())))
"""

# Each function tempts LLVM into instructions that only some CPUs have.
TEMPTING = """
target triple = "x86_64-unknown-linux-gnu"
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare <32 x i8> @llvm.bitreverse.v32i8(<32 x i8>)
declare <16 x i32> @llvm.ctpop.v16i32(<16 x i32>)
declare i64 @llvm.readcyclecounter()

define void @nontemporal(ptr %p, float %x) {
  store float %x, ptr %p, !nontemporal !0
  ret void
}
define void @prefetch_for_writing(ptr %p) {
  call void @llvm.prefetch.p0(ptr %p, i32 1, i32 3, i32 1)
  ret void
}
define void @copy(ptr %to, ptr %from) {
  call void @llvm.memcpy.p0.p0.i64(ptr align 64 %to, ptr align 64 %from, i64 1024, i1 false)
  ret void
}
define <32 x i8> @reverse(<32 x i8> %x) {
  %y = call <32 x i8> @llvm.bitreverse.v32i8(<32 x i8> %x)
  ret <32 x i8> %y
}
define <16 x i32> @count(<16 x i32> %x) {
  %y = call <16 x i32> @llvm.ctpop.v16i32(<16 x i32> %x)
  ret <16 x i32> %y
}
define void @scale(ptr %p, float %x) {
  %a = load <16 x float>, ptr %p
  %b = insertelement <16 x float> poison, float %x, i32 0
  %c = shufflevector <16 x float> %b, <16 x float> poison, <16 x i32> zeroinitializer
  %d = fmul <16 x float> %a, %c
  store <16 x float> %d, ptr %p
  ret void
}
define <16 x bfloat> @narrow(<16 x float> %x) {
  %y = fptrunc <16 x float> %x to <16 x bfloat>
  ret <16 x bfloat> %y
}
define <8 x i32> @dot(<8 x i32> %acc, <32 x i8> %a, <32 x i8> %b) {
  %c = zext <32 x i8> %a to <32 x i32>
  %d = sext <32 x i8> %b to <32 x i32>
  %e = mul <32 x i32> %c, %d
  %f = shufflevector <32 x i32> %e, <32 x i32> poison,
       <8 x i32> <i32 0, i32 4, i32 8, i32 12, i32 16, i32 20, i32 24, i32 28>
  %g = add <8 x i32> %f, %acc
  ret <8 x i32> %g
}
!0 = !{i32 1}
"""


def compile_for(llvm_cpu: str, features: str, module: str = TEMPTING) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMPILE, llvm_cpu, features]
    return subprocess.run(command, input=module, capture_output=True, text=True, timeout=60, check=False)


@cache
def assembly(name: str) -> str:
    target = targets.get(name)
    done = compile_for(target.llvm_cpu, target.llvm_features)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # LLVM complains here of features that it does not know
    return done.stdout


@pytest.mark.parametrize("name", targets.names())
def test_llvm_uses_nothing_that_no_target_promises(name: str) -> None:
    assert not re.search(r"movnts[sd]\b.*xmm|prefetchw|rdtscp|rdpru|\bxsave|tpause|sha256|movdir|bf16", assembly(name))


@pytest.mark.parametrize("name", ["x86-64-v3", "znver1", "znver2", "znver3"])
def test_no_avx512_where_there_is_none(name: str) -> None:
    text = assembly(name)
    assert not re.search(r"zmm|%k[0-7]|xmm(1[6-9]|2\d|3[01])|ymm(1[6-9]|2\d|3[01])|gf2p8|vpopcnt", text)
    assert "ymm" in text


@pytest.mark.parametrize("name", ["znver4", "znver5"])
def test_the_wide_instructions_where_they_are(name: str) -> None:
    text = assembly(name)
    assert "zmm" in text
    assert "gf2p8affineqb" in text
    assert "vpopcntd" in text


def test_x86_64_v4_has_no_more_than_its_level() -> None:
    assert not re.search(r"gf2p8|vpopcnt|vpdpbusd", assembly("x86-64-v4"))


def test_what_is_switched_off_would_be_used_otherwise() -> None:
    plain = compile_for("znver4", "").stdout
    assert "movntss" in plain
    assert "prefetchw" in plain
    assert "vcvtneps2bf16" in plain


INTRINSICS = {
    # Feature of LLVM: a call that cannot be compiled without it
    "rdseed": "declare {i32, i32} @llvm.x86.rdseed.32()\ndefine void @f() {\n"
    "%a = call {i32, i32} @llvm.x86.rdseed.32()\nret void\n}",
    "clzero": "declare void @llvm.x86.clzero(ptr)\ndefine void @f(ptr %p) {\n"
    "call void @llvm.x86.clzero(ptr %p)\nret void\n}",
    "clflushopt": "declare void @llvm.x86.clflushopt(ptr)\ndefine void @f(ptr %p) {\n"
    "call void @llvm.x86.clflushopt(ptr %p)\nret void\n}",
    "sha": "declare <4 x i32> @llvm.x86.sha1msg1(<4 x i32>, <4 x i32>)\n"
    "define <4 x i32> @f(<4 x i32> %a) {\n%b = call <4 x i32> @llvm.x86.sha1msg1(<4 x i32> %a, <4 x i32> %a)\n"
    "ret <4 x i32> %b\n}",
    "xsave": "declare void @llvm.x86.xsave(ptr, i32, i32)\ndefine void @f(ptr %p) {\n"
    "call void @llvm.x86.xsave(ptr %p, i32 1, i32 0)\nret void\n}",
    "fsgsbase": "declare i64 @llvm.x86.rdfsbase.64()\ndefine i64 @f() {\n"
    "%a = call i64 @llvm.x86.rdfsbase.64()\nret i64 %a\n}",
}


@pytest.mark.parametrize("feature", INTRINSICS)
def test_what_is_switched_off_cannot_be_compiled(feature: str) -> None:
    """LLVM refuses by ending the process, which is why none of these may reach it in the product."""
    target = targets.get("znver5")
    assert compile_for(target.llvm_cpu, "", INTRINSICS[feature]).returncode == 0
    refused = compile_for(target.llvm_cpu, target.llvm_features, INTRINSICS[feature])
    assert refused.returncode != 0
    assert "Cannot select" in refused.stderr
