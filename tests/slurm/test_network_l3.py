# SPDX-License-Identifier: Apache-2.0
"""What a network with addresses promises, on each data path; the last test takes a node away from its clusters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pvc.model.network import DataPath
from pvc.plan import addresses
from tests.slurm import frames
from tests.slurm.labs import Lab, check_bulk, is_answered, log, run_lab
from tests.slurm.testbed import Testbed, find_pids
from tests.waits import wait_until

RESOURCE_SETS = ("nat", "nat-ovs")
SEND_UDP = """
import socket, sys
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    for _ in range(3):
        link.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[1], int(sys.argv[2])))
    print("sent")
except OSError as err:
    print("refused:", err)
"""


@pytest.fixture(scope="module", params=RESOURCE_SETS)
def l3(request: pytest.FixtureRequest, testbed: Testbed, small: str) -> Iterator[Lab]:
    yield from run_lab(testbed, small, request.param)


def test_names_and_leases(l3: Lab) -> None:
    gateway, domain = addresses.gateway_address(l3.network), l3.network.domain_name
    for asker in (0, 2):
        for rank in range(4):
            assert l3.address(rank) in answer(l3, asker, f"vm{rank}.{domain}")
            assert f"vm{rank}.{domain}" in answer(l3, asker, l3.address(rank))
    for rank in range(4):
        said = l3.ask(rank, "udhcpc -n -q -f -t 5 -i eth0 -s /bin/true 2>&1")
        # Its own node answers, wherever that is.
        assert f"lease of {l3.address(rank)} obtained from {gateway}" in said
        assert f"{l3.address(rank)}/{l3.network.int_network.prefixlen}" in l3.ask(rank, "ip -4 addr show eth0")


def answer(lab: Lab, rank: int, name: str) -> str:
    said = lab.ask(rank, f"nslookup {name} {addresses.gateway_address(lab.network)}")
    return said.split("Address", 2)[-1]


def test_packets_of_full_size(l3: Lab) -> None:
    mtu = addresses.guest_mtu(l3.network)
    assert mtu == 1500
    for rank in range(4):
        assert int(l3.ask(rank, "cat /sys/class/net/eth0/mtu").splitlines()[-1]) == mtu
    for source, to in ((0, 1), (0, 2), (2, 3), (3, 0)):
        l3.ask(source, f"frames ping {l3.address(to)} {mtu}")
        # One byte more does not leave the VM.
        assert l3.vm(source).run(f"frames ping {l3.address(to)} {mtu + 1}")[0] != 0
    l3.ask(2, f"frames ping {addresses.gateway_address(l3.network)} {mtu}")


def test_bulk(l3: Lab) -> None:
    for source, to in ((0, 2), (3, 1)):
        check_bulk(l3, source, to, l3.address(to))


def test_a_vm_cannot_pretend(l3: Lab) -> None:
    """Nothing that vm1 sends in another's name reaches a VM of its node, of another node, or of another cluster."""
    attacker, sent, marks = 1, [], []

    def forge(mark: str, *made: bytes) -> None:
        marks.append(f"mark-{mark}")
        sent.extend(made)

    own, other, gateway = l3.mac(attacker), l3.mac(3), addresses.gateway_address(l3.network)
    for victim in (0, 2):
        mac, address = l3.mac(victim), l3.address(victim)
        for to in (mac, frames.BROADCAST):
            for name, claimed in (("gw", gateway), ("vm3", l3.address(3))):
                kind = f"{'all' if to != mac else 'one'}-{victim}-{name}"
                for operation in (1, 2):
                    mark = f"arp{operation}-{kind}"
                    text = frames.arp(operation, own, claimed, address, f"mark-{mark}")
                    forge(mark, frames.ethernet(to, own, frames.ARP, text))
            mark = f"sender-{victim}-{to[:2]}"
            text = frames.arp(2, other, l3.address(3), address, f"mark-{mark}")
            forge(mark, frames.ethernet(to, own, frames.ARP, text))
        for name, mac_used, address_used in (("ip", own, l3.address(3)), ("mac", other, l3.address(attacker))):
            mark = f"{name}-{victim}"
            packet = frames.udp4(address_used, address, (4000, 4000), f"mark-{mark}".encode())
            forge(mark, frames.ethernet(mac, mac_used, frames.IPV4, packet))
        for to, address_to in ((mac, address), (frames.BROADCAST, "255.255.255.255")):
            mark = f"dhcp-{victim}-{to[:2]}"
            packet = frames.udp4(l3.address(attacker), address_to, (67, 68), f"mark-{mark}".encode())
            forge(mark, frames.ethernet(to, own, frames.IPV4, packet))
        forge(f"type-{victim}", frames.ethernet(mac, own, frames.EXPERIMENT, f"mark-type-{victim}".encode()))
        packet = frames.udp4(l3.address(attacker), address, (4000, 4000), f"mark-honest-{victim}".encode())
        forge(f"honest-{victim}", frames.ethernet(mac, own, frames.IPV4, packet))
    forge("router", frames.router_advertisement(own, "fe80::1", "mark-router"))
    watch = l3.watch(marks, (0, l3.mine), (2, l3.mine), (0, l3.theirs), (1, l3.theirs))
    l3.send(attacker, sent)
    expected = [{"mark-honest-0": 1}, {"mark-honest-2": 1}, {}, {}]
    assert watch.counts(expected) == expected
    for victim in (0, 2):
        l3.ask(victim, f"ping -c 1 -w 10 {gateway}")
        assert addresses.gateway_mac(l3.network, 0) in l3.ask(victim, f"ip neigh show {gateway}")


