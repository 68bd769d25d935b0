# SPDX-License-Identifier: Apache-2.0
"""What frames of VMs arrive where, on a real kernel: run by test_networks.py inside fresh namespaces.

    python -m tests.host.wire_world SCENARIO

What an attacker's frames do, and what an honest VM's do; frames are written to taps and read from them.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from ipaddress import IPv6Address

from pvc.model.network import Layer
from pvc.plan import addresses
from tests.host import frames, netboot, nodes
from tests.host.net_world import GATEWAY, GATEWAY6, NET, OVS, TAKEN, cluster_on, read
from tests.host.nodes import Cluster, Node, World
from tests.waits import PATIENCE_S, wait_until

OWN, THEIRS = "52:54:00:00:00:01", "52:54:00:00:00:02"
ROUTER_LOCAL, OWN_LOCAL = addresses.link_local("52:54:00:ff:ff:00"), addresses.link_local(OWN)
HELLO = frames.udp(1000, 1000, b"hello")


def strangers() -> None:
    """What a VM sends to its own tap, addressed to the node, no part of the node's stack takes."""
    world = World(2)
    (one, _) = world.nodes
    with cluster_on(world, Cluster((NET,), 4)) as (plan, _):
        evil, own = one.call(nodes.open_tap, plan, 0), plan.taps[0]
        shown = one.run("ip", "-o", "link", "show", own.name, inside=own.netns)
        hardware = shown.stdout.partition("link/ether ")[2][:17]
        assert len(hardware) == 17
        before = one.call(read, "/proc/thread-self/net/snmp", inside=own.netns).partition("Udp:")[2]
        for target in (hardware, frames.BROADCAST):
            body = frames.ipv4("10.200.0.1", one.address, 17, frames.udp(1000, 7000, b"hello"))
            one.call(nodes.send_frames, evil, [frames.ethernet(OWN, target, 0x0800, body)])
        one.call(received, evil)
        assert one.call(read, "/proc/thread-self/net/snmp", inside=own.netns).partition("Udp:")[2] == before
        one.call(nodes.close, evil)
    world.close()


def four(source: str, payload: bytes = HELLO, mac: str = OWN) -> bytes:
    return frames.ethernet(mac, THEIRS, 0x0800, frames.ipv4(source, "10.200.0.2", 17, payload))


def six(packet: bytes) -> bytes:
    return frames.ethernet(OWN, "33:33:00:00:00:01", 0x86DD, packet)


def honest_frames() -> list[bytes]:
    """What vm0 may say to vm1. Open vSwitch answers for addresses itself, and link-local ones are for the gateway."""
    said = [
        four("10.200.0.1"),
        frames.arp(OWN, OWN, "10.200.0.1", "10.200.0.2"),
        frames.arp(OWN, OWN, "0.0.0.0", "10.200.0.1"),
        frames.arp(OWN, OWN, "10.200.0.1", "10.200.0.1", reply=True),
        six(frames.udp6("fd00:c8::1", "ff02::1", 1000, 1000, b"hello")),
        six(frames.udp6(OWN_LOCAL, "ff02::1", 1000, 1000, b"hello")),
        six(frames.advert6("fd00:c8::1", "fd00:c8::1", OWN)),
        six(frames.advert6(OWN_LOCAL, OWN_LOCAL, OWN)),
    ]
    return [said[0], said[4]] if OVS else said


