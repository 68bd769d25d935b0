# SPDX-License-Identifier: Apache-2.0
"""Prologs that Slurm forgets or runs too late: a step before its prolog, and jobs that end within it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.slurm.testbed import Snapshot, Testbed
from tests.waits import wait_until

# What slurmctld (not srun, which is the user's) sends to any slurmd waits for TCP to try again.
HOLD = "table inet held { chain out { type filter hook output priority 0; meta skuid slurm tcp dport 6818 drop; }; }"
# Jobs that are cancelled at many moments of their beginning, the same ones each time. Without --kill-command: salloc
# (22.05) would send SIGTERM to its child, too, within whose fork() its own handler waits for malloc's lock for ever.
SHORT_LIVES = """
import random, subprocess, time
chance = random.Random(4711)
words = ["salloc", "-Q", "-N2", "-n2", "--pvc=DEFINITION", "sleep", "2"]
for number in range(10):
    jobs = [subprocess.Popen(words, stderr=subprocess.DEVNULL) for _ in range(3)]
    time.sleep(chance.uniform(0, 0.4))
    while any(job.poll() is None for job in jobs):
        subprocess.run(["scancel", "--user=student"])
        time.sleep(chance.uniform(0, 0.1))
"""


@contextmanager
def no_prologs(tb: Testbed) -> Iterator[None]:
    """What slurmctld asks of nodes does not reach them; steps do."""
    tb.root(["nft", HOLD], "login")
    try:
        yield
    finally:
        tb.root(["nft", "delete", "table", "inet", "held"], "login")


def test_step_before_its_prolog(tb: Testbed, bare: str, before: dict[str, Snapshot]) -> None:
    """Then slurmd (22.05) starts it without any prolog, and takes the prolog for done when it is told to run it.

    A newer one (24.11) has the step wait for it, and drains the node if it does not come within 2 MessageTimeouts.
    """
    is_late = tb.slurm() < (24, 11)
    lengths = {node: (len(tb.log(node, "pvc-node")), len(tb.log(node, "slurm/slurmd"))) for node in ("n1", "n2")}
    script = tb.home() / "late.sh"
    script.write_text("#!/bin/sh\npvc status\nexec cat\n")
    script.chmod(0o755)

    def has_steps() -> bool:
        return all("launch task" in tb.log(node, "slurm/slurmd")[length:] for node, (_, length) in lengths.items())

    with no_prologs(tb):
        argv = ["pvc", "alloc", "-N2", "-w", "n[1-2]", "-E", "./late.sh", f"{bare}:2"]
        process = tb.start(argv, stdin=subprocess.PIPE)
        wait_until(has_steps, 60, "the steps have not come")
        lines = [process.stdout.readline() for _ in range(3)] if is_late else []
    lines += [process.stdout.readline() for _ in range(3 - len(lines))]
    out, err = process.communicate("", timeout=60)
    assert process.returncode == 0, err
    assert [line.split()[0] for line in lines[1:]] == ["vm0", "vm1"], out + err
    tb.wait_no_jobs()
    tb.assert_clean(before)
    tb.wait_idle()
    for node, (length, _) in lengths.items():
        told = tb.log(node, "pvc-node")[length:]
        assert ("ensure: 1 VMs" in told, "setup: " in told) == (is_late, not is_late)


def test_jobs_that_end_within_their_prolog(tb: Testbed, bare: str, before: dict[str, Snapshot]) -> None:
    tb.run(["python3", "-c", SHORT_LIVES.replace("DEFINITION", f"{bare}:2")], timeout=600)
    tb.wait_no_jobs()
    tb.assert_clean(before)
    tb.wait_idle()


@pytest.mark.parametrize(
    ("request_text", "answer"), [("1;cpus=2;nat:2", "ensure: 2 VMs"), ("1;nat:9", "refused"), ("1;nat:\t1", "refused")]
)
def test_request_of_a_steps_own_is_bounded_by_its_job(
    tb: Testbed, before: dict[str, Snapshot], request_text: str, answer: str
) -> None:
    """A user can make a step ask in a job without VMs: for what the job has, and no more."""
    length = len(tb.log("n1", "pvc-node"))
    step = ["env", f"SLURM_SPANK_PVC_REQUEST={request_text}", "srun", "true"]
    done = tb.run(["salloc", "-N1", "-w", "n1", "-n1", "-c4", *step], check=False)
    assert done.code == 0, done.err
    tb.wait_no_jobs()
    tb.assert_clean(before)
    assert answer in tb.log("n1", "pvc-node")[length:]
    tb.wait_idle()
