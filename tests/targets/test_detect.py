"""Detection of the CPU, and the choice of a target for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import machines
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import Machine

from ryzc import targets
from ryzc.errors import TargetError
from ryzc.targets import Cpu, Target, cpuid, cpuinfo
from ryzc.targets.identity import Identity, zen_generation

ZENS = [machines.ZEN1, machines.ZEN2, machines.ZEN3, machines.ZEN4, machines.ZEN5]
AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "gfni"}
OF_OLDER_BUNDLES = {"avx512_bf16"}
"""No target asks for it any more, but the manifests of older bundles do."""


def nobody() -> None:
    """Where CPUID cannot be executed."""


def cpu_of(machine: Machine, root: Path, **environ: str) -> Cpu:
    return targets.detect(root=machine.at(root), ask=nobody, affinity=frozenset({0, 1}), environ=environ)


@pytest.mark.parametrize(("generation", "machine"), list(enumerate(ZENS, 1)))
def test_each_zen_prefers_its_own_target(generation: int, machine: Machine, tmp_path: Path) -> None:
    cpu = cpu_of(machine, tmp_path)
    assert (cpu.zen, cpu.vendor, cpu.name) == (generation, "AuthenticAMD", machine.name)
    assert (cpu.family, cpu.model) == (machine.family, machine.model)
    assert cpu.threads == 2
    assert targets.best(targets.names(), cpu).name == f"znver{generation}"


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (machines.SKYLAKE, "znver2"),
        (machines.SKYLAKE_X, "x86-64-v4"),
        (machines.SKYLAKE.without("aes"), "x86-64-v3"),
        (machines.ICE_LAKE, "znver4"),
    ],
)
def test_other_cpus_get_what_they_can_run(machine: Machine, name: str, tmp_path: Path) -> None:
    cpu = cpu_of(machine, tmp_path)
    assert cpu.zen is None
    assert targets.best(targets.names(), cpu).name == name


def test_the_order_on_a_zen_5(tmp_path: Path) -> None:
    cpu = cpu_of(machines.ZEN5, tmp_path)
    left = list(targets.names())
    order = []
    while left:
        order.append(targets.best(left, cpu).name)
        left.remove(order[-1])
    assert order == ["znver5", "znver4", "x86-64-v4", "znver3", "znver2", "znver1", "x86-64-v3"]


def test_what_a_hypervisor_hides_costs_only_what_needs_it(tmp_path: Path) -> None:
    hidden = machines.ZEN5.without("rdseed", "clzero", "sha_ni", "adx", "sse4a", "pku", "movdiri", "movdir64b", "rdpid")
    assert targets.best(targets.names(), cpu_of(hidden, tmp_path)).name == "znver5"
    assert targets.best(targets.names(), cpu_of(hidden.without("avx_vnni"), tmp_path)).name == "znver4"
    assert targets.best(targets.names(), cpu_of(hidden.without("avx512_vnni"), tmp_path)).name == "x86-64-v4"


def test_refusal_names_what_is_missing(tmp_path: Path) -> None:
    cpu = cpu_of(machines.ZEN3, tmp_path)
    assert targets.runnable(targets.get("znver4"), cpu) >= AVX512
    assert not targets.runnable(targets.get("znver3"), cpu)
    with pytest.raises(TargetError) as caught:
        targets.best(["znver4", "x86-64-v4", "znver9"], cpu)
    message = str(caught.value)
    assert "AMD Ryzen 7 5800X" in message
    for part in (*AVX512, "znver4 needs avx512_bitalg", "x86-64-v4 needs avx512bw, ", "znver9 is not known"):
        assert part in message
    assert "--target native" in str(caught.value.hint)


def test_a_cpu_without_avx2_can_run_nothing(tmp_path: Path) -> None:
    cpu = cpu_of(machines.SANDY_BRIDGE, tmp_path)
    with pytest.raises(TargetError, match=r"x86-64-v3 needs abm, avx2, bmi1, bmi2, f16c, fma, movbe") as caught:
        targets.best(targets.names(), cpu)
    assert "AVX2" in str(caught.value.hint)


def test_no_names_no_target(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no target was named"):
        targets.best([], cpu_of(machines.ZEN4, tmp_path))


@pytest.mark.parametrize("name", ["znver9", "", "Native", "skylake", "../znver4"])
def test_an_unknown_target_names_the_known(name: str) -> None:
    with pytest.raises(TargetError) as caught:
        targets.get(name)
    assert repr(name) in str(caught.value)
    for known in (*targets.names(), "native"):
        assert known in str(caught.value.hint)


def test_short_names() -> None:
    assert targets.get("v3") is targets.get("x86-64-v3")
    assert targets.get("v4") is targets.get("x86-64-v4")


def test_pretending_to_be_a_lesser_cpu(tmp_path: Path) -> None:
    for name in targets.names():
        cpu = cpu_of(machines.ZEN5, tmp_path, RYZC_CPU=name)
        assert cpu.pretended == name
        assert cpu.features == targets.get(name).features
        assert targets.best(targets.names(), cpu).name == name
    assert targets.best(targets.names(), cpu_of(machines.ZEN5, tmp_path, RYZC_CPU="v3")).name == "x86-64-v3"
    assert cpu_of(machines.ZEN5, tmp_path, RYZC_CPU="").pretended is None


def test_zen_1_takes_code_for_zen_2_before_none(tmp_path: Path) -> None:
    cpu = cpu_of(machines.ZEN1, tmp_path)
    assert targets.best(["znver2", "znver4"], cpu).name == "znver2"
    assert targets.best(["znver2", "x86-64-v3"], cpu).name == "x86-64-v3"


def test_pretending_to_be_a_greater_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"RYZC_CPU=znver4: .*5800X.* lacks avx512_bitalg.*gfni") as caught:
        cpu_of(machines.ZEN3, tmp_path, RYZC_CPU="znver4")
    assert "lesser" in str(caught.value.hint)
    with pytest.raises(TargetError, match="RYZC_CPU: target 'zen7' is not known"):
        cpu_of(machines.ZEN3, tmp_path, RYZC_CPU="zen7")


def test_both_the_cpu_and_the_kernel_must_report_a_feature(tmp_path: Path) -> None:
    root = machines.ZEN4.without("gfni").at(tmp_path)
    asked = Identity("AuthenticAMD", "emulated", 0x17, 0x71, frozenset({"avx2", "gfni", "fma"}))
    cpu = targets.detect(root=root, ask=lambda: asked, environ={})
    assert cpu.features == {"avx2", "fma"}
    assert (cpu.name, cpu.zen) == ("emulated", 2)
    alone = targets.detect(root=tmp_path / "nowhere", ask=lambda: asked, environ={})
    assert alone.features == {"avx2", "fma", "gfni"}


def test_an_unknown_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="could not be identified"):
        targets.detect(root=tmp_path, ask=nobody, environ={})


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "processor : 0\nBogoMIPS : 50\nFeatures : fp asimd\n", "vendor_id: AuthenticAMD\ncpu family: x\n"],
)
def test_what_is_no_x86_cpuinfo(text: str, tmp_path: Path) -> None:
    assert cpuinfo.parse(text) is None
    machines.write(tmp_path / "proc/cpuinfo", text)
    assert cpuinfo.read(tmp_path) is None


@given(st.text())
def test_cpuinfo_of_any_text(text: str) -> None:
    found = cpuinfo.parse(text)
    assert found is None or isinstance(found.features, frozenset)


@pytest.mark.parametrize(
    ("vendor", "family", "model", "generation"),
    [
        ("AuthenticAMD", 0x17, 0x08, 1),  # Zen+
        ("AuthenticAMD", 0x17, 0x31, 2),
        ("AuthenticAMD", 0x17, 0x60, 2),
        ("AuthenticAMD", 0x19, 0x01, 3),
        ("AuthenticAMD", 0x19, 0x50, 3),
        ("AuthenticAMD", 0x19, 0x11, 4),
        ("AuthenticAMD", 0x19, 0x74, 4),
        ("AuthenticAMD", 0x1A, 0x02, 5),
        ("AuthenticAMD", 0x1A, 0x24, 5),
        ("AuthenticAMD", 0x1A, 0x70, 5),
        ("AuthenticAMD", 0x1A, 0x90, 6),
        ("AuthenticAMD", 0x15, 0x02, None),
        ("HygonGenuine", 0x18, 0x00, 1),
        ("GenuineIntel", 0x19, 0x61, None),
    ],
)
def test_generations(vendor: str, family: int, model: int, generation: int | None) -> None:
    assert zen_generation(Identity(vendor, "", family, model, frozenset())) == generation


class FakeCpu:
    """CPUID's answers, from a table of registers by leaf and subleaf."""

    def __init__(self, leaves: dict[tuple[int, int], Sequence[int]], xcr0: int | None) -> None:
        self.leaves = leaves
        self.xcr0 = xcr0

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        a, b, c, d = self.leaves.get((leaf, subleaf), (0, 0, 0, 0))
        return a, b, c, d

    def xgetbv(self) -> int:
        assert self.xcr0 is not None, "xgetbv would be an illegal instruction"
        return self.xcr0

    def identity(self) -> Identity:
        return cpuid.decode(self.cpuid, self.xgetbv)