def spoofed_frames() -> dict[str, bytes]:
    """What it may not."""
    probe = bytes(4) + IPv6Address("fd00:c8::2").packed
    return {
        "another VM's IPv4 address": four("10.200.0.2"),
        "the gateway's IPv4 address": four(GATEWAY),
        "a foreign IPv4 address": four("198.51.100.1"),
        "another VM's address over TCP": frames.ethernet(
            OWN, THEIRS, 0x0800, frames.ipv4("10.200.0.3", "10.200.0.2", 6, bytes(20))
        ),
        "another VM's MAC over TCP": frames.ethernet(
            "52:54:00:00:00:03", THEIRS, 0x0800, frames.ipv4("10.200.0.1", "10.200.0.2", 6, bytes(20))
        ),
        "another VM's MAC": four("10.200.0.1", mac="52:54:00:00:00:03"),
        "the gateway's MAC": four("10.200.0.1", mac="52:54:00:ff:ff:00"),
        "a DHCP server": four("10.200.0.1", frames.udp(67, 68, b"offer")),
        "ARP for another VM": frames.arp(OWN, OWN, "10.200.0.3", "10.200.0.2", reply=True),
        "ARP for the gateway": frames.arp(OWN, OWN, GATEWAY, "10.200.0.2"),
        "ARP with another MAC inside": frames.arp(OWN, "52:54:00:00:00:04", "10.200.0.1", "10.200.0.2"),
        "another VM's IPv6 address": six(frames.udp6("fd00:c8::2", "ff02::1", 1000, 1000, b"hello")),
        "a foreign IPv6 address": six(frames.udp6("2001:db8::1", "ff02::1", 1000, 1000, b"hello")),
        "the router's link-local address": six(frames.udp6(ROUTER_LOCAL, "ff02::1", 1000, 1000, b"hello")),
        "a router": six(frames.router_advert6(OWN_LOCAL)),
        "a DHCPv6 server": six(frames.udp6(OWN_LOCAL, "ff02::1", 547, 546, b"reply")),
        "ND for another VM": six(frames.advert6(OWN_LOCAL, "fd00:c8::2", OWN)),
        "ND for the gateway": six(frames.advert6(OWN_LOCAL, GATEWAY6, OWN)),
        "ND for the router": six(frames.advert6(OWN_LOCAL, ROUTER_LOCAL, OWN)),
        "a look for another VM's address": six(frames.icmp6("::", "ff02::1", 135, probe)),
        "a VLAN tag": frames.ethernet(
            OWN, THEIRS, 0x8100, b"\0\1\x08\0" + frames.ipv4("10.200.0.2", "10.200.0.2", 17, HELLO)
        ),
        "an unknown protocol": frames.ethernet(OWN, THEIRS, 0x88B5, b"x"),
    }


def spoofing() -> None:
    """No frame with somebody else's address leaves a VM of an L3 network; its own do."""
    world = World(2)
    one, two = world.nodes
    with cluster_on(world, Cluster((NET,), 4)) as (plan, theirs):
        evil, victim = (one.call(nodes.open_tap, plan, rank) for rank in (0, 1))
        far = two.call(nodes.open_tap, theirs, 2)
        good, bad = honest_frames(), spoofed_frames()
        one.call(received, victim)
        one.call(nodes.send_frames, evil, good)
        arrived = one.call(received, victim, len(good))
        missing = [place for place, frame in enumerate(good) if frame.rstrip(b"\0") not in arrived]
        assert not missing, missing
        for what, frame in bad.items():
            one.call(nodes.send_frames, evil, [frame])
            assert one.call(received, victim) == [], what
            assert frame.rstrip(b"\0") not in two.call(received, far), what
        for fd in (evil, victim):
            one.call(nodes.close, fd)
        two.call(nodes.close, far)
    world.close()


