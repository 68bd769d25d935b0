# SPDX-License-Identifier: Apache-2.0
"""Clusters to look at from all sides: those of two users on one network, on the same nodes, with the same addresses."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from pvc.config.load import load_root_config
from pvc.model.network import EthernetNetwork
from pvc.plan import addresses
from tests.slurm.clusters import Cluster
from tests.slurm.guest import Console
from tests.slurm.testbed import TOP, Testbed
from tests.waits import PATIENCE_S, wait_until

SITE = load_root_config(TOP / "conf" / "testbed")
BULK_PIECES = 4  # of 2 MiB
LINE = 1000  # of the guest's shell


@dataclass
class Lab:
    """Two clusters on one network: four VMs of student's on n1 (two), n2, n3; and some of teacher's."""

    tb: Testbed
    name: str
    mine: Cluster
    theirs: Cluster
    consoles: dict[tuple[int, str], Console] = field(default_factory=dict)

    @property
    def network(self) -> EthernetNetwork:
        return SITE.networks[SITE.resource_sets[self.name].networks[0]]

    def vm(self, rank: int, cluster: Cluster | None = None) -> Console:
        """A shell in a VM, of student's cluster unless said."""
        of = cluster or self.mine
        key = (of.job_id, f"vm{rank}")
        if key not in self.consoles:
            self.consoles[key] = Console(self.tb, of.job_id, f"vm{rank}", of.user)
        return self.consoles[key]

    def ask(self, rank: int, command: str, timeout: float = PATIENCE_S) -> str:
        """What a command prints in a VM of student's; it must succeed."""
        code, out = self.vm(rank).run(command, timeout)
        assert code == 0, f"vm{rank}: {command}: {out}"
        return out

    def mac(self, rank: int) -> str:
        return addresses.vm_mac(self.network, 0, rank)

    def address(self, rank: int) -> str:
        return addresses.vm_address(self.network, rank)

    def vni(self, cluster: Cluster) -> int:
        argv = ["pvc", "network", "show", self.network.name, "--json", "-j", str(cluster.job_id)]
        shown = json.loads(self.tb.run(argv, user=cluster.user).out)
        return int(shown["clusters"][0]["vni"])

    def watch(self, marks: list[str], *watchers: tuple[int, Cluster]) -> Watch:
        """Count frames with these marks in VMs from now on."""
        return Watch(self, marks, watchers)

    def send(self, rank: int, sent: list[bytes]) -> None:
        """Frames out of a VM, as many at a time as its shell can read."""
        line = ""
        for each in sent:
            if len(line) + 2 * len(each) > LINE - 100:
                self.ask(rank, f"frames send eth0{line}")
                line = ""
            line += f" {each.hex()}"
        self.ask(rank, f"frames send eth0{line}")

    def close(self) -> None:
        for console in self.consoles.values():
            console.__exit__()


class Watch:
    """Counters of marked frames in some VMs."""

    def __init__(self, lab: Lab, marks: list[str], watchers: tuple[tuple[int, Cluster], ...]) -> None:
        self.lab, self.watchers = lab, watchers
        watch = f"frames watch eth0 {' '.join(marks)} > /seen & echo $! > /watcher"
        for rank, cluster in watchers:
            for command in ("rm -f /seen", f"({watch})", until("grep -q watching /seen")):
                code, out = lab.vm(rank, cluster).run(command)
                assert code == 0, out

    def counts(self, expected: list[dict[str, int]]) -> list[dict[str, int]]:
        """How often each mark was seen, by VM, once what is expected came, and a moment later."""

        def have_come() -> bool:
            return all(wanted.items() <= found.items() for wanted, found in zip(expected, self._read(), strict=True))

        with contextlib.suppress(AssertionError):  # which says less than what was seen
            wait_until(have_come, 120, "frames are missing")
        time.sleep(1.0)
        found = self._read()
        for rank, cluster in self.watchers:
            self.lab.vm(rank, cluster).run("kill $(cat /watcher)")
        return found

    def _read(self) -> list[dict[str, int]]:
        said = (self.lab.vm(rank, cluster).run("cat /seen")[1].split() for rank, cluster in self.watchers)
        return [dict(Counter(word for word in words if word.startswith("mark-"))) for words in said]


def until(command: str) -> str:
    """A guest's command that waits for another one to succeed."""
    return f"until {command}; do sleep 0.1; done"


def start(tb: Testbed, template: str, name: str) -> Lab:
    options = ("-c", "1", "-m", "128M", "--resource-set", name)
    mine = Cluster(tb, f"{template}:4", "-N", "3", *options)
    theirs = Cluster(tb, f"{template}:2", "-N", "2", *options, user="teacher")
    try:
        return Lab(tb, name, mine.wait_running(), theirs.wait_running())
    except BaseException:
        mine.close()
        theirs.close()
        raise


def run_lab(tb: Testbed, template: str, name: str) -> Iterator[Lab]:
    """The nodes are as before when it has gone, but for those that lost their power."""
    tb.wait_no_jobs()
    before = {node: tb.snapshot(node) for node in tb.nodes()}
    lab = start(tb, template, name)
    try:
        wait_ready(tb, lab.mine, 4)
        wait_ready(tb, lab.theirs, 2)
        yield lab
    finally:
        lab.close()
        lab.mine.close()
        lab.theirs.close()
        lost = [node for node in tb.nodes() if tb.place.find_node(node) is None]
        for node in lost:
            tb.boot(node)
        tb.wait_no_jobs()
    tb.assert_clean({node: snapshot for node, snapshot in before.items() if node not in lost})


def wait_ready(tb: Testbed, cluster: Cluster, count: int) -> None:
    """Until the VMs have a shell; on an L2 network they have no address at which they could be asked."""
    for vm in (f"vm{rank}" for rank in range(count)):
        wait_until(lambda vm=vm: "GUEST-READY" in log(tb, cluster, vm), 300, f"{vm} is not ready")


def is_answered(lab: Lab, rank: int, address: str) -> bool:
    """Whether a VM gets an answer from an address."""
    return lab.vm(rank).run(f"ping -c 1 -w 2 {address}")[0] == 0


def log(tb: Testbed, cluster: Cluster, vm: str) -> str:
    argv = ["pvc", "console", "--log", "-j", str(cluster.job_id), vm]
    return tb.run(argv, user=cluster.user).out


def check_bulk(lab: Lab, source: int, to: int, address: str) -> None:
    """Megabytes over TCP arrive as they were sent."""
    listens = until("grep -q ':2328 0*:0000 0A' /proc/net/tcp /proc/net/tcp6")  # 9000, TCP_LISTEN
    lab.ask(to, f"rm -f /sum; (nc -l -p 9000 | md5sum > /sum) & {listens}")
    lab.ask(source, "dd if=/dev/urandom of=/piece bs=1M count=2 2>/dev/null", 300)
    pieces = " ".join(["/piece"] * BULK_PIECES)
    lab.ask(source, f"cat {pieces} | nc {address} 9000", 120)
    sent = lab.ask(source, f"cat {pieces} | md5sum")
    assert _digest(lab.ask(to, f"{until('[ -s /sum ]')}; cat /sum")) == _digest(sent)


def _digest(said: str) -> str:
    return next(word for word in said.split() if len(word) == 32)
