"""Prologs that Slurm forgets or runs too late: a step before its prolog, and jobs that end within it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.slurm.testbed import Snapshot, Testbed

# What slurmctld (not srun, which is the user's) sends to any slurmd waits for TCP to try again.
HOLD = "table inet held { chain out { type filter hook output priority 0; meta skuid slurm tcp dport 6818 drop; }; }"
# Jobs that are cancelled at any moment of their beginning. salloc may start its command after it was told of that.
SHORT_LIVES = """
import random, subprocess, time
words = ["salloc", "-Q", "--kill-command", "-N2", "-n2", "--pvc=SMALL:2", "sleep", "2"]
for number in range(10):
    jobs = [subprocess.Popen(words, stderr=subprocess.DEVNULL) for _ in range(3)]
    time.sleep(random.uniform(0, 0.4))
    while any(job.poll() is None for job in jobs):
        subprocess.run(["scancel", "--user=student"])
        time.sleep(random.uniform(0, 0.1))
"""


@contextmanager
def no_prologs(tb: Testbed) -> Iterator[None]:
    """What slurmctld asks of nodes does not reach them; steps do."""
    tb.root(["nft", HOLD], "login")
    try:
        yield
    finally:
        tb.root(["nft", "delete", "table", "inet", "held"], "login")


def test_step_before_its_prolog(tb: Testbed, small: str, before: dict[str, Snapshot]) -> None:
    """Then slurmd (22.05) starts it without any prolog, and takes the prolog for done when it is told to run it."""
    told_before = {node: len(tb.log(node, "pvc-node")) for node in ("n1", "n2")}
    script = tb.home() / "late.sh"
    script.write_text("#!/bin/sh\npvc status\nexec cat\n")
    script.chmod(0o755)
    with no_prologs(tb):
        argv = ["pvc", "alloc", "-N2", "-w", "n[1-2]", "-E", "./late.sh", f"{small}:2"]
        process = tb.start(argv, stdin=subprocess.PIPE)
        lines = [process.stdout.readline() for _ in range(3)]
    out, err = process.communicate("", timeout=60)
    assert process.returncode == 0, err
    assert [line.split()[0] for line in lines[1:]] == ["vm0", "vm1"], out + err
    tb.wait_no_jobs()
    tb.assert_clean(before)
    tb.wait_idle()
    for node, length in told_before.items():
        told = tb.log(node, "pvc-node")[length:]
        assert "ensure: 1 VMs" in told
        assert "setup: " not in told


def test_jobs_that_end_within_their_prolog(tb: Testbed, small: str, before: dict[str, Snapshot]) -> None:
    tb.run(["python3", "-c", SHORT_LIVES.replace("SMALL", small)], timeout=300)
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
