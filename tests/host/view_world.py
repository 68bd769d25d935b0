# SPDX-License-Identifier: Apache-2.0
"""What a node tells of a job's networks, and what it finds broken: run by test_netview.py like node_world.

    python -m tests.host.view_world SCENARIO

Two nodes: this process is n1, a child in namespaces of its own is n2; a pair of devices is the network between them.
n3 of the job never answers.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pvc import codec
from pvc.host import dnsmasq, ethernet, netns
from pvc.model.netview import CheckReport, NetworkReport, ProbeReport
from pvc.node import netcheck, netview, probing, setup
from pvc.node.context import Context
from pvc.ops.checkup import Finding, Verdict
from pvc.ops.netdoctor import judge
from pvc.plan import addresses
from pvc.state.ledger import Ledger, Ready
from pvc.state.memory import MemoryStore
from tests.host import node_world, site
from tests.host.node_world import CONF, REQUEST, ROOT, data_path, job, prepare
from tests.waits import wait_until

NONCE = "0123456789abcdef"
WINDOW_S = 1.5
SPACE = "pvc-12"


class Node:
    """One node's root side; both have a store of their own, which hands out the same VNIs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.context = Context(CONF, ROOT / f"state-{name}", ROOT / f"run-{name}")
        self.context.config()
        self.context._store = MemoryStore()
        print(setup.set_up(self.context, job(12, name), os.environ.get("VIEW_REQUEST", REQUEST)), file=sys.stderr)
        self.ledger = Ledger(self.context.state_dir, 12)
        self.taps: list[int] = []

    def ready(self) -> Ready:
        ready = self.ledger.read_ready()
        assert ready is not None
        return ready

    def run_vms(self) -> None:
        """Hold the taps as running VMs do."""
        self.taps = ethernet.open_taps(self.ready().taps)

    def report(self) -> NetworkReport:
        return netview.report(self.ledger, self.ready())

    def check(self) -> CheckReport:
        return netcheck.check(self.ledger)

    def probe(self) -> ProbeReport:
        return probing.probe(self.ledger, bytes.fromhex(NONCE), WINDOW_S)


class Other:
    """n2, by its standard input and output."""

    def __init__(self) -> None:
        argv = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.host.view_world", "_other"]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._hear() == "begin"
        run(f"ip link set peer-eth0 netns {self.process.pid}")
        if data_path() == "ovs":
            run(f"ip link set peer-eth1 netns {self.process.pid}")
        assert self.ask("up") == "ready"

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)
        return self._hear()

    def run(self, command: str) -> None:
        assert self.ask(f"run {command}") == "done"

    def check(self) -> list[str]:
        return [each.text for each in codec.loads(CheckReport, self.ask("check")).faults]


def other() -> None:
    """The child: n2."""
    print("begin", flush=True)
    sys.stdin.readline()
    for place in (netns.LINKS, netns.DIRECTORY):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    for line in ("link set lo up", "link set peer-eth0 name eth0", "link set eth0 mtu 9000 up"):
        run(f"ip {line}")
    run("ip addr add 10.99.0.2/24 dev eth0")
    if data_path() == "ovs":
        run("mount -t tmpfs tmpfs /run/openvswitch && ip link set peer-eth1 name eth1")
        site.DATABASE, site.LOG = "/run/ovs-n2.db", "/run/vswitchd-n2.log"
        site.start_switch("eth1", "10.98.0.2/24")
    node = Node("n2")
    print("ready", flush=True)
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        match verb:
            case "run":
                run(rest)
                print("done", flush=True)
            case "vms":
                node.run_vms()
                print("done", flush=True)
            case "check":
                print(codec.dumps(node.check()), flush=True)
            case "probe":
                print(codec.dumps(node.probe()), flush=True)


def run(command: str) -> None:
    subprocess.run(["sh", "-c", command], check=True, stdout=sys.stderr)


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Other]]:
    for place in (netns.LINKS, netns.DIRECTORY):
        place.mkdir(parents=True, exist_ok=True)
    there = Other()
    try:
        yield Node("n1"), there
    finally:
        there.process.kill()


