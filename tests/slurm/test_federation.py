# SPDX-License-Identifier: Apache-2.0
"""Two clusters of one federation: what is submitted to one runs where there is room, and all commands find it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pvc.testbed import lifecycle
from pvc.testbed.place import find_place
from tests.slurm.clusters import Cluster, list_clusters
from tests.slurm.testbed import OS, Testbed, end_processes, own_name, start_testbed
from tests.waits import PATIENCE_S, wait_until

pytestmark = pytest.mark.skipif(bool(OS), reason="roots of other releases have no slurmdbd")
TEMPLATES = "pxe: {resource-set: nat, memory: 64M}\n"
# A database server without tables of its own, and so without users: whoever is in the node may do all with it.
DATABASE = """
mkdir /tmp/db
setsid mariadbd --no-defaults --datadir=/tmp/db --socket=/tmp/db.sock --pid-file=/tmp/db.pid --skip-networking \\
    --skip-grant-tables --user=root >/tmp/db.log 2>&1 </dev/null &
while [ ! -S /tmp/db.sock ]; do sleep 0.1; kill -0 $! || { cat /tmp/db.log; exit 1; }; done
chmod 777 /tmp/db.sock
cat >/etc/slurm/slurmdbd.conf <<'END'
AuthType=auth/munge
DbdHost=login
SlurmUser=slurm
PidFile=/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm
END
chown slurm /etc/slurm/slurmdbd.conf; chmod 600 /etc/slurm/slurmdbd.conf
MYSQL_UNIX_PORT=/tmp/db.sock setsid slurmdbd -D >/var/log/slurmdbd.log 2>&1 </dev/null &
"""
ACCOUNTING = "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=login\n"


@pytest.fixture(scope="module")
def two() -> Iterator[Testbed]:
    """The login node is the controller of cluster "east", whose node is n1; n2 is controller and node of "west"."""
    name = own_name("-two")
    try:
        tb = start_testbed(name, nodes=2)
        directory = tb.place.state_dir / "etc" / "slurm"
        text = (directory / "slurm.conf").read_text() + ACCOUNTING
        east, west = (_cluster(text, *words) for words in (("east", "n1", "n2"), ("west", "n2", "n1")))
        west = re.sub(r"(?m)^SlurmctldHost=.*", "SlurmctldHost=n2", west)
        (directory / "slurm.conf").write_text(east)
        (directory / "west.conf").write_text(west)
        tb.root(DATABASE, "login")
        wait_until(
            lambda: tb.run(["sacctmgr", "-n", "show", "cluster"], check=False).code == 0, PATIENCE_S, "no slurmdbd"
        )
        end_processes(tb, "login", "^[^ ]*slurmctld -D")
        tb.root("rm -rf /var/lib/slurm/slurmctld/*", "login")
        # What n2 has of its own lies on top of what all nodes share.
        tb.root("cp -r /etc/slurm /tmp/west; mv /tmp/west/west.conf /tmp/west/slurm.conf", "n2")
        tb.root("mount --bind /tmp/west /etc/slurm; mkdir -p /var/lib/slurm/slurmctld", "n2")
        tb.root("chown slurm /var/lib/slurm/slurmctld", "n2")
        for node, programs in (("login", ("slurmctld",)), ("n2", ("slurmctld", "slurmd")), ("n1", ("slurmd",))):
            for program in programs:
                end_processes(tb, node, f"^[^ ]*{program} -D")
                tb.root(f"setsid {program} -D >>/var/log/again.log 2>&1 </dev/null &", node)
        # Controllers look for one another when they are told of a federation, and long after that: both serve then.
        for node in tb.nodes():
            wait_until(lambda node=node: is_idle(tb, node), PATIENCE_S, lambda node=node: tb.log(node, "again"))
        wait_until(lambda: find_controllers(tb) == {"east", "west"}, PATIENCE_S, lambda: repr(find_controllers(tb)))
        tb.root(["sacctmgr", "-i", "add", "federation", "both", "clusters=east,west"], "login")
        wait_until(
            lambda: find_idle(tb) == {("east", "n1"), ("west", "n2")},
            PATIENCE_S,
            lambda: f"{find_idle(tb)}\n{tb.log('n2', 'again')}",
        )
        tb.run("mkdir -p .pvc; cat >.pvc/templates.yaml", stdin=TEMPLATES)
        yield tb
    finally:
        lifecycle.down(find_place(name))


def _cluster(text: str, name: str, node: str, other: str) -> str:
    text = re.sub(r"(?m)^ClusterName=.*", f"ClusterName={name}", text)
    text = re.sub(rf"(?m)^NodeName={other} .*\n", "", text)
    return re.sub(r"(?m)^(PartitionName=debug Nodes=)\S+", rf"\g<1>{node}", text)


def is_idle(tb: Testbed, node: str) -> bool:
    """Whether a node's own cluster calls it so."""
    return tb.run(["sinfo", "-h", "--local", "-o", "%N %T"], node=node, check=False).out.split() == [node, "idle"]


