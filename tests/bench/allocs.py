# SPDX-License-Identifier: Apache-2.0
"""A long day: many clusters one after another, and many at once, and what pvc-node's memory becomes of it.

    python -m tests.bench allocs [COUNT [CROWD]]

On a testbed of three nodes, with VMs without a disk: COUNT clusters of student's, by turns on each node and each ended
before the next, then CROWD at the same time, by turns of student, teacher, mallory and root. ``failed`` must be 0.
``growth_mib`` is how much more the pvc-node that grew most has than after its TENTH cluster. ``worst``: the phases of
the one that took longest, until Slurm gave it nodes, until its script began (keys, prologs, supervisors, QEMU), until
the command was over. As root.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pvc.testbed import lifecycle
from pvc.testbed.place import find_place
from tests.bench._rows import Row, row
from tests.slurm.testbed import Testbed, find_pids, own_name, remove_stale, start_testbed

COUNT, CROWD, TENTH = 200, 40, 10
MOST_GROWTH_MIB = 5
USERS = ("student", "teacher", "mallory", "root")
TEMPLATE = "pxe: {resource-set: nat, memory: 64M}\n"
LIMIT_S = 900.0
# The launcher makes the cluster's directory as soon as the job has its nodes.
SCRIPT = 'stat -c %.9W "$HOME/.pvc/jobs/$SLURM_JOB_ID"; date +%s.%N'
COMMAND = f"cd; date +%s.%N; pvc alloc -Q -c 1 OPTIONS -E sh pxe -c '{SCRIPT}'; code=$?; date +%s.%N; exit $code"


@dataclass(frozen=True)
class Run:
    """One pvc alloc; seconds of its phases and of all, by name."""

    code: int
    said: str
    times: dict[str, float]


def measure(count: str = str(COUNT), crowd: str = str(CROWD)) -> Iterator[Row]:
    """In a row, then at once."""
    if os.geteuid() != 0:
        print("allocs: needs root, not measured", file=sys.stderr)
        return
    remove_stale()
    name = own_name("-bench")
    try:
        tb = start_testbed(name)
        tb.run(["srun", "-N3", "true"])
        for user in USERS:
            tb.run("cd; mkdir -p .pvc; cat >.pvc/templates.yaml", user=user, stdin=TEMPLATE)
        runs, memory, nodes = [], {}, tb.nodes()
        for i in range(int(count)):
            runs.append(_finish(_start(tb, "student", f"-w {nodes[i % len(nodes)]}")))
            if i + 1 == min(TENTH * len(nodes), int(count)):
                tb.wait_no_jobs()
                memory = _read_memory(tb)
        yield _describe(tb, "in-a-row", runs, memory)
        started = [_start(tb, USERS[i % len(USERS)]) for i in range(int(crowd))]
        yield _describe(tb, "at-once", [_finish(each) for each in started], memory, users=len(USERS))
    finally:
        lifecycle.down(find_place(name))


def _start(tb: Testbed, user: str, options: str = "") -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = tb.start(["sh", "-c", COMMAND.replace("OPTIONS", options)], user=user)
    return process


def _finish(process: subprocess.Popen[str]) -> Run:
    out, err = process.communicate(timeout=LIMIT_S)
    moments = [float(line) for line in out.split()]
    if len(moments) != 4:
        return Run(process.returncode or -1, err, {})
    begin, nodes, script, end = moments
    times = {"nodes": nodes - begin, "script": script - nodes, "after": end - script, "all": end - begin}
    return Run(process.returncode, err, times)


def _describe(tb: Testbed, phase: str, runs: Sequence[Run], memory: dict[str, float], **more: object) -> Row:
    tb.wait_no_jobs(LIMIT_S)
    now = _read_memory(tb)
    failed = [run for run in runs if run.code != 0]
    for run in failed[:5]:
        print(f"allocs: {phase}: ended with {run.code}: {run.said}", file=sys.stderr)
    well = [run.times for run in runs if run.times]
    worst = max(well, key=lambda times: times["all"])
    return row(
        phase,
        data_path="kernel",
        vms=1,
        times=[times["all"] for times in well],
        failed=len(failed),
        worst={name: round(value, 2) for name, value in worst.items()},
        memory_mib=round(max(now.values()), 1),
        growth_mib=round(max(now[node] - memory[node] for node in now), 1),
        budget_growth_mib=MOST_GROWTH_MIB,
        **more,
    )


def _read_memory(tb: Testbed) -> dict[str, float]:
    """What pvc-node has in memory, in MiB, by node."""
    found = {}
    for node in tb.nodes():
        (pid,) = find_pids(tb, node, r"pvc-node.* serve$")
        found[node] = int(tb.root(["awk", "/^VmRSS/ {print $2}", f"/proc/{pid}/status"], node)) / 1024
    return found
