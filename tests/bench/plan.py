"""plan_node for large clusters: one node's share, as every prolog computes it."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from pvc.model.cluster import Placement
from pvc.plan.node import find_share, plan_node
from pvc.plan.placement import place
from tests.unit.plan.worlds import SITE, facts_of, job_of, request_of

SIZES = ((4, 3), (640, 64), (10_000, 1_000), (60_000, 6_000))
BUDGETS = {10_000: {"budget_plan_s": 0.5, "budget_process_mib": 150}}


def measure(*words: str) -> Iterator[dict[str, object]]:
    """Each size in a process of its own, so that its memory can be told."""
    if words:
        yield _measure_one(int(words[0]), int(words[1]))
        return
    for vms, nodes in SIZES:
        argv = [sys.executable, "-m", "tests.bench", "plan", str(vms), str(nodes)]
        sys.stdout.write(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        sys.stdout.flush()


def _measure_one(vms: int, nodes: int) -> dict[str, object]:
    from pvc.model.host import Grants

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    each = -(-vms // nodes)
    job, request = job_of(nodes, each), request_of(("nat", vms), cpus=1)
    facts = facts_of(job)
    begin = time.perf_counter()
    placement: Placement = place(job.nodes, job.cpus, request)
    placed = time.perf_counter()
    ports = tuple(range(60000, 60000 + find_share(placement, job.node).count))
    plan = plan_node(job, request, placement, SITE, facts, Grants({"nat": 5001}, 0, ports))
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "vms": vms,
        "nodes": nodes,
        "actions": len(plan.actions),
        "place_s": round(placed - begin, 4),
        "plan_s": round(end - placed, 4),
        "process_mib": round(peak / 1024, 1),
        "grown_mib": round((peak - before) / 1024, 1),
        **BUDGETS.get(vms, {}),
    }
