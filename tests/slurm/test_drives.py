# SPDX-License-Identifier: Apache-2.0
"""Persistent drives among users and nodes of a real cluster: who has one, and what a node that crashed leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pvc.slurm.witness import parse_node
from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Snapshot, Testbed
from tests.waits import wait_until

TEMPLATE = """
db:
  image: small
  persistent-drives:
    - /home/student/data.raw: {size: 16M}
each:
  image: small
  persistent-drives:
    - /home/student/each-%{vm_rank}: {size: 1M}
"""


@pytest.fixture
def templates(tb: Testbed, small: str) -> Iterator[None]:
    del small
    home = tb.home()
    tb.run(["mkdir", "-p", "-m", "700", ".pvc"])
    path = home / ".pvc" / "templates.yaml"
    path.write_text(TEMPLATE.replace("/home/student", str(tb.run(["pwd"]).out.strip())))
    yield
    path.unlink()
    for drive in (*home.glob("data.raw"), *home.glob("each-*")):
        drive.unlink()


def refuse(tb: Testbed) -> str:
    """What another job is told that wants the drive."""
    done = tb.run(["pvc", "alloc", "-c", "2", "-E", "./sleeper.sh", "db"], check=False, timeout=300)
    assert done.code == 7, done
    return done.out + done.err


def ask_witness(tb: Testbed, job_id: int, node: str) -> str:
    """What a node with file systems of weak locks would learn from Slurm of a lease."""
    code = (
        "from pvc.model.drive import Lease, Mmp\n"
        "from pvc.plan.drives import judge_by_slurm\n"
        "from pvc.slurm.witness import read_witness\n"
        f"lease = Lease('student', 'test', {job_id}, 'c', {node!r}, 'b', 'vm0', 4e9, Mmp.YES)\n"
        f"print(judge_by_slurm(lease, read_witness({job_id}, {node!r})).value)\n"
    )
    return tb.run([tb.python, "-c", code], node="n2").out.strip()


@pytest.mark.usefixtures("templates")
def test_a_second_job_is_told_who_has_the_drive_and_a_crash_frees_it(tb: Testbed, before: dict[str, Snapshot]) -> None:
    home = tb.home()
    first = Cluster(tb, "db", "-w", "n1").wait_running()
    try:
        assert ask_witness(tb, first.job_id, "n1") == "alive"
        said = refuse(tb)
        assert f"data.raw is in use by vm0 of student's job {first.job_id} on node n1, since" in said
        assert f"pvc stop -j {first.job_id}" in said
        wait_until(lambda: len(tb.jobs()) == 1, 120, "the refused job has not ended")
        tb.crash("n1")
        # The lease is there, and its holder is not: nobody has to clean up, or to wait for the node.
        assert len(list(home.glob(".data.raw.pvc-lease.*"))) == 1
        second = Cluster(tb, "db", "-w", "n2").wait_running()
        try:
            (path,) = home.glob(".data.raw.pvc-lease.*")
            lease = json.loads(path.read_text())
            assert (lease["node"], lease["user"]) == ("n2", "student")
            assert lease["job_id"] > first.job_id
            second.job_id = lease["job_id"]  # squeue shows both
        finally:
            tb.run(["scancel", str(second.job_id)])
            second.end()
    finally:
        first.close()
    tb.boot("n1")
    tb.wait_no_jobs()
    assert not list(home.glob(".*.pvc-*"))
    wait_until(lambda: ask_witness(tb, first.job_id, "n1") == "dead", 120, "Slurm does not know that the job is over")
    assert ask_witness(tb, 4_000_000, "n1") == "dead"  # forgotten long ago
    assert ask_witness(tb, 4_000_000, "n17") == "unknown"
    answers, booted = parse_node(tb.root("SLURM_TIME_FORMAT=%s scontrol -o show node n1", "login"))
    assert answers
    assert booted is not None
    tb.assert_clean({node: facts for node, facts in before.items() if node != "n1"})


@pytest.mark.usefixtures("templates")
def test_each_vm_has_its_own_and_two_are_told_before_there_is_a_job(tb: Testbed) -> None:
    done = tb.run(["pvc", "alloc", "db:2"], check=False)
    assert done.code == 2
    assert "2 VMs of this cluster would write to the persistent drive" in done.err
    made = Cluster(tb, "each:3", "-N", "3").wait_running()
    try:
        assert sorted(path.name for path in tb.home().glob("each-*")) == ["each-0", "each-1", "each-2"]
        tb.run(["pvc", "stop", "-j", str(made.job_id)], timeout=300)
        made.end()
    finally:
        made.close()
    assert not list(tb.home().glob(".*.pvc-*"))