def try_paths(here: Node, there: Other) -> dict[str, Finding]:
    """What doctor says of the two nodes' paths, by where."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(there.ask("probe")))
    thread.start()
    reports = [here.probe()]
    thread.join()
    reports.append(codec.loads(ProbeReport, answers[0]))
    return {finding.where: finding for finding in judge(reports)}


def ip_header(length: int, source: bytes, target: bytes) -> bytes:
    """An IPv4 header that stands every check: of whose addresses it has, and of its checksum; ICMP follows."""
    parts = [0x4500, length, 0, 0, 0x4001, 0, *struct.unpack(">4H", source + target)]
    total = sum(parts)
    parts[5] = ~(total + (total >> 16)) & 0xFFFF
    return struct.pack(">10H", *parts)


def faults(node: Node) -> list[str]:
    return [each.text for each in node.check().faults]


# --- scenarios -----------------------------------------------------------------------------------------------------


def members_and_counters() -> None:
    """Members as they were planned; a frame of a VM to another node is counted at both places."""
    node = Node("n1")
    ready = node.ready()
    (nat,) = node.report().networks
    assert (nat.network, nat.data_path, nat.mtu) == ("nat", "kernel", 1500)
    assert nat.vni is not None
    assert [(each.rank, each.addresses[0]) for each in nat.members] == [(0, "10.200.0.1/16"), (1, "10.200.0.2/16")]
    assert [list(each.ports) for each in nat.members] == [["22"], ["22"]]
    taps = ethernet.open_taps(ready.taps)
    before = node.report().networks[0]
    network = netview.read_inputs(node.ledger).memberships()[0].network
    frame = bytes.fromhex((addresses.vm_mac(network, 0, 4) + nat.members[0].mac).replace(":", "")) + b"\x08\0"
    frame += ip_header(86, bytes([10, 200, 0, 1]), bytes([10, 200, 0, 5]))
    os.write(taps[0], bytes(10) + frame.ljust(100, b"\0"))  # 10: struct virtio_net_hdr
    after = node.report().networks[0]
    sent = after.members[0].counters, before.members[0].counters
    assert sent[0] is not None
    assert sent[1] is not None
    assert sent[0].tx_packets - sent[1].tx_packets == 1
    assert sent[0].tx_bytes - sent[1].tx_bytes == 100
    assert after.tunnel is not None
    assert before.tunnel is not None
    assert after.tunnel.tx_packets - before.tunnel.tx_packets == 1


def broken_nodes() -> None:
    """Nothing is wrong with a new cluster; whatever is taken from it is named, and only that."""
    node = Node("n1")
    assert faults(node) == []
    assert node.check().checked > 8
    mac, also = addresses.label_mac(0), addresses.label_mac(1)
    inside = f"ip netns exec {SPACE}"
    for command, words in (
        (f"{inside} bridge fdb del {mac} dev vx0 self", ["no forwarding entry for vm[2-3] on network nat"]),
        (
            f"{inside} bridge fdb replace {also} dev vx0 dst 10.99.0.9 self",
            ["vm[4-5]", "10.99.0.9 instead of 10.99.0.3"],
        ),
        (f"{inside} tc qdisc del dev t0n0 clsact", ["nothing guards or forwards what t0n0 of network nat brings"]),
        (
            f"{inside} tc filter del dev vx0 ingress",
            ["nothing guards or forwards what t0n0, vx0 of network nat brings"],
        ),
        (
            f"{inside} bridge fdb del 00:00:00:00:00:00 dev vx0 dst 10.99.0.3 self",
            ["no entry that leads multicast and broadcast of network nat to 10.99.0.3"],
        ),
        (f"{inside} ip link set t1n0 down", ["vm1 on network nat (t1n0", "is down"]),
        (f"{inside} ip link set vx0 nomaster", ["the tunnel of network nat (vx0", "is no port of br0"]),
        (f"{inside} nft flush table ip pvc", [f"table ip pvc in namespace {SPACE} has 0 rules instead of"]),
        (f"{inside} nft delete table ip pvc", [f"table ip pvc in namespace {SPACE} is gone"]),
        ("nft delete table ip pvc-12", ["table ip pvc-12 is gone"]),
        ("ip link set eth0 mtu 1400", ["eth0 carries 1400 bytes and network nat needs 1550"]),
        ("ip link del nat12", ["the cluster's way out (nat12) is gone"]),
    ):
        run(command)
        said = faults(node)
        assert all(any(word in text for text in said) for word in words), (command, said)
    dnsmasq.stop(node.context.runtime_dir / "net" / "12")
    assert any("dnsmasq" in text for text in faults(node))
    run(f"umount {netns.path_of(SPACE)} && rm {netns.path_of(SPACE)}")
    assert faults(node) == [f"the cluster's network namespace {SPACE} is gone"]


def broken_paths() -> None:
    """All well, UDP blocked one way, an MTU too small, an entry gone: each is told from the others."""
    with two_nodes() as (here, there):
        assert (faults(here), there.check()) == ([], [])
        (well,) = try_paths(here, there).values()
        assert (well.verdict, well.where) == (Verdict.OK, "")
        assert "frames of 100 and 1500 bytes arrive on all 2 paths" in well.text

        there.run(
            "nft 'add table inet site; add chain inet site in { type filter hook input priority 0; }; "
            "add rule inet site in udp dport 4789 drop'"
        )
        found = try_paths(here, there)
        assert set(found) == {"n1 -> n2"}
        assert "nothing arrives: UDP 4789 is blocked" in found["n1 -> n2"].text
        there.run("nft delete table inet site")

        there.run("ip link set eth0 mtu 1400")
        found = try_paths(here, there)
        assert "1500-byte frames are lost, 100-byte ones arrive: MTU" in found["n1 -> n2"].text, found
        assert any("eth0 carries 1400 bytes" in text for text in there.check())
        there.run("ip link set eth0 mtu 9000")

        run(f"ip netns exec {SPACE} bridge fdb del {addresses.label_mac(0)} dev vx0 self")
        # A frame for nobody known goes to all members, as broadcast does; it is named all the same.
        assert faults(here) == ["no forwarding entry for vm[2-3] on network nat"]
        (well,) = try_paths(here, there).values()
        assert well.verdict is Verdict.OK
        run(f"ip netns exec {SPACE} bridge fdb del 00:00:00:00:00:00 dev vx0 dst 10.99.0.2 self")
        found = try_paths(here, there)
        assert set(found) == {"n1 -> n2"}
        assert "nothing arrives" in found["n1 -> n2"].text
        assert len(faults(here)) == 2


def switched_nodes() -> None:
    """The same on the shared switch: a flow, a port, a tunnel's end."""
    node = Node("n1")
    assert faults(node) == []
    network = netview.read_inputs(node.ledger).memberships()[0].network
    (nat,) = node.report().networks
    assert nat.data_path == "ovs"
    assert nat.tunnel is not None
    node.run_vms()
    frame = bytes.fromhex((addresses.vm_mac(network, 0, 4) + nat.members[0].mac).replace(":", "")) + b"\x08\0"
    frame += ip_header(86, bytes([10, 200, 0, 1]), bytes([10, 200, 0, 5]))
    # Ports of 0 are a header that is cut off.
    frame += (1000).to_bytes(2, "big") * 2
    os.write(node.taps[0], frame.ljust(100, b"\0"))
    wait_until(lambda: _sent(node.report()) == (1, 100), bear=(OSError,))
    run(f"ovs-ofctl -O OpenFlow15 del-flows pvc-ovs table=4,dl_dst={addresses.vm_mac(network, 0, 3)}")
    assert faults(node) == ["no forwarding entry for vm3 on network nat"]
    port = node.ready().taps[1].name
    run(f"ovs-vsctl del-port {port}")
    assert f"the Open vSwitch bridge pvc-ovs has no port {port}" in faults(node)
    run("ovs-ofctl -O OpenFlow15 del-flows pvc-ovs")
    assert "the Open vSwitch bridge pvc-ovs has no flows of this job" in faults(node)
    run("ovs-vsctl del-br pvc-ovs")
    assert any("has no port pvc-vx4789" in text for text in faults(node))