def words(text: str) -> list[int]:
    raw = text.encode().ljust(48, b"\0")
    return [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 48, 4)]


def everything(last: int = 7, subleaf: int = 1, *, osxsave: bool = True) -> dict[tuple[int, int], Sequence[int]]:
    """A 7950X's signature with every feature bit set."""
    name = words("AMD Ryzen 9 7950X ")
    ones = 2**32 - 1
    ecx = ones if osxsave else ones & ~(1 << 27)
    return {
        (0, 0): (last, 0x68747541, 0x444D4163, 0x69746E65),
        (1, 0): (0x00A60F12, 0, ecx, ones),
        (7, 0): (subleaf, ones, ones, ones),
        (7, 1): (ones, 0, 0, 0),
        (0x80000000, 0): (0x80000004, 0, 0, 0),
        (0x80000001, 0): (0, 0, ones, 0),
        **{(0x80000002 + i, 0): name[4 * i : 4 * i + 4] for i in range(3)},
    }


def test_decoding_cpuid() -> None:
    found = FakeCpu(everything(), 0xE7).identity()
    assert found == Identity("AuthenticAMD", "AMD Ryzen 9 7950X", 0x19, 0x61, frozenset(cpuid.FEATURES))
    assert zen_generation(found) == 4


def test_features_whose_registers_nobody_saves_do_not_count() -> None:
    wide = {name for name in cpuid.FEATURES if name.startswith("avx512")}
    vectors = wide | {"avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq", "avx_vnni"}
    assert FakeCpu(everything(), 0x07).identity().features == set(cpuid.FEATURES) - wide
    assert FakeCpu(everything(), 0x03).identity().features == set(cpuid.FEATURES) - vectors
    assert FakeCpu(everything(osxsave=False), None).identity().features == set(cpuid.FEATURES) - vectors


