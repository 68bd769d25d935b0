# SPDX-License-Identifier: Apache-2.0
"""What Slurm's own configuration and life do to clusters: preemption, names of nodes, clocks, large numbers of jobs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from pvc.testbed import lifecycle
from pvc.testbed.place import find_place
from tests.slurm.clusters import Cluster, list_clusters
from tests.slurm.test_faults import kill
from tests.slurm.test_users import check_words
from tests.slurm.testbed import Snapshot, Testbed, end_processes, find_pids, own_name, start_testbed
from tests.waits import PATIENCE_S, wait_until

SKEW = Path(__file__).with_name("skew.c")
TEMPLATES = "pxe: {resource-set: nat, memory: 64M}\n"
# Partitions are for each way in which Slurm makes room for jobs of "high".
PREEMPTION = """
PreemptType=preempt/partition_prio
PreemptMode=SUSPEND,GANG
SchedulerTimeSlice=600
PartitionName=cancel Nodes=n1,n2 PriorityTier=1 PreemptMode=CANCEL MaxTime=INFINITE State=UP
PartitionName=grace Nodes=n1,n2 PriorityTier=1 PreemptMode=CANCEL GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=requeue Nodes=n1,n2 PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=suspend Nodes=n1,n2 PriorityTier=1 PreemptMode=SUSPEND MaxTime=INFINITE State=UP OverSubscribe=FORCE:1
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP OverSubscribe=FORCE:1
"""
# The nodes' names in Slurm resolve nowhere, and are not their hosts'.
NAMES = {"n1": "c1", "n2": "c2"}
SLURMD, SLURMCTLD = "^[^ ]*slurmd -D", "^[^ ]*slurmctld -D"
# As large as numbers of jobs are that no federation gave; the next one is the first again.
FIRST_JOB, LAST_JOB = 67_100_000, 67_108_863


@pytest.fixture(scope="module")
def ways() -> Iterator[Testbed]:
    """A testbed of two nodes that Slurm knows by other names than their hosts', and whose jobs have large numbers."""
    name = own_name("-ways")
    try:
        tb = start_testbed(name, nodes=2)
        conf = tb.place.state_dir / "etc" / "slurm" / "slurm.conf"
        text = conf.read_text() + PREEMPTION + f"FirstJobId={FIRST_JOB}\nMaxJobId={LAST_JOB}\nRebootProgram=/bin/true\n"
        text = re.sub(r"(?m)^NodeName=n(\d) ", r"NodeName=c\1 NodeHostname=n\1 ", text)
        conf.write_text(re.sub(r"(?m)Nodes=n1,n2", "Nodes=c1,c2", text))
        restart_slurm(tb)
        for user in ("student", "teacher"):
            tb.run("mkdir -p .pvc; cat >.pvc/templates.yaml", user=user, stdin=TEMPLATES)
        tb.run(["srun", "-N2", "true"])
        tb.wait_no_jobs()
        yield tb
    finally:
        lifecycle.down(find_place(name))


def restart_slurm(tb: Testbed) -> None:
    """With another slurm.conf, on all nodes; those are idle in the end."""
    for node in ("login", *tb.nodes()):
        program = "slurmctld" if node == "login" else "slurmd"
        end_processes(tb, node, f"^[^ ]*{program} -D")
        clean = "rm -rf /var/lib/slurm/slurmctld/*; " if node == "login" else ""
        tb.root(f"{clean}setsid /usr/sbin/{program} -D >>/var/log/{program}.log 2>&1 </dev/null &", node)
    tb.wait_idle()


@pytest.fixture
def nodes(ways: Testbed) -> Iterator[dict[str, Snapshot]]:
    """What every node holds before the test, and again after it."""
    before = {node: ways.snapshot(node) for node in ways.nodes()}
    yield before
    for user in ("student", "teacher"):
        ways.run(["scancel", f"--user={user}"], user=user, check=False)
    ways.wait_no_jobs()
    ways.assert_clean(before)
    ways.wait_idle()


