# SPDX-License-Identifier: Apache-2.0
"""plan_node for large clusters: one node's share, as every prolog computes it."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from pvc.model.cluster import Placement
from pvc.model.host import Grants, Underlay
from pvc.model.network import DataPath
from pvc.plan.node import find_share, plan_node
from pvc.plan.placement import place
from tests.bench._rows import Row, row
from tests.unit.plan.worlds import SITE, facts_of, job_of, request_of

SIZES = ((4, 3), (640, 64), (10_000, 1_000), (60_000, 6_000))
BUDGETS: dict[int, dict[str, float]] = {10_000: {"budget_wall_s": 0.5, "budget_process_mib": 150}}


def measure(*words: str) -> Iterator[Row]:
    """Each size in a process of its own, so that its memory can be told."""
    if words:
        yield _measure_one(int(words[0]), int(words[1]), DataPath(words[2]))
        return
    for data_path in (DataPath.KERNEL, DataPath.OVS):
        for vms, nodes in SIZES:
            argv = [sys.executable, "-m", "tests.bench", "plan", str(vms), str(nodes), data_path]
            sys.stdout.write(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
            sys.stdout.flush()


def _measure_one(vms: int, nodes: int, data_path: DataPath) -> Row:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    each = -(-vms // nodes)
    job, request = job_of(nodes, each), request_of(("nat", vms), cpus=1)
    facts = facts_of(job)
    site = SITE
    if data_path is DataPath.OVS:
        nat = replace(SITE.networks["nat"], data_path=data_path, host_suffix="-ovs")
        site = replace(SITE, networks={**SITE.networks, "nat": nat})
        facts = replace(facts, tunnels={"-ovs": Underlay(facts.address, "br-phy", 9000, facts.peers)})
    begin = time.perf_counter()
    placement: Placement = place(job.nodes, job.cpus, request)
    placed = time.perf_counter()
    ports = tuple(range(60000, 60000 + find_share(placement, job.node).count))
    plan = plan_node(job, request, placement, site, facts, Grants({"nat": 5001}, 0, ports))
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return row(
        "plan",
        data_path=data_path,
        vms=vms,
        peers=nodes - 1,
        times=[end - begin],
        place_s=round(placed - begin, 4),
        plan_s=round(end - placed, 4),
        actions=len(plan.actions),
        process_mib=round(peak / 1024, 1),
        grown_mib=round((peak - before) / 1024, 1),
        **BUDGETS.get(vms, {}),
    )