def groups() -> None:
    """Multicast and broadcast of a VM of an L3 network reach all other VMs once; what its node answers stays there."""
    world = World(2)
    one, two = world.nodes
    other = Cluster((NET,), 4, job_id=13, first_vni=6001, slot=1, ports_taken=TAKEN)
    with cluster_on(world, Cluster((NET,), 4)) as (plan, theirs), cluster_on(world, other) as (_, foreign):
        sender, near = (one.call(nodes.open_tap, plan, rank) for rank in (0, 1))
        far = [two.call(nodes.open_tap, theirs, rank) for rank in (2, 3)]
        strange = two.call(nodes.open_tap, foreign, 2)
        wanted = [
            frames.ethernet(OWN, "01:00:5e:00:00:fb", 0x0800, frames.ipv4("10.200.0.1", "224.0.0.251", 17, HELLO)),
            frames.ethernet(OWN, frames.BROADCAST, 0x0800, frames.ipv4("10.200.0.1", "10.200.255.255", 17, HELLO)),
            six(frames.udp6("fd00:c8::1", "ff02::1", 1000, 1000, b"hello")),
        ]
        for node, fd in ((one, near), *((two, each) for each in far), (two, strange)):
            node.call(received, fd)
        one.call(nodes.send_frames, sender, wanted)
        said = [frame.rstrip(b"\0") for frame in wanted]
        assert one.call(received, near, len(said)) == said
        for fd in far:
            assert two.call(received, fd, len(said)) == said
        assert two.call(received, strange) == []
        request = frames.ipv4("0.0.0.0", "255.255.255.255", 17, frames.udp(68, 67, b"discover"))
        kept = [
            frames.ethernet(OWN, frames.BROADCAST, 0x0800, request),
            frames.arp(OWN, OWN, "10.200.0.1", "10.200.0.77"),
            frames.arp(OWN, OWN, "10.200.0.1", "10.200.0.3"),
            six(frames.icmp6(OWN_LOCAL, "ff02::2", 133, bytes(4))),
            six(frames.icmp6("fd00:c8::1", "ff02::1:ff00:77", 135, bytes(4) + IPv6Address("fd00:c8::77").packed)),
            six(frames.udp6(OWN_LOCAL, "ff02::1:2", 546, 547, b"solicit")),
        ]
        one.call(nodes.send_frames, sender, kept)
        for fd in far:
            assert two.call(received, fd) == []
        for node, fd in ((one, sender), (one, near), *((two, each) for each in far), (two, strange)):
            node.call(nodes.close, fd)
    world.close()


def answers() -> None:
    """Who asks for a VM of another node gets that VM's MAC, and for a number that is no VM's nothing."""
    world = World(2)
    one, _ = world.nodes
    with cluster_on(world, Cluster((NET,), 37, cpus=20)) as (plan, _):
        fd, local = one.call(nodes.open_tap, plan, 0), {vm.rank for vm in plan.grant.vms}
        remote = {rank: addresses.vm_mac(NET, 0, rank) for rank in range(37) if rank not in local}
        assert len(remote) > 16
        numbers = {number: remote.get(number - 1) for number in range(70) if number - 1 not in local}
        one.call(received, fd)
        one.call(nodes.send_frames, fd, [frames.arp(OWN, OWN, "10.200.0.1", f"10.200.0.{each}") for each in numbers])
        said = [frame for frame in one.call(received, fd, len(remote)) if frame[12:14] == b"\x08\x06"]
        # ARP: MAC and address of the sender (RFC 826); a bridge leaves trailing zeros to be cut off.
        found = {frame[31]: frame[22:28].hex(":") for frame in said}
        assert found == {number: hardware for number, hardware in numbers.items() if hardware}
        assert all(frame[6:12] == frame[22:28] for frame in said)
        asked = [frames.solicit6("fd00:c8::1", f"fd00:c8::{each:x}", OWN) for each in numbers]
        one.call(nodes.send_frames, fd, [six(packet) for packet in asked])
        said = one.call(received, fd, len(remote))
        said = [frame for frame in said if frame[12:14] == b"\x86\xdd" and frame[54] == 136]
        # ND: the target, and its MAC as an option (RFC 4861, 4.4 and 4.6.1).
        found = {frame[77]: frame[80:86].hex(":") for frame in said}
        assert found == {number: hardware for number, hardware in numbers.items() if hardware}
        one.call(nodes.close, fd)
    world.close()


