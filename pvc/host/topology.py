# SPDX-License-Identifier: Apache-2.0
"""CPU topology from /sys.

Files are those of Documentation/ABI/stable/sysfs-devices-system-cpu (cpuN/topology/*) and
Documentation/ABI/stable/sysfs-devices-node (nodeN/cpulist) of the kernel.
"""

from __future__ import annotations

from pathlib import Path

from pvc.files import read_text
from pvc.parse import parse_cpu_list
from pvc.plan.numa import CpuPlace

SYS = Path("/sys")


def read_topology(sys: Path = SYS) -> tuple[CpuPlace, ...]:
    """Every online CPU of the machine; a kernel without NUMA has all on node 0.

    :raise OSError: /sys is not mounted.
    :raise ValueError: a file there has an unknown form.
    """
    base = sys / "devices/system/cpu"
    numa: dict[int, int] = {}
    for directory in (sys / "devices/system/node").glob("node[0-9]*"):
        for cpu in parse_cpu_list(read_text(directory / "cpulist", "")):
            numa[cpu] = int(directory.name.removeprefix("node"))
    return tuple(
        CpuPlace(
            numa_node=numa.get(cpu, 0),
            package=int(read_text(base / f"cpu{cpu}/topology/physical_package_id", "0")),
            core=int(read_text(base / f"cpu{cpu}/topology/core_id", str(cpu))),
            cpu=cpu,
        )
        for cpu in parse_cpu_list(read_text(base / "online"))
    )
