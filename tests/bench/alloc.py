# SPDX-License-Identifier: Apache-2.0
"""The phases of pvc alloc on a testbed of three nodes, with a guest that boots in seconds.

Times are the nodes' clocks, which are one clock here. As root.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench._rows import Row, row

RUNS = 3
CLUSTERS = ((1, 1), (4, 3))
# By phase and VMs.
BUDGETS = {("qemu", 1): 1.5, ("script", 4): 1.5, ("end-to-clean", 1): 0.3, ("end-to-clean", 4): 0.3}
# Runs beside the VMs: when it began, and when each VM ran and answered.
SCRIPT = "date +%s.%N >begun; pvc wait >/dev/null; pvc status --json >status"


def measure() -> Iterator[Row]:
    """Phases of a command: until its script runs, until QEMU does, until the VMs answer; and after the script's end."""
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
        yield row("testbed-up", peers=2, times=[time.perf_counter() - begin])
        with tempfile.TemporaryDirectory() as scratch:
            image = import_small(testbed, Path(scratch))
        testbed.run(["srun", "-N3", "true"])
        for vms, nodes in CLUSTERS:
            runs = [_measure_one(testbed, image, vms, nodes) for _ in range(RUNS)]
            for phase in runs[0]:
                budget = BUDGETS.get((phase, vms))
                budgets = {} if budget is None else {"budget_wall_s": budget}
                times = [each[phase] for each in runs]
                yield row(phase, data_path="kernel", vms=vms, peers=nodes - 1, times=times, **budgets)
        begin = time.perf_counter()
    finally:
        lifecycle.down(find_place(name))
    yield row("testbed-down", peers=2, times=[time.perf_counter() - begin])


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
    # The directory of the jobs was changed last when the last of them went.
    left = 'while [ -n "$(ls /var/lib/pvc/jobs)" ]; do sleep 0.01; done; stat -c %.9Y /var/lib/pvc/jobs'
    clean = max(float(testbed.root(left, node)) for node in testbed.nodes())
    return {  # seconds by phase
        "script": float((home / "begun").read_text()) - start,
        "qemu": max(vm["started"] for vm in status) - start,
        "reachable": max(vm["reachable"] for vm in status) - start,
        "end-to-clean": clean - ended,
        "end-to-prompt": end - ended,
    }