class Rival:
    """Another user's job, which gets the nodes of others."""

    def __init__(self, tb: Testbed) -> None:
        self.tb = tb
        argv = ["sbatch", "--parsable", "-p", "high", "-N2", "-n2", "-c16", "-o", "/dev/null"]
        self.job_id = tb.run([*argv, "--wrap", "sleep 1800"], user="teacher").out.strip()

    def wait_running(self) -> Rival:
        wait_until(lambda: state_of(self.tb, self.job_id) == "RUNNING", PATIENCE_S, "the rival does not run")
        return self

    def end(self) -> None:
        self.tb.run(["scancel", self.job_id], user="teacher")


def state_of(tb: Testbed, job_id: int | str) -> str:
    return tb.run(["squeue", "-h", "-a", "-t", "all", "-o", "%T", "-j", str(job_id)]).out.strip()


def phases(tb: Testbed, job_id: int) -> list[str]:
    rows = json.loads(tb.run(["pvc", "status", "--json", "-j", str(job_id)]).out)["vms"]
    return [row["phase"] for row in rows]


def iter_until(lines: IO[str], words: str) -> Iterator[str]:
    """What is printed, until and with the line that has these words; all of it, if none has."""
    for line in lines:
        yield line
        if words in line:
            return


def test_a_cluster_makes_room(ways: Testbed, nodes: dict[str, Snapshot]) -> None:
    """PreemptMode=CANCEL without a time of grace: its user reads why, and the rival gets clean nodes."""
    cluster = Cluster(ways, "pxe:2", "-p", "cancel", "-N2", size=()).wait_running()
    try:
        rival = Rival(ways).wait_running()
        said = cluster.end()
        assert f"job {cluster.job_id} was preempted: Slurm wanted its nodes for another job" in said
        assert cluster.process.returncode == 4
        check_words(said)
        rival.end()
    finally:
        cluster.close()


def test_a_cluster_with_a_time_of_grace(ways: Testbed, nodes: dict[str, Snapshot]) -> None:
    """Slurm's first SIGTERM is a warning: the VMs go on until the grace is over, which their user reads.

    One node hears of it later. Until then Slurm says of the job that it is being signalled, and not that it runs. And
    its controller takes longer to say so than supervisors wait for a launcher that does not answer.
    """
    cluster = Cluster(ways, "pxe:2", "-p", "grace", "-N2", size=()).wait_running()
    try:
        for node in ways.nodes():
            kill(ways, node, SLURMD, signal.SIGSTOP)
        rival = Rival(ways)
        wait_until(lambda: state_of(ways, cluster.job_id) == "SIGNALING", PATIENCE_S, "the cluster need not go")
        kill(ways, "login", SLURMCTLD, signal.SIGSTOP)
        kill(ways, "n1", SLURMD, signal.SIGCONT)
        time.sleep(6)
        kill(ways, "login", SLURMCTLD, signal.SIGCONT)
        said = list(iter_until(cluster.process.stdout, "its VMs end"))
        kill(ways, "n2", SLURMD, signal.SIGCONT)
        line = said[-1]
        left = re.search(rf"job {cluster.job_id} and its VMs end in (\d+) s: Slurm wants its nodes for another", line)
        assert left is not None, said
        assert 0 < int(left[1]) <= 20, line
        assert phases(ways, cluster.job_id) == ["booting", "booting"]
        said = cluster.end()
        assert f"job {cluster.job_id} was preempted" in said
        assert cluster.process.returncode == 4
        rival.wait_running().end()
    finally:
        cluster.close()


