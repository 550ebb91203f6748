"""Topology, affinity and cgroup quotas, on made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from machines import Layout, write

from ryzc.targets import Core, default_threads, topology

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