def test_leaves_that_a_cpu_lacks_are_not_read() -> None:
    """Beyond its last leaf CPUID gives something meaningless, here all ones."""
    older = FakeCpu(everything(last=6), 0xE7).identity().features
    assert "avx" in older
    assert not older & {"avx2", "bmi1", "avx512f", "avx_vnni", "gfni"}
    assert not FakeCpu(everything(subleaf=0), 0xE7).identity().features & {"avx_vnni", "avx512_bf16"}


@given(st.dictionaries(st.sampled_from(list(everything())), st.tuples(*[st.integers(0, 2**32 - 1)] * 4)))
def test_decoding_any_answers(leaves: dict[tuple[int, int], Sequence[int]]) -> None:
    assert FakeCpu(leaves, 0).identity().features <= set(cpuid.FEATURES)


def test_the_table_asks_only_for_features_that_cpuid_is_asked_for() -> None:
    needed = frozenset[str]().union(*(targets.get(name).features for name in targets.names()))
    assert needed | OF_OLDER_BUNDLES == frozenset(cpuid.FEATURES)


def test_this_cpu() -> None:
    asked, told = cpuid.read(), cpuinfo.read(Path("/"))
    assert told is not None
    if asked is not None:
        assert (asked.vendor, asked.family, asked.model) == (told.vendor, told.family, told.model)
        assert told.features & set(cpuid.FEATURES) <= asked.features
    assert targets.runnable(targets.get("native"), targets.detect()) == frozenset()


def test_a_system_that_forbids_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError(13, "mprotect")

    monkeypatch.setattr(cpuid, "_instructions", refused)
    assert cpuid.read() is None
    assert targets.detect(environ={}).features


def levels() -> list[tuple[Target, Target]]:
    chain = [targets.get(name) for name in ("x86-64-v3", "znver1", "znver2", "znver3", "znver4", "znver5")]
    return list(pairwise(chain))


@pytest.mark.parametrize(("older", "newer"), levels())
def test_newer_targets_need_no_less(older: Target, newer: Target) -> None:
    assert older.features <= newer.features


def test_the_kernels_of_each_target() -> None:
    isas = {name: targets.get(name).isa for name in targets.names()}
    assert {name for name, isa in isas.items() if isa == "avx512_vnni"} == {"znver4", "znver5"}
    for name in targets.names():
        target = targets.get(name)
        if target.isa == "avx512_vnni":
            assert {"avx512_vnni", "avx512bw", "avx512vl"} <= target.features
            assert target.vector_bits == 512
        assert target.avx_vnni == (name == "znver5")