def test_a_batch_cluster_is_put_back_into_the_queue(ways: Testbed, nodes: dict[str, Snapshot]) -> None:
    """By preemption, scontrol requeue and requeuehold: it boots anew, and until then is told as waiting."""
    ways.run("printf '#!/bin/sh\\ntouch started\\nexec sleep 1800\\n' >job.sh; chmod +x job.sh; rm -f started")
    done = ways.run(["pvc", "batch", "-p", "requeue", "-N2", "--requeue", "-o", "said", "-E", "./job.sh", "pxe:2"])
    job_id = int(re.findall(r"batch job (\d+)", done.out + done.err)[0])

    def wait_started() -> None:
        wait_until((ways.home() / "started").exists, PATIENCE_S, "the script has not started")
        assert phases(ways, job_id) == ["booting", "booting"]
        (ways.home() / "started").unlink()

    def tells_pending(words: list[str]) -> bool:
        done = ways.run(["pvc", *words], check=False)
        said = "does not run yet: its job is pending" in done.err
        assert (done.code, said or "Slurm has put its job back into the queue" in done.err) == (4, True), (words, done)
        return said

    def wait_queued() -> None:
        wait_until(lambda: state_of(ways, job_id) == "PENDING", PATIENCE_S, "it is not in the queue")
        (row,) = list_clusters(ways)
        assert str(row["state"]).startswith("pending ("), row
        # Until the launcher of the earlier run has put its things away, what it ran is told as ended.
        wait_until(lambda: tells_pending(["status"]), PATIENCE_S, "status does not say that it waits")
        for words in (["status"], ["exec", "vm0", "true"], ["ssh", "vm0", "true"], ["stop"]):
            assert tells_pending(words), words

    wait_started()
    rival = Rival(ways).wait_running()
    wait_queued()
    rival.end()
    # Slurm holds a job that was put back for two minutes, unless somebody says when.
    ways.root(f"scontrol update JobId={job_id} StartTime=now", "login")
    wait_started()
    ways.root(f"scontrol requeuehold {job_id}", "login")
    wait_queued()
    ways.run(["scancel", str(job_id)])
    said = (ways.home() / "said").read_text()
    assert f"job {job_id} has ended under its VMs (scancel, requeue, or" in said, said
    check_words(said)


def test_a_cluster_that_stands_still_for_another(ways: Testbed, nodes: dict[str, Snapshot]) -> None:
    """PreemptMode=SUSPEND: all commands say so at once, and the VMs go on later as if nothing had been."""
    del nodes
    cluster = Cluster(ways, "pxe:2", "-p", "suspend", "-N2", size=()).wait_running()
    try:
        rival = Rival(ways).wait_running()
        wait_until(lambda: state_of(ways, cluster.job_id) == "SUSPENDED", PATIENCE_S, "it is not suspended")
        (row,) = list_clusters(ways)
        assert row["state"] == "suspended"
        for words in (["status"], ["exec", "vm0", "true"], ["ssh", "vm0", "true"], ["console", "--log", "vm0"]):
            done = ways.run(["pvc", words[0], "-j", str(cluster.job_id), *words[1:]], check=False)
            assert (done.code, f"job {cluster.job_id} is suspended" in done.err) == (4, True), (words, done)
            check_words(done.err)
        for node in ways.nodes():
            states = ways.root("ps -eo stat=,args= | grep [q]emu-system | cut -c1", node).split()
            assert states, node
            assert set(states) <= {"T", "D", "S"}, states
        rival.end()
        wait_until(lambda: state_of(ways, cluster.job_id) == "RUNNING", PATIENCE_S, "it does not go on")
        assert phases(ways, cluster.job_id) == ["booting", "booting"]
        ways.run(["pvc", "stop", "-j", str(cluster.job_id)])
        cluster.end()
    finally:
        cluster.close()