def switch() -> None:
    """An L2 network is an empty switch over two nodes: broadcast, multicast, unknown addresses, the users' DHCP."""
    world = World(3)
    one, two, _ = world.nodes
    lan = replace(NET, name="lan", layer=Layer.L2, reverse_nat=(), int_network6=None)
    with cluster_on(world, Cluster((lan,), 5, nodes=3)) as plans:
        taps = [
            (node, node.call(nodes.open_tap, plan, vm.rank))
            for node, plan in zip(world.nodes, plans, strict=True)
            for vm in plan.grant.vms
        ]
        nested = "02:00:00:00:00:09"
        offer = frames.ipv4("192.168.7.1", "255.255.255.255", 17, frames.udp(67, 68, b"offer"))
        for frame in (
            frames.arp(nested, nested, "192.168.7.1", "192.168.7.2"),
            frames.ethernet(nested, frames.BROADCAST, 0x0800, offer),
            frames.ethernet(nested, "01:00:5e:00:00:fb", 0x0800, offer),
            frames.ethernet(nested, "33:33:00:00:00:01", 0x86DD, frames.router_advert6("fe80::1")),
            frames.ethernet(nested, "02:00:00:00:00:77", 0x88B5, b"who is that?"),
        ):
            one.call(nodes.send_frames, taps[0][1], [frame])
            for node, fd in taps[1:]:
                assert node.call(received, fd, 1) == [frame.rstrip(b"\0")]
            assert one.call(received, taps[0][1]) == []
        # An answer to an address that was seen goes there and, where the switch learns, not to everybody alike.
        back = frames.ethernet("52:54:00:00:00:03", nested, 0x88B5, b"that is me")
        two.call(nodes.send_frames, taps[2][1], [back])
        assert one.call(received, taps[0][1], 1) == [back.rstrip(b"\0")]
        assert one.call(received, taps[1][1], int(OVS)) == ([back.rstrip(b"\0")] if OVS else [])
        assert world.nodes[2].call(received, taps[4][1], int(OVS)) == ([back.rstrip(b"\0")] if OVS else [])
        # No node answers on it.
        solicit = frames.icmp6("fe80::9", "ff02::1", 128, b"\0\1\0\1")
        one.call(nodes.send_frames, taps[0][1], [frames.ethernet(nested, "33:33:00:00:00:01", 0x86DD, solicit)])
        assert one.call(received, taps[0][1]) == []
        for node, fd in taps:
            node.call(nodes.close, fd)
    world.close()


def invented() -> None:
    """A VM of an L2 network that sends from more addresses than there are VMs fills no node's memory."""
    world = World(2)
    one, two = world.nodes
    lan = replace(NET, name="lan", layer=Layer.L2, reverse_nat=(), int_network6=None)
    most, batch = 1 << 17, 3000
    with cluster_on(world, Cluster((lan,), 2)) as (plan, theirs):
        sender, far = one.call(nodes.open_tap, plan, 0), two.call(nodes.open_tap, theirs, 1)
        for first in range(0, most + 4 * batch, batch):
            sources = (f"02:00:01:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}" for n in range(first, first + batch))
            said = [frames.ethernet(source, frames.BROADCAST, 0x88B5, b"here I am") for source in sources]
            one.call(nodes.send_frames, sender, said)
            two.call(nodes.drain, far)
        for node, place in ((one, plan), (two, theirs)):
            shown = node.run("bridge", "fdb", "show", inside=place.netns).stdout.splitlines()
            learnt = [line for line in shown if line.startswith("02:00:01:")]
            # By the bridge, and by the tunnel.
            counts = [sum(word in line for line in learnt) for word in (" master ", " self")]
            assert max(counts) <= most, counts
            assert OVS or counts[0] > most // 2, counts
        one.call(nodes.close, sender)
        two.call(nodes.close, far)
    world.close()


def booting() -> None:
    """A machine with nothing but its interface's ROM boots over an L2 network, from a VM that is the users' server."""
    world = World(2)
    one, two = world.nodes
    lan = replace(NET, name="lan", layer=Layer.L2, reverse_nat=(), int_network6=None)
    with cluster_on(world, Cluster((lan,), 2)) as (plan, theirs):
        server = one.call(nodes.start_guest, plan, 0)
        one.call(nodes.give_address, "192.168.7.1/24", None, inside=server)
        one.call(netboot.serve_boot, "192.168.7.1", inside=server)
        machine = two.call(netboot.start_machine, theirs, 1)
        # iPXE loads the first script, and the first one has it load the second.
        wait_until(lambda: "/second to 192.168.7.10" in one.call(netboot.read_boot_log), 180)
        two.call(netboot.end, machine)
    world.close()