def _sent(report: NetworkReport) -> tuple[int, int]:
    tunnel = report.networks[0].tunnel
    assert tunnel is not None
    return tunnel.tx_packets, tunnel.tx_bytes


def switched_paths() -> None:
    """Between two nodes with Open vSwitch, on networks of both layers."""
    with two_nodes() as (here, there):
        assert (faults(here), there.check()) == ([], [])
        idle = try_paths(here, there)
        assert {finding.verdict for finding in idle.values()} == {Verdict.WARN}
        assert "vm0, on whose way frames would be heard, does not run" in idle["n1"].text
        here.run_vms()
        assert there.ask("vms") == "done"
        (well,) = try_paths(here, there).values()
        assert "frames of 100 and 1500 bytes arrive on all 2 paths" in well.text
        network = netview.read_inputs(here.ledger).memberships()[0].network
        run(f"ovs-ofctl -O OpenFlow15 del-flows pvc-ovs table=4,dl_dst={addresses.vm_mac(network, 0, 2)}")
        found = try_paths(here, there)
        assert set(found) == {"n1 -> n2"}
        assert "nothing arrives" in found["n1 -> n2"].text


def switched_lan_paths() -> None:
    """The same on an empty switch, which has no gateway that frames could come from."""
    os.environ["VIEW_REQUEST"] = REQUEST.replace("nat", "lan")
    with two_nodes() as (here, there):
        assert (faults(here), there.check()) == ([], [])
        here.run_vms()
        assert there.ask("vms") == "done"
        (well,) = try_paths(here, there).values()
        assert "network lan: frames of 100 and 1500 bytes arrive on all 2 paths" in well.text


SCENARIOS = {
    members_and_counters: "kernel",
    broken_nodes: "kernel",
    broken_paths: "kernel",
    switched_nodes: "ovs",
    switched_paths: "ovs",
    switched_lan_paths: "ovs",
}


def main() -> None:
    if sys.argv[1] == "_other":
        other()
        return
    scenario = next(each for each in SCENARIOS if each.__name__ == sys.argv[1])
    os.environ[node_world.DATA_PATH] = SCENARIOS[scenario]
    server = prepare()
    try:
        scenario()
    finally:
        server.kill()


if __name__ == "__main__":
    main()
