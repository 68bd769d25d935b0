# SPDX-License-Identifier: Apache-2.0
"""A day of bad luck: what administrators, firewalls, disks and jobs do to nodes under running clusters, in any order.

PVC_BAD_DAY_S=600 makes it long, PVC_BAD_DAY_SEED=N another one; what has happened is told when it fails.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from pvc.plan.names import uplink
from tests.slurm.clusters import Cluster
from tests.slurm.test_faults import DAMAGES, ETCDCTL, assert_over, kill, wait_daemons
from tests.slurm.test_users import check_words
from tests.slurm.testbed import Snapshot, Testbed, find_pids
from tests.waits import wait_until

SECONDS = float(os.environ.get("PVC_BAD_DAY_S", "45"))
SEED = int(os.environ.get("PVC_BAD_DAY_SEED", "4711"))
NODES = ("n1", "n2")
# Who has a cluster on what.
RESIDENTS = (("student", "nat"), ("teacher", "nat"), ("student", "lan-ovs"), ("teacher", "nat-ovs"))
ETCD = "^[^ ]*etcd "
DROP = "'add table inet site; add chain inet site forward { type filter hook forward priority 10; policy drop; }'"
# Refused: by a site's file, a node, the state store, or Slurm; not a word about a fault of pvc's own.
REFUSALS = (0, 3, 4, 5, 6, 7)


@dataclass
class Day:
    """The clusters that are there, and what was done to whom."""

    tb: Testbed
    chance: random.Random
    clusters: dict[tuple[str, str], Cluster] = field(default_factory=dict)
    # Jobs whose record somebody damaged, with the node; VMs that somebody killed, by job and node.
    damaged: dict[int, str] = field(default_factory=dict)
    killed: set[tuple[int, str]] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    found: str = ""

    def begin(self, user: str, resources: str) -> None:
        """A cluster with one VM on each node."""
        argv = ("-N", "2", "-w", "n[1-2]")
        made = Cluster(self.tb, f"on-{resources}:2", *argv, user=user, size=("-c", "1")).wait_running()
        rows = self.tb.run(["squeue", "-h", "-u", user, "-t", "R", "-o", "%A"], user=user).out.split()
        made.job_id = max(map(int, rows))
        self.clusters[user, resources] = made

    def tell(self, text: str) -> None:
        """Remember what happens."""
        self.said.append(text)

    def node(self) -> str:
        """One of the two."""
        return self.chance.choice(NODES)

    def root(self, text: str, node: str) -> None:
        """What an administrator types."""
        self.tell(f"{node}: {text}")
        self.tb.root(text, node)

    # What happens.

    def flush_rules(self) -> None:
        self.root("nft flush ruleset", self.node())

    def close_forwarding(self) -> None:
        self.root("sysctl -qw net.ipv4.ip_forward=0", self.node())

    def lose_way_out(self) -> None:
        job_id = self.clusters[self.chance.choice(RESIDENTS[:2])].job_id
        self.root(f"ip link del {uplink('nat', job_id)} || ip link show", self.node())

    def lose_switch(self) -> None:
        self.root("ovs-vsctl --if-exists del-br pvc-ovs", self.node())

    def lose_flows(self) -> None:
        job_id = self.clusters[self.chance.choice(RESIDENTS[2:])].job_id
        self.root(f"ovs-ofctl del-flows pvc-ovs cookie={job_id}/-1 || true", self.node())

    def kill_daemon(self) -> None:
        node = self.node()
        self.tell(f"{node}: pvc-node is killed")
        wait_daemons(self.tb)
        kill(self.tb, node, "pvc-node serve")

    def damage_record(self) -> None:
        """Nobody knows its numbers, so no cluster can be set up there before it has ended: one at a time."""
        if self.damaged:
            return
        job_id, node = self.clusters[self.chance.choice(RESIDENTS)].job_id, self.node()
        damage = self.chance.choice(sorted(DAMAGES))
        self.damaged[job_id] = node
        self.tell(f"{node}: the record of job {job_id} has {damage}")
        self.tb.root(f"cd /var/lib/pvc/jobs/{job_id} && {DAMAGES[damage]}", node)

    def empty_store(self) -> None:
        words = f"{ETCDCTL} --user=root:$(cat /etc/pvc/etcd-password) del --prefix /pvc/"
        self.root(words, self.node())

    def freeze_store(self) -> None:
        self.tell("etcd stands still")
        kill(self.tb, "login", ETCD, signal.SIGSTOP)
        try:
            self.ask_for_one()
        finally:
            kill(self.tb, "login", ETCD, signal.SIGCONT)

    def fill_run(self) -> None:
        node = self.node()
        self.root("mount -o remount,size=$(($(du -sk /run | cut -f1) + 4))k /run", node)
        try:
            self.ask_for_one()
        finally:
            # libmount leaves a directory of its own there.
            self.root("mount -o remount,size=50% /run; rm -rf /run/mount", node)

    def foreign_firewall(self) -> None:
        node = self.node()
        self.root(f"nft {DROP}", node)
        self.ask_for_one()
        self.root("nft delete table inet site || true", node)

    def kill_vm(self) -> None:
        cluster, node = self.clusters[self.chance.choice(RESIDENTS)], self.node()
        if (cluster.job_id, node) in self.killed:
            return
        for pid in find_pids(self.tb, node, "qemu-system"):
            if f"/{cluster.job_id}/" in self.tb.root(f"tr '\\0' ' ' </proc/{pid}/cmdline", node):
                self.tell(f"{node}: the VM of job {cluster.job_id} is killed")
                self.killed.add((cluster.job_id, node))
                self.tb.root(["kill", "-9", str(pid)], node)

    def ask_for_one(self) -> None:
        """Somebody else's cluster: it comes up, or is refused in words, and drains nothing."""
        user, node = self.chance.choice(("student", "teacher", "mallory")), self.node()
        argv = ["pvc", "alloc", "-Q", "-c", "1", "-w", node, "-E", "true", f"on-{self.chance.choice(RESIDENTS)[1]}"]
        done = self.tb.run(argv, user=user, check=False, timeout=300)
        self.tell(f"{node}: {user}'s cluster: {done.code} {done.err.strip()}")
        assert done.code in REFUSALS, done
        check_words(done.err)

    def exchange(self) -> None:
        """A cluster ends, and its user has the next one."""
        leaver = self.chance.choice(RESIDENTS)
        # Nobody can have a cluster on a node where a record is not understood.
        leaving = [each for each in RESIDENTS if each == leaver or self.clusters[each].job_id in self.damaged]
        for each in leaving:
            self.end(each)
        for each in leaving:
            self.begin(*each)
            self.tell(f"job {self.clusters[each].job_id} begins")

    def end(self, key: tuple[str, str]) -> None:
        """A cluster ends, and nobody has another one."""
        gone = self.clusters.pop(key)
        self.tell(f"job {gone.job_id} ends")
        self.tb.run(["scancel", str(gone.job_id)], user=gone.user)
        gone.end()
        self.damaged.pop(gone.job_id, None)

    def is_well(self, cluster: Cluster) -> bool:
        """Frames pass between its nodes, and all is as planned."""
        argv = ["pvc", "doctor", "-j", str(cluster.job_id)]
        done = self.tb.run(argv, user=cluster.user, check=False, timeout=120)
        self.found = done.out + done.err
        return done.code == 0


