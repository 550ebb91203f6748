"""Topology, affinity and cgroup quotas, on made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from machines import Layout, write

from ryzc.targets import Core, Topology, default_threads, topology

ALL = frozenset(range(4096))


def test_a_desktop_with_two_ccx(tmp_path: Path) -> None:
    found = topology.read(Layout(domains=2).at(tmp_path), ALL)
    assert len(found.packages) == 1
    assert [len(domain.cores) for domain in found.domains] == [8, 8]
    assert found.cores[0] == Core((0, 16), l1d=32 << 10, l2=1 << 20)
    assert found.cores[9].cpus == (9, 25)
    assert {domain.l3 for domain in found.domains} == {32 << 20}
    assert found.usable == frozenset(range(32))
    assert found.quota is None
    assert found.default_threads() == 16


def test_a_server_with_two_sockets(tmp_path: Path) -> None:
    found = topology.read(Layout(packages=2, domains=4, cores=4, smt=2).at(tmp_path), ALL)
    assert [len(package.domains) for package in found.packages] == [4, 4]
    assert [domain.cores[0].cpus[0] for domain in found.domains] == list(range(0, 32, 4))
    assert found.default_threads() == 32


def test_without_smt(tmp_path: Path) -> None:
    found = topology.read(Layout(cores=6, smt=1).at(tmp_path), ALL)
    assert [core.cpus for core in found.cores] == [(i,) for i in range(6)]
    assert found.default_threads() == 6


def test_more_than_ten_cpus_are_sorted_as_numbers(tmp_path: Path) -> None:
    found = topology.read(Layout(cores=12, smt=1).at(tmp_path), ALL)
    assert [core.cpus[0] for core in found.cores] == list(range(12))


@pytest.mark.parametrize(
    ("allowed", "threads"),
    [
        ({0}, 1),
        ({0, 8}, 1),  # both hardware threads of one core
        ({0, 1, 2}, 3),
        ({8, 9}, 2),  # second hardware threads only
        (set(range(16)), 8),
    ],
)
def test_affinity(tmp_path: Path, allowed: set[int], threads: int) -> None:
    found = topology.read(Layout().at(tmp_path), frozenset(allowed))
    assert found.usable == allowed
    assert len(found.cores) == 8
    assert found.default_threads() == len(found.usable_cores) == threads


def test_offline_cpus_are_left_out(tmp_path: Path) -> None:
    root = Layout(cores=4, smt=1).at(tmp_path)
    write(root / "sys/devices/system/cpu/online", "0-1,3\n")
    found = topology.read(root, ALL)
    assert [core.cpus for core in found.cores] == [(0,), (1,), (3,)]
    assert found.default_threads() == 3


def test_nothing_known_is_taken_to_be_simple(tmp_path: Path) -> None:
    found = topology.read(tmp_path, frozenset({2, 5}))
    assert [core.cpus for core in found.cores] == [(2,), (5,)]
    assert len(found.domains) == 1
    assert found.domains[0].l3 == 0
    assert found.default_threads() == 2


@pytest.mark.parametrize("text", ["", "x", "0-", "0,,1", "1-2-3", "-1", "\xff"])
def test_strange_lists_are_taken_as_unknown(tmp_path: Path, text: str) -> None:
    root = Layout(cores=2, smt=1).at(tmp_path)
    for name in ("topology/core_cpus_list", "topology/package_cpus_list", "cache/index3/shared_cpu_list"):
        (root / "sys/devices/system/cpu/cpu1" / name).write_bytes(text.encode("latin-1"))
    write(root / "sys/devices/system/cpu/cpu1/cache/index2/size", "much")
    found = topology.read(root, ALL)
    assert sorted(core.cpus for core in found.cores) == [(0,), (1,)]
    assert found.cores[-1].l2 == 0
    assert found.default_threads() == 2


def test_caches_without_an_l3_make_one_domain_a_package(tmp_path: Path) -> None:
    root = Layout(domains=2, cores=2, smt=1).at(tmp_path)
    for cpu in range(4):
        write(root / f"sys/devices/system/cpu/cpu{cpu}/cache/index3/level", "4")
    found = topology.read(root, ALL)
    assert [len(domain.cores) for domain in found.domains] == [4]


V1_FILES = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400000 100000", 4.0),
        ("50000 100000", 0.5),
        ("max 100000", None),
        ("", None),
        ("1 0", None),
        ("-1 100000", None),
    ],
)
def test_quota_of_cgroup_2(tmp_path: Path, text: str, expected: float | None) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/user.slice/job\n")
    write(tmp_path / "sys/fs/cgroup/user.slice/job/cpu.max", text)
    assert topology.quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("150000", 1.5), ("-1", None)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_quota_of_cgroup_1(tmp_path: Path, controllers: str, quota: str, expected: float | None) -> None:
    write(tmp_path / "proc/self/cgroup", f"9:memory:/elsewhere\n4:{controllers}:/docker/abc\n0::/\n")
    for name, value in zip(V1_FILES, (quota, "100000"), strict=True):
        write(tmp_path / "sys/fs/cgroup" / controllers / "docker/abc" / name, value)
    assert topology.quota(tmp_path) == expected


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/a/b/c\n")
    for group, text in (("a", "300000 100000"), ("a/b", "max 100000"), ("a/b/c", "800000 100000"), ("z", "1 100000")):
        write(tmp_path / "sys/fs/cgroup" / group / "cpu.max", text)
    assert topology.quota(tmp_path) == 3.0


@pytest.mark.parametrize("path", ["/", "/docker/of/the/host", "/../../other"])
def test_a_container_sees_its_own_group_at_the_mount(tmp_path: Path, path: str) -> None:
    write(tmp_path / "proc/self/cgroup", f"0::{path}\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert topology.quota(tmp_path) == 2.0


def test_no_group_no_quota(tmp_path: Path) -> None:
    assert topology.quota(tmp_path) is None
    write(tmp_path / "proc/self/cgroup", "nonsense\n\n::\n")
    assert topology.quota(tmp_path) is None


@pytest.mark.parametrize(("text", "threads"), [("250000 100000", 2), ("20000 100000", 1), ("9900000 100000", 8)])
def test_threads_within_the_quota(tmp_path: Path, text: str, threads: int) -> None:
    root = Layout().at(tmp_path)
    write(root / "proc/self/cgroup", "0::/\n")
    write(root / "sys/fs/cgroup/cpu.max", text)
    assert topology.read(root, ALL).default_threads() == threads


ONE_CCD = {"cores": 8}
TWO_CCDS = {"domains": 2, "cores": 8}


@pytest.mark.parametrize(
    ("layout", "threads", "by_domain"),
    [
        ({"cores": 2, "smt": 1}, 2, [2]),  # a virtual machine
        ({"cores": 6}, 6, [6]),
        (ONE_CCD, 3, [3]),
        (ONE_CCD, 8, [8]),
        (ONE_CCD, 16, [16]),  # second hardware threads
        ({"domains": 2, "cores": 6}, 12, [6, 6]),  # 12 cores
        (TWO_CCDS, 1, [1, 0]),
        (TWO_CCDS, 2, [1, 1]),  # a link to memory each
        (TWO_CCDS, 5, [3, 2]),
        (TWO_CCDS, 16, [8, 8]),
        (TWO_CCDS, 17, [9, 8]),
        (TWO_CCDS, 40, [20, 20]),
        ({"domains": 2, "cores": 4}, 6, [3, 3]),  # Zen 2: two CCXs of 4 on a CCD
        ({"domains": 4, "cores": 4}, 16, [4, 4, 4, 4]),
        ({"domains": 8, "cores": 8, "smt": 1}, 4, [1, 1, 1, 1, 0, 0, 0, 0]),  # EPYC
        ({"domains": 8, "cores": 8, "smt": 2}, 64, [8] * 8),
        ({"packages": 2, "domains": 2, "cores": 4}, 6, [3, 3, 0, 0]),  # memory belongs to a package
        ({"packages": 2, "domains": 2, "cores": 4}, 10, [4, 4, 1, 1]),
        ({"packages": 2, "domains": 2, "cores": 4}, 18, [5, 5, 4, 4]),
    ],
)
def test_seats_follow_the_l3s(tmp_path: Path, layout: dict[str, int], threads: int, by_domain: list[int]) -> None:
    found = topology.read(Layout(**layout).at(tmp_path), ALL)
    expected = [
        frozenset(cpu for core in domain.cores for cpu in core.cpus)
        for domain, count in zip(found.domains, by_domain, strict=True)
        for _ in range(count)
    ]
    assert list(found.seats(threads)) == expected


@pytest.mark.parametrize(
    ("allowed", "threads", "seats"),
    [
        ({3}, 1, [{3}]),
        ({3, 19}, 2, [{3, 19}] * 2),  # one core, both of its hardware threads
        (set(range(4)), 4, [{0, 1, 2, 3}] * 4),  # one domain only: no spreading
        ({0, 1, 8}, 3, [{0, 1}, {0, 1}, {8}]),
        ({0, 1, 8}, 2, [{0, 1}, {8}]),
        ({0, 16, 8, 9, 10, 11}, 5, [{0, 16}, *[{8, 9, 10, 11}] * 4]),  # cores count, not hardware threads
    ],
)
def test_seats_within_the_affinity_mask(tmp_path: Path, allowed: set[int], threads: int, seats: list[set[int]]) -> None:
    found = topology.read(Layout(**TWO_CCDS).at(tmp_path), frozenset(allowed))
    assert list(found.seats(threads)) == seats


def test_seats_within_the_quota(tmp_path: Path) -> None:
    root = Layout(**TWO_CCDS).at(tmp_path)
    write(root / "proc/self/cgroup", "0::/\n")
    write(root / "sys/fs/cgroup/cpu.max", "400000 100000\n")
    found = topology.read(root, ALL)
    assert [min(cpus) for cpus in found.seats(found.default_threads())] == [0, 0, 8, 8]


def test_seats_where_nothing_is_known(tmp_path: Path) -> None:
    assert topology.read(tmp_path, frozenset({2, 5})).seats(3) == (frozenset({2, 5}),) * 3
    strange = Topology((), frozenset({4}))
    assert strange.seats(2) == (frozenset({4}),) * 2


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 8 << 20), ("1048576", 1 << 20), ("99999999999", 8 << 20), ("x", 8 << 20)]
)
def test_free_memory_within_the_cgroups_limit(tmp_path: Path, limit: str, expected: int) -> None:
    assert topology.free_memory(tmp_path) is None
    write(tmp_path / "proc/meminfo", "MemTotal: 99999 kB\nMemAvailable:    8192 kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/job\n")
    write(tmp_path / "sys/fs/cgroup/job/memory.max", limit)
    assert topology.free_memory(tmp_path) == expected


def test_free_memory_of_cgroup_1(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "5:memory:/job\n4:cpu:/other\n")
    write(tmp_path / "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4096")
    assert topology.free_memory(tmp_path) == 4096


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 << 20),
        ({"memory.max": "6000000", "memory.current": "1000000"}, 5_000_000),
        ({"memory.max": "max", "memory.high": "3000000", "memory.current": "1000000"}, 2_000_000),
        ({"memory.max": "max", "memory.high": "max", "memory.current": "1000000"}, 8 << 20),
        (
            {"memory.max": "6000000", "memory.current": "5000000", "memory.stat": "anon 1\ninactive_file 900000\n"},
            1_900_000,
        ),
        ({"memory.max": "6000000", "memory.current": "7000000", "memory.stat": "inactive_file x\n"}, -1_000_000),
        ({"memory.max": "6000000"}, 8 << 20),
    ],
)
def test_spare_memory(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert topology.spare_memory(tmp_path) is None
    write(tmp_path / "proc/meminfo", "MemTotal: 99999 kB\nMemAvailable:    8192 kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/outer/job\n")
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup/outer" / name, text)
    assert topology.spare_memory(tmp_path) == expected


def test_spare_memory_of_cgroup_1(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "5:memory:/job\n4:cpu:/other\n")
    group = tmp_path / "sys/fs/cgroup/memory/job"
    write(group / "memory.limit_in_bytes", "4096")
    write(group / "memory.usage_in_bytes", "3000")
    write(group / "memory.stat", "inactive_file 7\ntotal_inactive_file 1000\n")
    assert topology.spare_memory(tmp_path) == 2096


def test_this_machine() -> None:
    found = topology.read()
    assert found.usable == os.sched_getaffinity(0)
    assert {cpu for core in found.usable_cores for cpu in core.cpus} >= found.usable
    assert 1 <= default_threads() <= len(found.usable)


def test_this_process_on_one_cpu() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert default_threads() == 1
    finally:
        os.sched_setaffinity(0, before)