def tunnels() -> None:
    """A frame gets into a tunnel from root of a peer only: not from its users, not from elsewhere, not from a VM."""
    world = World(3)
    one, two, three = world.nodes
    with cluster_on(world, Cluster((NET,), 4)) as (plan, _):
        victim = one.call(nodes.open_tap, plan, 0)
        inner = frames.ethernet("52:54:00:00:00:03", "52:54:00:00:00:01", 0x88B5, b"injected")
        # On the kernel's path the tunnel knows nodes by labels, and VMs by numbers in the source (bpf/port.c).
        sent = inner if OVS else frames.ethernet("02:00:00:01:00:03", "02:00:00:00:00:00", 0x88B5, b"injected")
        packet = frames.vxlan(5001, sent)

        def arrives(node: Node | None, uid: int, data: bytes = packet, least: int = 0) -> bool:
            one.call(received, victim)
            if node is None:
                nodes.send_as(uid, one.tunnel_address, 4789, data)
            else:
                node.call(nodes.send_as, uid, one.tunnel_address, 4789, data)
            return one.call(received, victim, least) == [inner.rstrip(b"\0")]

        assert arrives(two, 0, least=1), "the control: a peer's root can"
        assert not arrives(two, 4322), "a user of a peer"
        assert not arrives(one, 4322), "a user of the node itself"
        assert not arrives(three, 0), "a node that is no peer"
        assert not arrives(None, 0), "the rest of the world"
        assert not arrives(two, 0, frames.vxlan(5002, sent)), "another cluster's VNI"
        one.call(nodes.close, victim)
    world.close()


def limits() -> None:
    """A VM sends and receives no more than its network allows."""
    world = World(1)
    (one,) = world.nodes
    slow = replace(NET, bandwidth_mbit=8)
    for network in (slow, replace(slow, name="lan", layer=Layer.L2, reverse_nat=(), int_network6=None)):
        with cluster_on(world, Cluster((network,), 2, nodes=1)) as (plan,):
            sender, receiver = (one.call(nodes.open_tap, plan, rank) for rank in (0, 1))
            if OVS:
                meters = one.run("ovs-ofctl", "-OOpenFlow15", "dump-meters", "pvc-ovs").stdout
                assert meters.count("rate=8000 burst_size=2048") == 4, meters
            else:
                shaped = one.run("tc", "qdisc", "show", inside=plan.netns).stdout
                assert shaped.count("qdisc tbf") == 2, shaped
                assert "rate 8Mbit" in shaped
            packet = frames.ipv4("10.200.0.1", "10.200.0.2", 17, frames.udp(1, 2, bytes(1400)))
            frame = frames.ethernet("52:54:00:00:00:01", "52:54:00:00:00:02", 0x0800, packet)
            one.call(nodes.drain, receiver)
            # Less than the burst of 256 KiB passes at once, and fits into the queues on its way.
            one.call(nodes.send_frames, sender, [frame] * 50)
            assert len(one.call(received, receiver, 50)) == 50
            # 5.8 MB in some milliseconds, through a limit of 1 MB a second.
            began = time.monotonic()
            one.call(nodes.send_frames, sender, [frame] * 4000)
            passed = len(one.call(nodes.drain, receiver))
            most = ((256 << 10) + 1_000_000 * (time.monotonic() - began)) / len(frame)
            assert 0 < passed < most, (network.name, passed, most)
            if not OVS:
                # What came to where the receiver is limited had been let out by the sender's limit.
                shown = one.run("tc", "-s", "-j", "qdisc", "show", "dev", plan.taps[1].name, inside=plan.netns).stdout
                queue = next(each for each in json.loads(shown) if each["kind"] == "tbf")
                assert queue["packets"] + queue["drops"] < 50 + most, (network.name, queue)
            for fd in (sender, receiver):
                one.call(nodes.close, fd)
    world.close()


def received(fd: int, least: int = 0) -> list[bytes]:
    """On a node: what came to a tap, but for the router's advertisements; padding is left off, as bridges do.

    ``least`` frames are waited for, and then a moment of silence.
    """
    router = frames.mac("52:54:00:ff:ff:00") + b"\x86\xdd"
    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found += [frame.rstrip(b"\0") for frame in nodes.drain(fd) if frame[6:14] != router]
        if len(found) >= least or time.monotonic() > deadline:
            return found


SCENARIOS = (answers, groups, strangers, spoofing, switch, invented, booting, tunnels, limits)


def main() -> None:
    nodes.run("mount", "-t", "tmpfs", "tmpfs", "/run")
    next(each for each in SCENARIOS if each.__name__ == sys.argv[1])()


if __name__ == "__main__":
    main()