EVENTS: tuple[Callable[[Day], None], ...] = (
    Day.flush_rules,
    Day.close_forwarding,
    Day.lose_way_out,
    Day.lose_switch,
    Day.lose_flows,
    Day.kill_daemon,
    Day.damage_record,
    Day.empty_store,
    Day.freeze_store,
    Day.fill_run,
    Day.foreign_firewall,
    Day.kill_vm,
    Day.ask_for_one,
    Day.exchange,
)


@pytest.fixture
def day(tb: Testbed, bare: str, before: dict[str, Snapshot]) -> Iterator[Day]:
    """Four clusters of two users on two nodes."""
    del before  # taken before they are
    names = sorted({resources for _, resources in RESIDENTS})
    texts = "".join(f"on-{name}: {{image: {bare}, resource-set: {name}, memory: 64M}}\n" for name in names)
    users = ("student", "teacher", "mallory")
    for user in users:
        tb.run("mkdir -p .pvc; cat >.pvc/templates.yaml", user=user, stdin=texts)
    made = Day(tb, random.Random(SEED))
    try:
        for resident in RESIDENTS:
            made.begin(*resident)
        yield made
    finally:
        for cluster in made.clusters.values():
            cluster.close()
        for user in users:
            (tb.home(user) / ".pvc" / "templates.yaml").unlink()


def test_a_day_of_bad_luck(tb: Testbed, day: Day, before: dict[str, Snapshot]) -> None:
    """Each thing at least once; in the end clusters work, or what is wrong is said, and nothing is left."""
    ends = time.monotonic() + SECONDS
    try:
        while True:
            for event in day.chance.sample(EVENTS, len(EVENTS)):
                event(day)
            if time.monotonic() >= ends:
                break
        wait_daemons(tb)
        for cluster in day.clusters.values():
            if cluster.job_id not in day.damaged:
                wait_until(lambda cluster=cluster: day.is_well(cluster), 180, lambda: day.found)
            check_status(day, cluster)
        for job_id, node in day.damaged.items():
            said = tb.root("pvc-node status", node)
            assert f"job {job_id}: " in said, said
        for user in ("student", "teacher"):
            tb.run(["scancel", f"--user={user}"], user=user)
        for cluster in day.clusters.values():
            cluster.end()
        assert_over(tb, before)
    except BaseException:
        print("\n".join(day.said))
        raise


def check_status(day: Day, cluster: Cluster) -> None:
    """VMs run, but for those that were killed, of which it is said."""
    argv = ["pvc", "status", "--json", "-j", str(cluster.job_id)]
    rows = json.loads(day.tb.run(argv, user=cluster.user, check=False).out)["vms"]
    phases = {row["node"]: row["phase"] for row in rows}
    expected = {node: "failed" if (cluster.job_id, node) in day.killed else "booting" for node in NODES}
    assert phases == expected, rows