def test_nodes_that_slurm_calls_otherwise(ways: Testbed, nodes: dict[str, Snapshot]) -> None:
    """NodeName differs from the host's name, and resolves nowhere: networks, daemons, reclaims know who is meant."""
    cluster = Cluster(ways, "pxe:2", "-N2", size=()).wait_running()
    try:
        assert FIRST_JOB <= cluster.job_id <= LAST_JOB
        (row,) = list_clusters(ways)
        assert (row["job_id"], row["nodes"]) == (cluster.job_id, "c[1-2]")
        rows = json.loads(ways.run(["pvc", "status", "--json", "-j", str(cluster.job_id)]).out)["vms"]
        assert [row["node"] for row in rows] == ["c1", "c2"]
        done = ways.run(["pvc", "doctor", "-j", str(cluster.job_id)], check=False, timeout=120)
        assert done.code == 0, done.out + done.err
        for host, name in NAMES.items():
            kill(ways, host, "pvc-node serve")
            wait_until(lambda host=host: find_pids(ways, host, "pvc-node serve"), PATIENCE_S, f"no pvc-node on {host}")
            ways.root(["pvc-node", "reclaim"], host)
            said = json.loads(ways.root(["pvc-node", "status", "--json"], host))
            assert said["node"] == name, said
            assert f"{cluster.job_id}" in json.dumps(said), said
            assert "cannot ask Slurm" not in ways.log(host, "pvc-node")
        assert phases(ways, cluster.job_id) == ["booting", "booting"]
        # What a crash leaves is removed after the boot; the epilog never runs there.
        ways.crash("n2")
        ways.boot("n2", wait=False)
        wait_until(lambda: "of an earlier boot" in ways.log("n2", "pvc-node"), PATIENCE_S, "nothing was removed")
    finally:
        cluster.close()
    ways.run(["pvc", "ps"])


def test_what_administrators_do_under_a_cluster(ways: Testbed, nodes: dict[str, Snapshot]) -> None:
    """It goes on while nodes are drained and daemons start again, and ends with a node that is set down."""
    del nodes
    cluster = Cluster(ways, "pxe:2", "-N2", size=()).wait_running()
    try:
        ways.root("scontrol update NodeName=c1 State=DRAIN Reason=later; scontrol reconfigure", "login")
        assert len(find_pids(ways, "n2", "^[^ ]*slurmd -D")) == 1
        end_processes(ways, "n2", "^[^ ]*slurmd -D")
        ways.root("setsid /usr/sbin/slurmd -D >>/var/log/slurmd.log 2>&1 </dev/null &", "n2")
        done = ways.run(["pvc", "doctor", "-j", str(cluster.job_id)], check=False, timeout=120)
        assert done.code == 0, done.out + done.err
        ways.root("scontrol update NodeName=c1 State=RESUME", "login")
        # One is to be rebooted when it has no job, and one is called failing: both keep what runs.
        ways.root("scontrol reboot ASAP c2; scontrol update NodeName=c1 State=FAIL Reason=disk", "login")
        wait_until(lambda: ways.node_states()["c1"].startswith("fail"), PATIENCE_S, lambda: repr(ways.node_states()))
        assert phases(ways, cluster.job_id) == ["booting", "booting"]
        ways.root("scontrol cancel_reboot c2; scontrol update NodeName=c1 State=RESUME", "login")
        assert phases(ways, cluster.job_id) == ["booting", "booting"]
        ways.root("scontrol update NodeName=c1 State=DOWN Reason=broken", "login")
        said = cluster.end()
        assert f"job {cluster.job_id} has ended: Slurm has lost c1" in said
        assert cluster.process.returncode == 4
    finally:
        cluster.close()
        ways.wait_no_jobs()
        ways.root("scontrol update NodeName=c1 State=RESUME || true", "login")


@pytest.fixture
def wrong_clock(ways: Testbed, request: pytest.FixtureRequest) -> Iterator[int]:
    """All that runs on n2 has a clock which is that many seconds ahead.

    Slurm's own limits are 300 s (munge), and 120 s for a node that is ahead (credentials of jobs).
    """
    library = ways.place.state_dir / "etc" / "slurm" / "skew.so"
    argv = ["gcc", "-shared", "-fPIC", "-O2", f"-DOFFSET={request.param}", "-o", library, SKEW, "-ldl"]
    subprocess.run(argv, check=True)
    try:
        restart_node(ways, "n2", "echo /etc/slurm/skew.so >/etc/ld.so.preload")
        yield request.param
    finally:
        restart_node(ways, "n2", "rm -f /etc/ld.so.preload")


