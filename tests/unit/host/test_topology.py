# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from pvc.host.topology import read_topology
from pvc.plan.numa import CpuPlace


def make_sys(root: Path, cpus: dict[int, tuple[int, int]], nodes: dict[int, str], online: str) -> Path:
    base = root / "devices/system/cpu"
    for cpu, (package, core) in cpus.items():
        directory = base / f"cpu{cpu}/topology"
        directory.mkdir(parents=True)
        (directory / "physical_package_id").write_text(f"{package}\n")
        (directory / "core_id").write_text(f"{core}\n")
    base.mkdir(parents=True, exist_ok=True)
    (base / "online").write_text(f"{online}\n")
    for node, cpulist in nodes.items():
        directory = root / f"devices/system/node/node{node}"
        directory.mkdir(parents=True)
        (directory / "cpulist").write_text(f"{cpulist}\n")
    return root


def test_two_nodes_with_threads(tmp_path: Path) -> None:
    root = make_sys(tmp_path, {0: (0, 0), 1: (1, 0), 2: (0, 0), 3: (1, 0)}, {0: "0,2", 1: "1,3"}, "0-3")
    assert read_topology(root) == (
        CpuPlace(0, 0, 0, 0),
        CpuPlace(1, 1, 0, 1),
        CpuPlace(0, 0, 0, 2),
        CpuPlace(1, 1, 0, 3),
    )


def test_offline_cpus_are_left_out(tmp_path: Path) -> None:
    root = make_sys(tmp_path, {0: (0, 0), 2: (0, 1)}, {0: "0,2"}, "0,2")
    assert [place.cpu for place in read_topology(root)] == [0, 2]


def test_a_kernel_without_numa_or_topology(tmp_path: Path) -> None:
    root = make_sys(tmp_path, {}, {}, "0-1")
    assert read_topology(root) == (CpuPlace(0, 0, 0, 0), CpuPlace(0, 0, 1, 1))


def test_a_node_without_cpus(tmp_path: Path) -> None:
    root = make_sys(tmp_path, {0: (0, 0)}, {0: "0", 1: ""}, "0")
    assert [place.numa_node for place in read_topology(root)] == [0]


def test_no_sys(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="online"):
        read_topology(tmp_path)
