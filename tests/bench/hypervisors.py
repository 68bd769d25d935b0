# SPDX-License-Identifier: Apache-2.0
"""What each driver costs on one node: from a supervisor's start to its running VMs, and the memory beside QEMU.

The drivers take turns. ``supervisor_mb`` and ``libvirtd_mb`` are resident memory, ``private_mb`` is what both together
share with nobody (smaps_rollup, in units of 10^6 bytes); QEMU's own is in none. With libvirt the first start asks QEMU
what it can do; ``again_s`` is another start in the same job.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench._rows import Row, row, spread

sys.path.insert(0, os.fspath(Path(__file__).parents[1] / "vm"))

from guests import build_guest
from harness import HYPERVISORS, guest_template, make_keys, supervised

from pvc.model.cluster import ClusterKeys
from pvc.model.vm import Phase

RUNS = 3


def measure(*words: str) -> Iterator[Row]:
    """The counts of VMs are ``words``, else 1 and 8."""
    with tempfile.TemporaryDirectory(prefix="pvc-") as path:
        keys = make_keys(Path(path))
        for count in [int(word) for word in words] or [1, 8]:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in HYPERVISORS}
            for _ in range(RUNS):
                for name in HYPERVISORS:
                    found[name].append(_run(keys, name, count))
            for name, runs in found.items():
                figures = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key.endswith("_mb")}
                again = spread("again_s", [run["again_s"] for run in runs])
                times = [run["wall_s"] for run in runs]
                yield row("start", vms=count, times=times, hypervisor=name, **again, **figures, budget_supervisor_mb=60)


def _run(keys: ClusterKeys, hypervisor: str, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="pvc-") as text:
        path = Path(text)
        guest = build_guest()
        templates = [guest_template(guest, name=f"t{i}", hypervisor=hypervisor) for i in range(count)]
        with supervised(path, *templates, keys=keys, memory_mib=352) as cluster:
            for rank in range(count):
                cluster.wait_phase(rank, Phase.BOOTING)
            wall_s = max(event.time for event in cluster.events if event.phase is Phase.BOOTING) - cluster.started
            cluster.ask(op="order", order="stop", vms=list(range(count)))
            before = time.monotonic()
            cluster.ask(op="order", order="start", vms=[0])
            again_s = time.monotonic() - before
            pids = {"supervisor_mb": cluster.process.pid}
            for pid in set(cluster.children()) - set(cluster.qemu_pids()):
                pids["libvirtd_mb"] = pid
            memory = {key: _memory(pid) for key, pid in pids.items()}
            resident = {"libvirtd_mb": 0.0} | {key: each["Rss"] for key, each in memory.items()}
            private = sum(each["Private_Clean"] + each["Private_Dirty"] for each in memory.values())
            return {"wall_s": wall_s, "again_s": again_s, "private_mb": round(private, 1), **resident}


def _memory(pid: int) -> dict[str, float]:
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {words[0].rstrip(":"): round(int(words[1]) * 1024 / 1e6, 1) for words in rows}
