"""The CPUs that ryzc compiles for.

A target's ``features`` are all that its code may use. LLVM's model of a CPU knows more, which a
hypervisor may well hide and compiled kernels have no use for: random numbers, cache control, system
instructions, bfloat16 arithmetic. ``llvm_features`` switches these off, so that a CPU with a target's
features runs whatever was compiled for it, Intel's since Ice Lake what was compiled for Zen 4.

x86-64-v4 has AVX-512 but not its VNNI part, without which 512-bit integer dot products gain little:
its integer dot products are the AVX2 ones, while floats may use 512-bit registers.

Sources: the x86-64 psABI's levels; AMD's software optimization guides for families 17h, 19h and 1Ah;
LLVM's ``X86.td``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzc.errors import TargetError

KIB, MIB = 1 << 10, 1 << 20


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_V2 = _set("cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3")
_V3 = _V2 | _set("abm avx avx2 bmi1 bmi2 f16c fma movbe")
_V4 = _V3 | _set("avx512bw avx512cd avx512dq avx512f avx512vl")
_ZEN1 = _V3 | _set("aes pclmulqdq")
_ZEN3 = _ZEN1 | _set("vaes vpclmulqdq")
_ZEN4_ALONE = "avx512_bitalg avx512_vbmi2 avx512_vnni avx512_vpopcntdq avx512ifma avx512vbmi gfni"
_ZEN4 = _ZEN3 | _V4 | _set(_ZEN4_ALONE)
_ZEN5 = _ZEN4 | _set("avx_vnni")

# What LLVM would use beyond these.
_V3_OFF = "-xsave"
_ZEN1_OFF = (
    "-adx,-clflushopt,-clzero,-fsgsbase,-mwaitx,-prfchw,-rdrnd,-rdseed,-sha,-sse4a,-xsave,-xsavec,-xsaveopt,-xsaves"
)
_ZEN2_OFF = f"{_ZEN1_OFF},-clwb,-rdpid,-rdpru,-wbnoinvd"
_ZEN3_OFF = f"{_ZEN2_OFF},-fsrm,-invpcid,-pku,-shstk"
_ZEN4_OFF = f"{_ZEN3_OFF},-avx512bf16"
_ZEN5_OFF = f"{_ZEN4_OFF},-avx512vp2intersect,-movdir64b,-movdiri,-prefetchi"


@dataclass(frozen=True)
class Target:
    """A CPU that ryzc compiles for.

    Attributes:
        name: as given to ``--target``.
        llvm_cpu: LLVM's name of it.
        llvm_features: what to switch off of LLVM's CPU, as LLVM wants it: ``-adx,-rdseed``.
        features: names as in ``/proc/cpuinfo``, all that its code may use.
        vector_bits: width of the vectors that its kernels use.
        isa: ``avx512_vnni`` or ``avx2``, which kernels it gets.
        products: examples of such CPUs.
        l1d, l2: bytes of the data caches of a core.
        l3: bytes of the L3 cache that the cores of one CCX share, on the usual desktop part.
        zen: the Zen generation that LLVM tunes its code for.
    """

    name: str
    llvm_cpu: str
    llvm_features: str
    features: frozenset[str]
    vector_bits: int
    isa: str
    products: tuple[str, ...]
    l1d: int
    l2: int
    l3: int
    zen: int | None = None

    @property
    def avx_vnni(self) -> bool:
        """Whether it has the VNNI instructions on 256-bit vectors without AVX-512."""
        return "avx_vnni" in self.features


TARGETS = (
    Target(
        name="znver5",
        llvm_cpu="znver5",
        llvm_features=_ZEN5_OFF,
        features=_ZEN5,
        vector_bits=512,
        isa="avx512_vnni",
        products=("Ryzen 9000", "Ryzen AI 300", "EPYC 9005"),
        l1d=48 * KIB,
        l2=1 * MIB,
        l3=32 * MIB,
        zen=5,
    ),
    Target(
        name="znver4",
        llvm_cpu="znver4",
        llvm_features=_ZEN4_OFF,
        features=_ZEN4,
        vector_bits=512,
        isa="avx512_vnni",
        products=("Ryzen 7000", "Ryzen 8000G", "EPYC 9004"),
        l1d=32 * KIB,
        l2=1 * MIB,
        l3=32 * MIB,
        zen=4,
    ),
    Target(
        name="x86-64-v4",
        llvm_cpu="x86-64-v4",
        llvm_features=_V3_OFF,
        features=_V4,
        vector_bits=256,
        isa="avx2",
        products=("any CPU with AVX-512",),
        l1d=32 * KIB,
        l2=1 * MIB,
        l3=8 * MIB,
    ),
    Target(
        name="znver3",
        llvm_cpu="znver3",
        llvm_features=_ZEN3_OFF,
        features=_ZEN3,
        vector_bits=256,
        isa="avx2",
        products=("Ryzen 5000", "Ryzen 6000", "EPYC 7003"),
        l1d=32 * KIB,
        l2=512 * KIB,
        l3=32 * MIB,
        zen=3,
    ),
    Target(
        name="znver2",
        llvm_cpu="znver2",
        llvm_features=_ZEN2_OFF,
        features=_ZEN1,
        vector_bits=256,
        isa="avx2",
        products=("Ryzen 3000", "Ryzen 4000", "EPYC 7002"),
        l1d=32 * KIB,
        l2=512 * KIB,
        l3=16 * MIB,
        zen=2,
    ),
    Target(
        name="znver1",
        llvm_cpu="znver1",
        llvm_features=_ZEN1_OFF,
        features=_ZEN1,
        vector_bits=256,
        isa="avx2",
        products=("Ryzen 1000", "Ryzen 2000", "EPYC 7001"),
        l1d=32 * KIB,
        l2=512 * KIB,
        l3=8 * MIB,
        zen=1,
    ),
    Target(
        name="x86-64-v3",
        llvm_cpu="x86-64-v3",
        llvm_features=_V3_OFF,
        features=_V3,
        vector_bits=256,
        isa="avx2",
        products=("any CPU with AVX2",),
        l1d=32 * KIB,
        l2=256 * KIB,
        l3=8 * MIB,
    ),
)
"""All targets, the most preferred first."""

_BY_NAME = {target.name: target for target in TARGETS}
_BY_NAME |= {"v3": _BY_NAME["x86-64-v3"], "v4": _BY_NAME["x86-64-v4"]}


def find(name: str) -> Target:
    """The target of that name or short name.

    Raises:
        TargetError: where there is none.
    """
    target = _BY_NAME.get(name)
    if target is None:
        known = ", ".join(t.name for t in TARGETS)
        raise TargetError(f"target {name!r} is not known", hint=f"ryzc compiles for native, {known}")
    return target
