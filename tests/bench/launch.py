# SPDX-License-Identifier: Apache-2.0
"""The launcher of large clusters: how long until it knows that all VMs answer, what that takes, what nodes are sent.

The supervisors are one process that says what those of all nodes would (``_supervisors``); the launcher is real.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from pvc.ops.definition import Overrides, resolve
from pvc.ops.display import Display
from pvc.ops.handover import Handover
from pvc.ops.launch import Launcher, Mission
from pvc.plan.placement import place
from pvc.slurm.job import JobInfo
from tests.bench._rows import Row, row
from tests.unit.ops.worlds import make_config

SIZES = ((100, 10), (1_000, 100), (10_000, 1_000))
BUDGETS: dict[int, dict[str, float]] = {10_000: {"budget_process_mib": 150}}
_ROOT = Path(__file__).parents[2]
_SRUN = """#!/bin/sh
cd '{root}' && exec '{python}' -m tests.bench._supervisors '{sent}' "$@"
"""


def measure(*words: str) -> Iterator[Row]:
    """Each size in a process of its own, so that its memory can be told."""
    if words:
        yield _measure_one(int(words[0]), int(words[1]))
        return
    for vms, nodes in SIZES:
        argv = [sys.executable, "-m", "tests.bench", "launch", str(vms), str(nodes)]
        sys.stdout.write(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        sys.stdout.flush()


def _measure_one(vms: int, nodes: int) -> Row:
    with TemporaryDirectory() as name:
        home = Path(name)
        (home / "bin").mkdir()
        sent = home / "sent"
        (home / "bin/srun").write_text(_SRUN.format(root=_ROOT, python=sys.executable, sent=sent))
        (home / "bin/srun").chmod(0o755)
        os.environ.update(HOME=name, PATH=f"{home / 'bin'}:{os.environ['PATH']}")
        order = resolve(f"plain:{vms}", make_config(home), Overrides(), 1)
        names = tuple(f"node{number:04}" for number in range(nodes))
        job = JobInfo(7, "pvc", names, (-(-vms // nodes),) * nodes, None, None)
        placement = place(job.nodes, job.cpus, order.request)
        used: list[tuple[float, float]] = []

        def note() -> None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            used.append((time.perf_counter(), usage.ru_utime + usage.ru_stime))

        mission = Mission(Handover(order, wait=True, quiet=True, warn_s=()), ("true",), on_ready=note)
        note()
        code = Launcher(mission, (job,), placement, "pvc", Display(quiet=True)).run()
        if code:
            raise RuntimeError(f"the launcher ended with exit code {code}")
        (begin, cpu_before), (end, cpu_after) = used
        return row(
            "launch",
            vms=vms,
            peers=nodes - 1,
            times=[end - begin],
            cpu_s=round(cpu_after - cpu_before, 3),
            sent_to_each_node_bytes=int(sent.read_text()),
            process_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            **BUDGETS.get(vms, {}),
        )