def tunnelled(l3: Lab, source: int, target: int) -> tuple[str, str]:
    """The hardware addresses (destination, source) that a frame between two VMs has in a tunnel (bpf/port.c)."""
    if l3.network.data_path is DataPath.OVS:
        return l3.mac(target), l3.mac(source)
    return addresses.label_mac(0), f"02:00:{l3.mac(target)[-5:]}:{l3.mac(source)[-5:]}"


def test_nobody_else_sends_into_a_tunnel(l3: Lab) -> None:
    """A frame for student's vm0, made by hand, in a datagram to its node."""
    suffix, port, vni = l3.network.host_suffix, l3.network.vxlan_port, l3.vni(l3.mine)
    target = l3.tb.run(["getent", "ahostsv4", f"n1{suffix}"]).out.split()[0]
    attempts = (("teacher", "n2"), ("student", "n2"), ("student", "login"), ("root", "login"), ("root", "n2"))
    marks = [f"mark-{user}-{node}" for user, node in attempts]
    watch = l3.watch(marks, (0, l3.mine), (0, l3.theirs))
    for mark, (user, node) in zip(marks, attempts, strict=True):
        inner = frames.udp4(l3.address(2), l3.address(0), (4000, 4000), mark.encode())
        packet = frames.vxlan(vni, frames.ethernet(*tunnelled(l3, 2, 0), frames.IPV4, inner))
        argv = ["/usr/bin/python3", "-I", "-", target, str(port), packet.hex()]
        l3.tb.run(argv, node=node, user=user, stdin=SEND_UDP)
    # Root of a node of the cluster is trusted, and shows that the datagram is a right one.
    expected = [{"mark-root-n2": 3}, {}]
    assert watch.counts(expected) == expected


def test_a_name_server_that_is_killed(l3: Lab) -> None:
    """Only the names on its node are gone, and only until the node's daemon has started another one."""
    domain = l3.network.domain_name
    pattern = f"^[^ ]*dnsmasq .*/{l3.mine.job_id}/"
    killed = find_pids(l3.tb, "n2", pattern)
    assert len(killed) == 1
    l3.tb.root(["kill", "-9", *map(str, killed)], "n2")
    assert l3.address(2) in answer(l3, 0, f"vm2.{domain}")
    l3.ask(2, f"frames ping {l3.address(0)} 1500")
    wait_until(lambda: find_pids(l3.tb, "n2", pattern) not in ([], killed), 120, "n2 has no name server")
    assert l3.address(0) in answer(l3, 2, f"vm0.{domain}")
    assert f"lease of {l3.address(2)} " in l3.ask(2, "udhcpc -n -q -f -t 5 -i eth0 -s /bin/true 2>&1")
    assert "starting it again" in l3.tb.log("n2", "pvc-node")


def test_a_switch_that_is_started_again(l3: Lab) -> None:
    """Open vSwitch loses all flows when it ends; the kernel's bridges have nothing that could end."""
    if l3.network.data_path is not DataPath.OVS:
        return
    pattern = "^[^ ]*ovs-vswitchd "
    (switch,) = find_pids(l3.tb, "n1", pattern)
    words = l3.tb.root(["cat", f"/proc/{switch}/cmdline"], "n1").rstrip("\0").split("\0")
    l3.tb.root(["kill", "-9", str(switch)], "n1")
    wait_until(lambda: switch not in find_pids(l3.tb, "n1", pattern), 120, "it did not end")
    l3.ask(2, f"frames ping {l3.address(3)} 1500")
    if not find_pids(l3.tb, "n1", pattern):
        l3.tb.root(f"setsid {' '.join(words)} </dev/null >/dev/null 2>&1 &", "n1")
    wait_until(lambda: is_answered(l3, 0, l3.address(2)), 120, "n1's VMs reach nobody")
    for source, to in ((0, 1), (0, 2), (3, 1)):
        l3.ask(source, f"frames ping {l3.address(to)} 1500")
    assert l3.address(3) in answer(l3, 0, f"vm3.{l3.network.domain_name}")


def test_an_address_outlives_a_reboot(l3: Lab) -> None:
    def said() -> str:
        return log(l3.tb, l3.mine, "vm2")

    vm = l3.vm(2)
    assert said().count("GUEST-READY") == 1
    vm.type("reboot -f")
    # Where many machines are emulated at once, a start takes a minute.
    wait_until(lambda: said().count("GUEST-READY") == 2, 300, lambda: f"vm2 has not come back: {said()[-2000:]}")
    assert said().count(f"GUEST-ADDRESS eth0 {l3.address(2)}/") == 2
    l3.ask(0, f"ping -c 1 -w 10 {l3.address(2)}")
    l3.ask(2, f"ping -c 1 -w 10 {l3.address(3)}")


def test_a_lost_node_takes_nothing_from_others(l3: Lab) -> None:
    """No service of a cluster is in one place."""
    l3.tb.crash("n3")
    for asker in (0, 2):
        for rank in range(4):
            assert l3.address(rank) in answer(l3, asker, f"vm{rank}.{l3.network.domain_name}")
        assert f"lease of {l3.address(asker)} " in l3.ask(asker, "udhcpc -n -q -f -t 5 -i eth0 -s /bin/true 2>&1")
        l3.ask(asker, f"frames ping {l3.address(2 - asker)} 1500")
    assert not is_answered(l3, 0, l3.address(3))
