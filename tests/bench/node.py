"""Set-up and tear-down of one node's share with 63 other nodes in the job: processes started and wall time.

Runs as root in namespaces of its own, with a real etcd, real devices, nftables and dnsmasq.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

SIZES = (1, 8, 32)
NODES = 64
RUNS = 5
BUDGETS = {
    8: {
        "budget_setup_forks": 10,
        "budget_setup_median_s": 0.25,
        "budget_teardown_forks": 6,
        "budget_teardown_median_s": 0.15,
    }
}
_INSIDE = "inside"


def measure(*words: str) -> Iterator[dict[str, object]]:
    """What ``_measure_inside`` yields, from inside the namespaces."""
    if words == (_INSIDE,):
        yield from _measure_inside()
        return
    if os.geteuid() != 0:
        print("node: needs root, not measured", file=sys.stderr)
        return
    wrapper = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    argv = [*wrapper, sys.executable, "-m", "tests.bench", "node", _INSIDE]
    sys.stdout.write(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout)
    sys.stdout.flush()


def _measure_inside() -> Iterator[dict[str, object]]:
    from pvc import run
    from pvc.model.host import JobFacts
    from pvc.node import setup, teardown
    from tests.host import node_world

    server = node_world.prepare()
    try:
        names = tuple(f"n{number}" for number in range(1, NODES + 1))
        hosts = "".join(f"10.99.0.{number} n{number}\n" for number in range(1, NODES + 1))
        (node_world.ROOT / "hosts").write_text("127.0.0.1 localhost\n" + hosts)
        context = node_world.context()
        context.prepare()
        for local in SIZES:
            job = JobFacts(12, 65534, 65534, "n1", names, (local,) * NODES)
            rows = []
            # The first run imports what a daemon has imported long ago.
            for _ in range(RUNS + 1):
                forks, begin = run.forks, time.perf_counter()
                setup.set_up(context, job, f"1;cpus=1;nat:{local * NODES}")
                middle, middle_forks = time.perf_counter(), run.forks
                teardown.tear_down(context, job.job_id)
                rows.append(
                    (middle - begin, middle_forks - forks, time.perf_counter() - middle, run.forks - middle_forks)
                )
            rows = rows[1:]
            yield {
                "local_vms": local,
                "remote_nodes": NODES - 1,
                "setup_median_s": round(statistics.median(row[0] for row in rows), 4),
                "setup_forks": max(row[1] for row in rows),
                "teardown_median_s": round(statistics.median(row[2] for row in rows), 4),
                "teardown_forks": max(row[3] for row in rows),
                **BUDGETS.get(local, {}),
            }
    finally:
        server.kill()
        server.wait()