def restart_node(tb: Testbed, node: str, words: str) -> None:
    """All of a node's services, behind ``words``."""
    tb.root(words, node)
    munged = "setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged --foreground"
    for program, start in (("munged", munged), ("slurmd", "/usr/sbin/slurmd -D")):
        end_processes(tb, node, f"^[^ ]*{program}( |$)")
        tb.root(f"setsid {start} >>/var/log/restart.log 2>&1 </dev/null &", node)
    before = find_pids(tb, node, "pvc-node serve")
    tb.root(["kill", *map(str, before)], node)
    wait_until(lambda: set(find_pids(tb, node, "pvc-node serve")) - set(before), PATIENCE_S, f"no pvc-node on {node}")
    tb.root("while [ ! -S /run/pvc/node.sock ]; do sleep 0.05; done", node)
    tb.wait_idle()


@pytest.mark.parametrize("wrong_clock", [240], indirect=True)
def test_a_node_whose_clock_is_too_wrong_for_slurm(ways: Testbed, wrong_clock: int, nodes: dict[str, Snapshot]) -> None:
    """No step starts there: it is said why, and of which node."""
    del wrong_clock, nodes
    done = ways.run(["pvc", "alloc", "-Q", "-N2", "-E", "true", "pxe:2"], check=False)
    assert done.code == 6, done
    assert "pvc: c2: the supervisor has ended: Job credential expired\nhint: Slurm's credentials hold" in done.err


@pytest.mark.parametrize("wrong_clock", [-240], indirect=True)
def test_a_node_whose_clock_is_wrong(ways: Testbed, wrong_clock: int, nodes: dict[str, Snapshot]) -> None:
    """Its VMs are reached, ages are right, and the end is told by the clock of Slurm's controller."""
    del nodes
    apart = int(ways.root("date +%s", "n2")) - int(ways.root("date +%s", "n1"))
    assert abs(apart - wrong_clock) < 30
    ways.run("printf '#!/bin/sh\\nexec sleep 1800\\n' >job.sh; chmod +x job.sh; rm -f said")
    # The launcher of one runs on the node with the wrong clock, that of the other asks it. A moment is left out that
    # is over before the VMs run.
    moments = [word for left_s in range(235, 100, -15) for word in ("--warn", f"{left_s}s")]
    argv = ["pvc", "batch", "-w", "c2", "-N1", "--time=4", *moments, "-o", "said", "-E", "./job.sh", "pxe:2"]
    done = ways.run(argv)
    job_id = int(re.findall(r"batch job (\d+)", done.out + done.err)[0])
    cluster = Cluster(ways, "pxe:2", "-N2", size=()).wait_running()
    warning = re.compile(rf"job {job_id} and its VMs end in (\d) min(?:ute)?s? ?(\d*)")
    said = ways.home() / "said"
    try:
        found = wait_until(lambda: said.exists() and warning.findall(said.read_text()), PATIENCE_S, "nobody warns")
        end = ways.run(["squeue", "-h", "-j", str(job_id), "-o", "%e"], env={"SLURM_TIME_FORMAT": "%s"}).out
        minutes, seconds = found[-1]
        assert abs(60 * int(minutes) + int(seconds or 0) - (int(end) - time.time())) < 60, found
        for each in ways.jobs():
            vms = json.loads(ways.run(["pvc", "status", "--json", "-j", each]).out)["vms"]
            now = time.time()
            assert all(-5 < now - vm["started"] < 180 for vm in vms), (now, vms)
            assert all(-5 < now - vm["since"] < 180 for vm in vms), (now, vms)
        done = ways.run(["pvc", "doctor", "-j", str(cluster.job_id)], check=False, timeout=120)
        assert done.code == 0, done.out + done.err
        ways.run(["scancel", "--user=student"])
        told = cluster.end() + said.read_text()
    finally:
        cluster.close()
    ages = re.findall(r"after ([\d.]+) s", told)
    assert ages, told
    assert all(float(age) < 180 for age in ages), ages
