# SPDX-License-Identifier: Apache-2.0
"""IPv6 from a VM's side, on each data path: other nodes' VMs, names, and the world behind NAT66."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pvc.plan import addresses
from tests.slurm.clusters import Cluster
from tests.slurm.labs import Lab, wait_ready
from tests.slurm.testbed import Testbed
from tests.waits import wait_until

# The nodes' own network, which VMs must not reach, and one behind it, which they may.
NODES = {"login": "fd00:63::1", "n1": "fd00:63::11", "n2": "fd00:63::12"}
OUTSIDE = "fd00:77::1"
PORT = 7000
# It is part of routed addresses only.
NO_VNI = 0
# Says who came.
LISTENER = f"""
import os, socket
server = socket.create_server(("::", {PORT}), family=socket.AF_INET6)
print(os.getpid(), flush=True)
while True:
    link, peer = server.accept()
    link.sendall(f"from {{peer[0]}} {{peer[1]}}\\n".encode())
    link.close()
"""


@dataclass
class Lab6(Lab):
    """Two VMs on n1 and n2, with IPv6 addresses as DHCPv6 would give them: the small guest has no client for it."""

    def address6(self, rank: int) -> str:
        return str(addresses.vm_address6(self.network, rank, NO_VNI))

    @property
    def gateway6(self) -> str:
        return str(addresses.gateway_address6(self.network, NO_VNI))


@pytest.fixture
def underlay(testbed: Testbed) -> Iterator[Testbed]:
    """The testbed with IPv6 between its nodes, and somebody who listens on the login node."""
    for node, address in NODES.items():
        testbed.root(f"ip -6 addr add {address}/64 dev eth0 nodad", node)
        if node != "login":
            testbed.root(f"ip -6 route add {OUTSIDE}/128 via {NODES['login']}", node)
    testbed.root(f"ip -6 addr add {OUTSIDE}/128 dev lo", "login")
    listener = testbed.start(["/usr/bin/python3", "-I", "-c", LISTENER], user="root")
    try:
        pid = listener.stdout.readline().strip()
        assert pid.isdigit(), listener.stderr.read()
        yield testbed
        testbed.root(["kill", pid], "login")
    finally:
        listener.kill()
        listener.communicate(timeout=300)
        testbed.root(f"ip -6 addr del {OUTSIDE}/128 dev lo", "login")
        for node, address in NODES.items():
            testbed.root(f"ip -6 addr del {address}/64 dev eth0", node)
            testbed.root(f"ip -6 route del {OUTSIDE}/128", node, check=False)


@pytest.fixture(params=("nat6", "nat6-ovs"))
def lab(request: pytest.FixtureRequest, underlay: Testbed, small: str) -> Iterator[Lab6]:
    underlay.wait_no_jobs()
    before = {node: underlay.snapshot(node) for node in underlay.nodes()}
    options = ("-w", "n1,n2", "-N", "2", "-c", "1", "-m", "128M", "--resource-set", request.param)
    cluster = Cluster(underlay, f"{small}:2", *options)
    try:
        made = Lab6(underlay, request.param, cluster.wait_running(), cluster)
        wait_ready(underlay, cluster, 2)
        for rank in range(2):
            made.ask(rank, f"ip -6 addr add {made.address6(rank)}/64 dev eth0")
        for rank in range(2):
            # Nobody answers for an address that is still looked for (RFC 4862).
            wait_until(lambda rank=rank: "tentative" not in addresses_of(made, rank), 120, "the address is not its own")
        yield made
        made.close()
    finally:
        cluster.close()
        underlay.wait_no_jobs()
    underlay.assert_clean(before)


def addresses_of(lab: Lab6, rank: int) -> str:
    return lab.ask(rank, "ip -6 -o addr show dev eth0")


def test_ipv6(lab: Lab6) -> None:
    check_neighbours(lab)
    check_names(lab)
    check_outside(lab)
    check_forwarded_ports(lab)


def check_neighbours(lab: Lab6) -> None:
    for asker, other in ((0, 1), (1, 0)):
        lab.ask(asker, f"ping6 -c 1 -w 20 -s 1452 {lab.address6(other)}")
        lab.ask(asker, f"ping6 -c 1 -w 20 {lab.gateway6}")
        # The advertisement of its own node, which no address comes from.
        assert "default via fe80::" in lab.ask(asker, "ip -6 route")
        shown = addresses_of(lab, asker)
        assert (shown.count("inet6 "), shown.count("inet6 fe80:")) == (2, 1)


def check_names(lab: Lab6) -> None:
    domain = lab.network.domain_name
    for asker in (0, 1):
        for server in (addresses.gateway_address(lab.network), lab.gateway6):
            for rank in (0, 1):
                said = lab.ask(asker, f"nslookup -type=aaaa vm{rank}.{domain} {server}")
                assert lab.address6(rank) in said.split("Address", 1)[-1].split()


def check_outside(lab: Lab6) -> None:
    """By NAT66 of each VM's own node; what the node is next to stays closed, as it does for IPv4."""
    for rank, node in ((0, "n1"), (1, "n2")):
        said = lab.ask(rank, f"nc -w 10 {OUTSIDE} {PORT} </dev/null", 300)
        assert f"from {NODES[node]} " in said
        for closed in NODES.values():
            code, said = lab.vm(rank).run(f"nc -w 2 {closed} {PORT} </dev/null", 300)
            assert code != 0, (node, closed, said)
            assert "from " not in said


def check_forwarded_ports(lab: Lab6) -> None:
    """A VM's port 22 is reached through its node's IPv6 address, as it is through the IPv4 one."""
    status = json.loads(lab.tb.run(["pvc", "status", "--json", "-j", str(lab.mine.job_id)]).out)
    ports = {vm["name"]: vm["ssh_port"] for vm in status["vms"]}
    for name, node in (("vm0", "n1"), ("vm1", "n2")):
        script = f"exec 3<>/dev/tcp/{NODES[node]}/{ports[name]} && head -c 8 <&3"
        for source in ("login", node):
            # Each link on the way may take a moment to find its neighbour.
            wait_until(
                lambda script=script, source=source: (
                    lab.tb.run(["timeout", "5", "bash", "-c", script], node=source, check=False).out == "SSH-2.0-"
                ),
                60,
                f"{name} does not answer through {node} for {source}",
            )
