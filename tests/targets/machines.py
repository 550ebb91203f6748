"""Made-up machines: what Linux would say of them under ``proc`` and ``sys``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_V3 = (
    "fpu cx8 cmov mmx fxsr sse sse2 syscall lm nopl pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt xsave "
    "avx f16c lahf_lm abm bmi1 avx2 bmi2"
)
_ZEN = f"{_V3} aes pclmulqdq sha_ni rdseed adx sse4a clflushopt clzero"
_ZEN3 = f"{_ZEN} clwb rdpid vaes vpclmulqdq pku invpcid"
_AVX512 = "avx512f avx512dq avx512cd avx512bw avx512vl"
_ZEN4 = (
    f"{_ZEN3} {_AVX512} avx512ifma avx512_bf16 avx512vbmi avx512_vbmi2 gfni avx512_vnni avx512_bitalg avx512_vpopcntdq"
)


@dataclass(frozen=True)
class Machine:
    """What ``/proc/cpuinfo`` says."""

    name: str
    family: int
    model: int
    flags: str
    vendor: str = "AuthenticAMD"

    def cpuinfo(self, processors: int = 2) -> str:
        return "".join(
            f"processor\t: {i}\nvendor_id\t: {self.vendor}\ncpu family\t: {self.family}\nmodel\t\t: {self.model}\n"
            f"model name\t: {self.name}\nstepping\t: 1\nflags\t\t: {self.flags}\nbugs\t\t: none\n\n"
            for i in range(processors)
        )

    def without(self, *flags: str) -> Machine:
        """The same machine under a hypervisor that hides features."""
        left = " ".join(flag for flag in self.flags.split() if flag not in flags)
        return Machine(self.name, self.family, self.model, left, self.vendor)

    def at(self, root: Path) -> Path:
        """``root``, with this machine's ``proc/cpuinfo``."""
        write(root / "proc/cpuinfo", self.cpuinfo())
        return root


ZEN1 = Machine("AMD Ryzen 7 1700 Eight-Core Processor", 0x17, 0x01, _ZEN)
ZEN2 = Machine("AMD Ryzen 5 3600 6-Core Processor", 0x17, 0x71, f"{_ZEN} clwb rdpid")
ZEN3 = Machine("AMD Ryzen 7 5800X 8-Core Processor", 0x19, 0x21, _ZEN3)
ZEN4 = Machine("AMD Ryzen 9 7950X 16-Core Processor", 0x19, 0x61, _ZEN4)
ZEN5 = Machine("AMD Ryzen 9 9950X 16-Core Processor", 0x1A, 0x44, f"{_ZEN4} avx_vnni movdiri movdir64b")
SKYLAKE = Machine("Intel(R) Core(TM) i7-6700K CPU @ 4.00GHz", 6, 94, f"{_V3} aes pclmulqdq rdseed adx", "GenuineIntel")
SKYLAKE_X = Machine("Intel(R) Xeon(R) Gold 6130 CPU", 6, 85, f"{SKYLAKE.flags} {_AVX512}", "GenuineIntel")
ICE_LAKE = Machine(
    "Intel(R) Xeon(R) Gold 6330 CPU",
    6,
    106,
    " ".join(flag for flag in _ZEN4.split() if flag not in ("sse4a", "clzero", "avx512_bf16")),
    "GenuineIntel",
)
SANDY_BRIDGE = Machine(
    "Intel(R) Core(TM) i5-2500K CPU",
    6,
    42,
    "fpu cx8 cmov mmx fxsr sse sse2 syscall lm pni ssse3 cx16 sse4_1 sse4_2 popcnt aes pclmulqdq xsave avx lahf_lm",
    "GenuineIntel",
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@dataclass(frozen=True)
class Layout:
    """How many of each part a machine has; logical CPUs of one core are ``cores`` apart, as Linux numbers them."""

    packages: int = 1
    domains: int = 1
    cores: int = 8
    smt: int = 2

    def at(self, root: Path) -> Path:
        """``root``, with this machine's ``sys/devices/system/cpu``."""
        total = self.packages * self.domains * self.cores
        base = root / "sys/devices/system/cpu"
        write(base / "online", f"0-{total * self.smt - 1}\n")

        def cpus(first: int, count: int) -> str:
            """The kernel's list of all threads of ``count`` cores from ``first`` on."""
            spans = [(first + total * t, first + total * t + count - 1) for t in range(self.smt)]
            return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in spans) + "\n"

        for cpu in range(total * self.smt):
            core = cpu % total
            package = core // (self.domains * self.cores) * self.domains * self.cores
            domain = core // self.cores * self.cores
            topology, cache = base / f"cpu{cpu}/topology", base / f"cpu{cpu}/cache"
            write(topology / "package_cpus_list", cpus(package, self.domains * self.cores))
            write(topology / "core_cpus_list", cpus(core, 1))
            parts = (
                (1, "Data", "32K", cpus(core, 1)),
                (1, "Instruction", "64K", cpus(core, 1)),
                (2, "Unified", "1024K", cpus(core, 1)),
                (3, "Unified", "32768K", cpus(domain, self.cores)),
            )
            for i, (level, kind, size, shared) in enumerate(parts):
                for name, value in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
                    write(cache / f"index{i}" / name, f"{str(value).strip()}\n")
        return root
