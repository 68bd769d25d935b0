"""The phases of pvc alloc on a testbed of three nodes, with a guest that boots in seconds.

Times are the nodes' clocks, which are one clock here. As root.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RUNS = 3
CLUSTERS = ((1, 1), (4, 3))
BUDGETS: dict[tuple[int, int], dict[str, float]] = {
    (1, 1): {"budget_qemu_s": 1.5},
    (4, 3): {"budget_script_s": 1.5},
}
# Runs beside the VMs: when it began, and when each VM ran and answered.
SCRIPT = "date +%s.%N >begun; pvc wait >/dev/null; pvc status --json >status"


def measure() -> Iterator[dict[str, object]]:
    """From the command to the script, QEMU and the answer of the VMs; from the end of the script to the last node's."""
    if os.geteuid() != 0:
        print("alloc: needs root, not measured", file=sys.stderr)
        return
    from pvc.testbed import lifecycle
    from pvc.testbed.place import find_place
    from tests.slurm.images import import_small
    from tests.slurm.testbed import own_name, start_testbed

    name = own_name("-bench")
    begin = time.perf_counter()
    try:
        testbed = start_testbed(name)
        yield {"phase": "testbed", "nodes": 3, "up_s": round(time.perf_counter() - begin, 3)}
        with tempfile.TemporaryDirectory() as scratch:
            image = import_small(testbed, Path(scratch))
        testbed.run(["srun", "-N3", "true"])
        for vms, nodes in CLUSTERS:
            rows = [_measure_one(testbed, image, vms, nodes) for _ in range(RUNS)]
            medians = {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
            yield {"phase": "alloc", "vms": vms, "nodes": nodes, **medians, **BUDGETS.get((vms, nodes), {})}
        begin = time.perf_counter()
    finally:
        lifecycle.down(find_place(name))
    yield {"phase": "testbed", "nodes": 3, "down_s": round(time.perf_counter() - begin, 3)}


def _measure_one(testbed: object, image: str, vms: int, nodes: int) -> dict[str, float]:
    from tests.slurm.testbed import Testbed

    assert isinstance(testbed, Testbed)
    testbed.wait_no_jobs()
    alloc = f"pvc alloc -Q -c 1 -m 96M -N {nodes} {image}:{vms} sh -c '{SCRIPT}; date +%s.%N >ended'"
    done = testbed.run(f"date +%s.%N; {alloc}; date +%s.%N", timeout=300.0)
    start, end = (float(line) for line in done.out.split())
    home = testbed.home()
    status = json.loads((home / "status").read_text())["vms"]
    ended = float((home / "ended").read_text())
    # The directory of the jobs was written last when the last of them went.
    left = 'while [ -n "$(ls /var/lib/pvc/jobs)" ]; do sleep 0.01; done; date +%s.%N'
    clean = max(float(testbed.root(left, node)) for node in testbed.nodes())
    return {
        "script_s": float((home / "begun").read_text()) - start,
        "qemu_s": max(vm["started"] for vm in status) - start,
        "reachable_s": max(vm["reachable"] for vm in status) - start,
        "end_to_clean_s": clean - ended,
        "end_to_prompt_s": end - ended,
    }
