# SPDX-License-Identifier: Apache-2.0
"""Whatever is killed, whenever: nothing of a cluster stays, and the nodes stay in service."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Snapshot, Testbed, find_pids
from tests.waits import PATIENCE_S, wait_until

# The pattern does not match itself.
KILL = """echo looks
until ls /var/lib/pvc/jobs/*/FILE >/dev/null 2>&1; do sleep 0.01; done
kill -9 $(pgrep -f '[p]vc-node serve')
"""
ETCDCTL = "ETCDCTL_API=3 etcdctl --endpoints=http://login:2379"


@pytest.fixture
def cluster(tb: Testbed, bare: str, before: dict[str, Snapshot]) -> Iterator[Cluster]:
    """VMs that run and have no guest: who is killed is around them."""
    del before  # taken before the cluster is
    made = Cluster(tb, f"{bare}:4", "-N", "3").wait_running()
    yield made
    made.close()


@pytest.fixture
def guests(tb: Testbed, small: str, before: dict[str, Snapshot]) -> Iterator[Cluster]:
    """The same with a guest that answers, in each."""
    del before
    made = Cluster(tb, f"{small}:4", "-N", "3").wait_running()
    yield made
    made.close()


def kill(tb: Testbed, node: str, pattern: str, number: int = signal.SIGKILL) -> None:
    found = find_pids(tb, node, pattern)
    assert found, f"nothing like {pattern} runs on {node}"
    tb.root(["kill", f"-{number}", *map(str, found)], node)


def assert_over(tb: Testbed, before: dict[str, Snapshot], timeout: float = PATIENCE_S) -> None:
    tb.wait_no_jobs(timeout)
    tb.assert_clean(before, timeout)
    tb.wait_idle()
    assert tb.run(["sinfo", "-h", "-R"]).out == ""
    jobs = tb.home() / ".pvc" / "jobs"
    tb.run(["pvc", "ps"])  # sweeps what a killed launcher left in the user's home
    assert not jobs.exists() or list(jobs.iterdir()) == []


def test_stop(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    tb.run(["pvc", "stop", "-j", str(cluster.job_id)])
    cluster.end()
    assert_over(tb, before)


def test_scancel(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    tb.run(["scancel", str(cluster.job_id)])
    cluster.end()
    assert cluster.process.returncode != 0
    assert_over(tb, before)


def test_walltime(tb: Testbed, before: dict[str, Snapshot], bare: str) -> None:
    made = Cluster(tb, f"{bare}:4", "-N", "3").wait_running()
    # Limits are whole minutes, and slurmctld looks at them twice a minute.
    tb.root(["scontrol", "update", f"JobId={made.job_id}", "TimeLimit=1"], "login")
    made.end(timeout=300)
    assert_over(tb, before)


@pytest.mark.parametrize(
    "who", ["^[^ ]*python[^ ]* .*pvc launch", "^salloc", "pvc launch"], ids=["launcher", "salloc", "both"]
)
def test_launcher_killed(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster, who: str) -> None:
    kill(tb, "login", who)
    cluster.end()
    assert_over(tb, before)


def test_supervisor_killed(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    kill(tb, "n1", "pvc supervise")
    wait_until(lambda: not find_pids(tb, "n1", "qemu-system"), 120, "QEMU outlived its supervisor")
    status = tb.run(["pvc", "status", "-j", str(cluster.job_id)], check=False)
    assert "vm0" in status.out
    assert "n1" in status.out + status.err
    tb.run(["pvc", "stop", "-j", str(cluster.job_id)], check=False)
    cluster.end()
    assert_over(tb, before)


def test_qemu_killed(tb: Testbed, before: dict[str, Snapshot], guests: Cluster) -> None:
    kill(tb, "n3", "qemu-system")
    argv = ["pvc", "status", "-j", str(guests.job_id), "--json"]
    wait_until(lambda: '"failed"' in tb.run(argv, check=False).out, 120, "nobody noticed that QEMU died")
    assert tb.run(["pvc", "wait", "vm0", "--timeout", "300s", "-j", str(guests.job_id)], timeout=300).code == 0
    tb.run(["scancel", str(guests.job_id)])
    guests.end()
    assert_over(tb, before)


def test_daemon_killed_while_vms_run(tb: Testbed, before: dict[str, Snapshot], guests: Cluster) -> None:
    for node in tb.nodes():
        kill(tb, node, "pvc-node serve")
    assert tb.run(["pvc", "wait", "--timeout", "300s", "-j", str(guests.job_id)], timeout=300).code == 0
    tb.run(["scancel", str(guests.job_id)])
    guests.end()
    wait_daemons(tb)
    assert_over(tb, before)


def test_daemon_killed_before(tb: Testbed, before: dict[str, Snapshot], bare: str) -> None:
    for node in tb.nodes():
        kill(tb, node, "pvc-node serve")
    made = Cluster(tb, f"{bare}:4", "-N", "3").wait_running()
    tb.run(["scancel", str(made.job_id)])
    made.end()
    wait_daemons(tb)
    assert_over(tb, before)


@pytest.mark.parametrize("file", ["record.json", "actions", "inputs.json", "plan.json"])
def test_daemon_killed_in_the_set_up(tb: Testbed, before: dict[str, Snapshot], bare: str, file: str) -> None:
    """With the real prolog around it, once a file of the ledger is there; test_node.py kills it at each effect."""
    argv = ["timeout", "300", "sh", "-c", KILL.replace("FILE", file)]
    killers = [tb.start(argv, node=node, user="root") for node in tb.nodes()]
    for killer in killers:
        assert killer.stdout.readline() == "looks\n"
    made = Cluster(tb, f"{bare}:4", "-N", "3").wait_running()
    for killer in killers:
        _, err = killer.communicate(timeout=PATIENCE_S)
        assert killer.returncode == 0, err
    tb.run(["scancel", str(made.job_id)])
    made.end()
    wait_daemons(tb)
    assert_over(tb, before)


def test_membership_without_a_ledger(tb: Testbed, before: dict[str, Snapshot]) -> None:
    """A node whose disk was lost no longer knows the job that etcd counts it to."""
    keys = {"/pvc/v1/jobs/4000000/nodes/n2": "10.99.0.12", "/pvc/v1/jobs/4000000/vni/nat": "4242"}
    for key, value in {**keys, "/pvc/v1/vni/4242": "4000000"}.items():
        tb.root(f"{ETCDCTL} --user=root:$(cat /etc/pvc/etcd-password) put {key} {value}", "n2")
    assert tb.snapshot("n2").etcd != before["n2"].etcd
    kill(tb, "n2", "pvc-node serve")
    wait_daemons(tb)
    assert_over(tb, before)


DAMAGES = {
    "a field of another type": 'sed -i \'s/"uid":/"uid":"nobody","was":/\' record.json',
    "a truncated record": "truncate -s 20 record.json",
    "an action without its fields": "sed -i '$s/{.*}/{}/' actions",
    "nothing at all": "rm -r $PWD",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_ledgers_that_are_not_understood(
    tb: Testbed, before: dict[str, Snapshot], cluster: Cluster, damage: str
) -> None:
    """A cluster goes on whatever its ledger says, through a restart of pvc-node, and leaves nothing at its end."""
    tb.root(f"cd /var/lib/pvc/jobs/{cluster.job_id} && {DAMAGES[damage]}", "n2")
    kill(tb, "n2", "pvc-node serve")
    wait_daemons(tb)
    log = f"job {cluster.job_id}: .*(is not understood|no record says)"
    wait_until(lambda: re.search(log, tb.log("n2", "pvc-node")) is not None, lack="no word of it")
    assert tb.root(["ip", "netns", "list"], "n2").startswith(f"pvc-{cluster.job_id}")
    vms = json.loads(tb.run(["pvc", "status", "--json", "-j", str(cluster.job_id)]).out)["vms"]
    assert {vm["phase"] for vm in vms} <= {"booting", "reachable"}
    tb.run(["scancel", str(cluster.job_id)])
    cluster.end()
    assert_over(tb, before)


def test_records_of_a_later_minor_version(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    """As after a downgrade: what is not known is left out, and all else is undone."""
    add = 'sed -i \'s/"version":"1[.]0"/"version":"1.9","colour":"blue"/\''
    tb.root(f"cd /var/lib/pvc/jobs/{cluster.job_id} && {add} record.json plan.json inputs.json actions", "n2")
    tb.root(f"""echo '["AddColour",{{"netns":"pvc-1"}}]' >> /var/lib/pvc/jobs/{cluster.job_id}/actions""", "n2")
    kill(tb, "n2", "pvc-node serve")
    wait_daemons(tb)
    vms = json.loads(tb.run(["pvc", "status", "--json", "-j", str(cluster.job_id)]).out)["vms"]
    assert {vm["phase"] for vm in vms} <= {"booting", "reachable"}
    tb.run(["scancel", str(cluster.job_id)])
    cluster.end()
    assert_over(tb, before)
    assert f"job {cluster.job_id}: /var/lib" not in tb.log("n2", "pvc-node")


def test_records_of_another_major_version(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    """They are for whoever wrote them: nothing is undone, no node is drained, and it is not said again and again."""
    where = f"/var/lib/pvc/jobs/{cluster.job_id}"
    tb.root(f'cd {where} && sed -i \'s/"version":"1[.]0"/"version":"2.0"/\' *', "n2")
    kill(tb, "n2", "pvc-node serve")
    wait_daemons(tb)
    words = f"job {cluster.job_id}: {where}/record.json is not understood: it is of format 2.0, and this pvc "
    wait_until(lambda: words in tb.log("n2", "pvc-node"), lack="no word of it")
    tb.run(["scancel", str(cluster.job_id)])
    cluster.end()
    tb.wait_no_jobs()
    assert tb.run(["sinfo", "-h", "-R"]).out == ""
    assert f"pvc-{cluster.job_id}" in tb.root(["ip", "netns", "list"], "n2")
    said = tb.log("n2", "pvc-node").count("is of format 2.0")
    time.sleep(20)  # more than a round of looking for orphans
    assert tb.log("n2", "pvc-node").count("is of format 2.0") == said
    tb.root("pvc-node repair --yes", "n2")
    assert_over(tb, before)


def test_slurmd_killed(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    kill(tb, "n2", "/usr/sbin/slurmd")
    tb.run(["scancel", str(cluster.job_id)])
    # The job cannot end while n2 is silent; whoever looks after the node starts its slurmd again.
    tb.root("setsid /usr/sbin/slurmd -D </dev/null >/dev/null 2>&1 &", "n2")
    cluster.end()
    assert_over(tb, before)


def test_node_crash_and_boot(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    tb.crash("n2")
    tb.boot("n2")
    cluster.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        cluster.end(60)
    tb.run(["scancel", str(cluster.job_id)], check=False)
    # A booted node has what every boot makes; what counts is that nothing of the job is there.
    tb.wait_no_jobs()
    rest = {node: snapshot for node, snapshot in before.items() if node != "n2"}
    tb.assert_clean(rest)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not leftovers(tb, "n2", cluster.job_id), 120, "the crashed node kept something")
    assert leftovers(tb, "n2", cluster.job_id) == []
    tb.wait_idle()


def test_dnsmasq_and_etcd_lost_under_a_running_cluster(
    tb: Testbed, before: dict[str, Snapshot], cluster: Cluster
) -> None:
    kill(tb, "n1", "dnsmasq")
    # Stopped, not killed: nobody would start it again.
    kill(tb, "login", "^[^ ]*etcd ", signal.SIGSTOP)
    try:
        assert tb.run(["pvc", "status", "-j", str(cluster.job_id)]).code == 0
        tb.run(["scancel", str(cluster.job_id)])
        cluster.end()
        tb.wait_no_jobs()
    finally:
        kill(tb, "login", "^[^ ]*etcd ", signal.SIGCONT)
    # The nodes are told later what they could not tell etcd at once.
    assert_over(tb, before)


def test_etcd_lost_before_the_set_up(tb: Testbed, before: dict[str, Snapshot], bare: str) -> None:
    """A cluster without identifiers is refused with the reason, and the nodes stay in service."""
    kill(tb, "login", "^[^ ]*etcd ", signal.SIGSTOP)
    try:
        done = tb.run(["pvc", "alloc", "-Q", "-N", "2", f"{bare}:2", "true"], check=False, timeout=300)
    finally:
        kill(tb, "login", "^[^ ]*etcd ", signal.SIGCONT)
    assert done.code == 5, done.err
    assert "etcd at login:2379" in done.err
    assert_over(tb, before)
    tb.run(["pvc", "alloc", "-Q", "-N", "2", f"{bare}:2", "true"], timeout=300)
    assert_over(tb, before)


def leftovers(tb: Testbed, node: str, job_id: int) -> list[str]:
    """What of a job is on a node, and what of the node is in etcd."""
    snapshot = tb.snapshot(node)
    # Not any number after a slash: a prefix has a length, too.
    words = re.compile(rf"(pvc-|nat){job_id}(?!\d)|(jobs|pvc)/{job_id}(?![\w.-])|qemu-system|dnsmasq")
    places: list[Any] = [snapshot.processes, snapshot.links, snapshot.nftables, snapshot.mounts, snapshot.files]
    found = [text for place in places for text in place if words.search(f"{text}")]
    return found + [text for text in snapshot.etcd if text.startswith("/pvc/")]


def wait_daemons(tb: Testbed) -> None:
    """Until init has restarted pvc-node everywhere, so that nodes can be compared."""
    for node in tb.nodes():
        wait_until(lambda node=node: find_pids(tb, node, "pvc-node serve"), 120, f"no pvc-node on {node}")


def test_the_suite_can_see_what_is_left(tb: Testbed, before: dict[str, Snapshot]) -> None:
    """The comparison itself works: a file, a device and a process are noticed."""
    tb.root("ip link add dummy99 type veth peer name dummy98; touch /var/tmp/pvc-left", "n1")
    with pytest.raises(AssertionError, match="dummy99"):
        tb.assert_clean(before, timeout=0)
    tb.root("ip link del dummy99; rm /var/tmp/pvc-left", "n1")
    tb.assert_clean(before)


def test_a_fault_of_the_node_drains_it_with_the_reason(tb: Testbed, before: dict[str, Snapshot], bare: str) -> None:
    tb.root(["mount", "-t", "tmpfs", "none", "/dev/net"], "n1")
    try:
        done = tb.run(["pvc", "alloc", "-w", "n1", bare, "true"], check=False, timeout=300)
        assert done.code != 0
        reasons = tb.run(["sinfo", "-h", "-R", "-o", "%N %E"]).out
        assert "n1 pvc: cannot open /dev/net/tun" in reasons
        assert len(reasons.splitlines()) == 1
        tb.wait_no_jobs()
    finally:
        tb.root("umount /dev/net; rm -rf /run/mount", "n1")
        tb.root(["scontrol", "update", "NodeName=n1", "State=RESUME"], "login")
    wait_until(lambda: tb.node_states()["n1"] == "idle", 120, "n1 did not come back")
    assert_over(tb, before)