def find_controllers(tb: Testbed) -> set[str]:
    """The clusters whose controllers slurmdbd knows."""
    rows = tb.run(["sacctmgr", "-n", "-P", "show", "cluster", "format=Cluster,ControlHost"]).out.splitlines()
    return {name for name, _, host in (row.partition("|") for row in rows) if host}


def find_idle(tb: Testbed) -> set[tuple[str, ...]]:
    """Idle nodes with their clusters, as the federation tells them."""
    rows = tb.run(["sinfo", "--federation", "-h", "-N", "-t", "idle", "-O", "Cluster,NodeHost"], check=False).out
    return {tuple(line.split()) for line in rows.splitlines()}


def test_each_cluster_is_found_wherever_it_runs(two: Testbed) -> None:
    """Two take a whole node each, so one of them is given to the cluster that it was not submitted to."""
    before = {node: two.snapshot(node) for node in two.nodes()}
    with ExitStack() as stack:
        clusters: dict[int, Cluster] = {}
        for _ in range(2):
            cluster = Cluster(two, "pxe:2", "--exclusive", "-N1", size=())
            stack.callback(cluster.close)
            wait_until(cluster.started.exists, 300, lambda cluster=cluster: f"no script: {cluster.process.poll()}")
            (job_id,) = {int(row["job_id"]) for row in list_clusters(two)} - clusters.keys()
            cluster.job_id = job_id
            clusters[job_id] = cluster
        rows = {int(row["job_id"]): row for row in list_clusters(two)}
        assert {(row["nodes"], row["state"]) for row in rows.values()} == {("n1", "running"), ("n2", "running")}
        # The first bits of a number tell which cluster took the job in, here one for both.
        assert len({job_id >> 26 for job_id in rows}) == 1
        for job_id, row in rows.items():
            words = ["-j", str(job_id)]
            vms = json.loads(two.run(["pvc", "status", "--json", *words]).out)["vms"]
            assert [(vm["node"], vm["phase"]) for vm in vms] == [(row["nodes"], "booting")] * 2
            done = two.run(["pvc", "doctor", *words], check=False, timeout=120)
            assert done.code == 0, done.out + done.err
            # What looks for clusters without a job does not take this one for such.
            two.root(["pvc-node", "reclaim"], str(row["nodes"]))
            vms = json.loads(two.run(["pvc", "status", "--json", *words]).out)["vms"]
            assert [vm["phase"] for vm in vms] == ["booting"] * 2
        first, second = sorted(rows, key=lambda job_id: str(rows[job_id]["nodes"]))
        two.run(["scancel", str(first)])
        assert f"job {first} has ended under its VMs" in clusters[first].end()
        two.run(["pvc", "stop", "-j", str(second)])
        assert "the cluster was stopped" in clusters[second].end()
    wait_until(lambda: not list_clusters(two), PATIENCE_S, "clusters are left")
    two.assert_clean(before)
