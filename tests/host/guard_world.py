# SPDX-License-Identifier: Apache-2.0
"""What leaves a VM of an L3 network and where it arrives, frame by frame: run by test_networks.py.

    python -m tests.host.guard_world SCENARIO

The frames are in attacks.py. Six VMs, three on each of two nodes, are watched, and their gateways.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address

from pvc.plan import names
from pvc.plan.node import NodePlan
from tests.host import attacks, frames, nodes
from tests.host.attacks import FAR, GATEWAY_MAC, MTU, NEAR, SELF, THIRD, Vm
from tests.host.net_world import GATEWAY, GATEWAY6, NET, OVS, cluster_on
from tests.host.nodes import Cluster, Node, World
from tests.waits import wait_until

VMS = tuple(map(Vm, range(6)))
# What the first cluster takes on each node.
MANY_TAKEN = frozenset(first + each for first in (60000, 60100, 60200, 60300) for each in range(6))
_END = frames.udp(7, 7, b"that is all there is to say")
_SNIFFERS: dict[int, socket.socket] = {}


@dataclass(frozen=True)
class Heard:
    """What came to each VM, vm0 first, and to each node's gateway; by the names of what was sent, as far as it was."""

    vms: tuple[list[str], ...]
    gateways: tuple[list[str], ...]


@dataclass(frozen=True)
class Ears:
    """The VMs' taps, vm0's first, and both nodes' gateways: each a node and a descriptor there."""

    taps: tuple[tuple[Node, int], ...]
    gateways: tuple[tuple[Node, int], ...]

    def say(self, sent: list[bytes]) -> None:
        """vm0 sends."""
        node, fd = self.taps[0]
        node.call(nodes.send_frames, fd, sent)

    def hear(self, sent: dict[str, bytes]) -> Heard:
        """What comes of what vm0 sends: up to the arrival of what it sends last, everywhere."""
        ends = [attacks.to4(vm.mac, frames.ipv4(SELF.address, vm.address, 17, _END)) for vm in VMS[1:]]
        ends.append(attacks.to4(GATEWAY_MAC, frames.ipv4(SELF.address, GATEWAY, 17, _END)))
        self.say(list(sent.values()))
        # A frame that a device is too small for has Open vSwitch drop what it would send there with it.
        time.sleep(0.2)
        self.say(ends)
        came = self._collect()

        def have_come() -> bool:
            nonlocal came
            if not set(ends) - {frame for each in came for frame in each}:
                return True
            # On a busy machine the moment above was too short, and they were dropped, too.
            self.say(ends)
            came = [[*before, *more] for before, more in zip(came, self._collect(), strict=True)]
            return False

        wait_until(have_come, lack=lambda: [[frame.hex() for frame in each] for each in came])
        called = {frame.rstrip(b"\0"): what for what, frame in sent.items()}
        own = frames.mac(GATEWAY_MAC)
        # What a gateway says by itself is no matter here.
        found = [
            [called.get(frame, frame.hex()) for frame in each if frame in called or frame[6:12] != own]
            for each in ([frame for frame in each if frame not in ends] for each in came)
        ]
        return Heard(tuple(found[: len(self.taps)]), tuple(found[len(self.taps) :]))

    def _collect(self) -> list[list[bytes]]:
        time.sleep(0.2)
        found = [node.call(taken, fd) for node, fd in self.taps]
        found += [node.call(sniffed, fd) for node, fd in self.gateways]
        return [[frame.rstrip(b"\0") for frame in each] for each in found]


def taken(fd: int) -> list[bytes]:
    """On a node: what has come to a tap, without waiting."""
    return nodes.drain(fd, 0)


def sniff(device: str) -> int:
    """On a node: begin to record what a device hands to the node's stack."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
    link.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    link.bind((device, 0))
    _SNIFFERS[link.fileno()] = link
    return link.fileno()


def sniffed(fd: int) -> list[bytes]:
    """On a node: what came since; not what went out."""
    found = []
    try:
        while True:
            frame, about = _SNIFFERS[fd].recvfrom(70000)
            if about[2] != socket.PACKET_OUTGOING:
                found.append(frame)
    except BlockingIOError:
        return found


def unsniff(fd: int) -> None:
    _SNIFFERS.pop(fd).close()


@contextmanager
def six_vms(world: World) -> Iterator[tuple[Ears, list[NodePlan]]]:
    """A cluster of NET, three VMs on each node."""
    with cluster_on(world, Cluster((NET,), 6, cpus=3)) as plans:
        taps, gateways = [], []
        for node, plan in zip(world.nodes, plans, strict=True):
            assert len(plan.grant.vms) == 3
            taps += [(node, node.call(nodes.open_tap, plan, vm.rank)) for vm in plan.grant.vms]
            gateways.append((node, node.call(sniff, names.bridge(0), inside=names.netns(12))))
        ears = Ears(tuple(taps), tuple(gateways))
        ears.hear({})
        yield ears, plans
        for node, fd in gateways:
            node.call(unsniff, fd)
        for node, fd in taps:
            node.call(nodes.close, fd)


def forged() -> None:
    """No frame with somebody else's address, or with somebody else's part to play, reaches anybody."""
    world = World(2)
    with six_vms(world) as (ears, _):
        bad = attacks.forged()
        if OVS:
            # It believes the Ethernet header about the version; the addresses are right, and no kernel takes it.
            bad = {what: frame for what, frame in bad.items() if "calls itself" not in what}
        faults: dict[str, list[str]] = {}
        waiting = list(bad.items())
        while waiting:
            # Few enough for the queue of a tap, should they all arrive.
            part, waiting = waiting[:200], waiting[200:]
            heard = ears.hear(dict(part))
            for who, came in (
                *((f"vm{at}", came) for at, came in enumerate(heard.vms)),
                *((f"the gateway of n{at}", came) for at, came in enumerate(heard.gateways, 1)),
            ):
                faults.setdefault(who, []).extend(came)
        said = [f"{who} heard {len(came)}:\n  " + "\n  ".join(came) for who, came in faults.items() if came]
        assert not said, "\n".join(said)
    world.close()


def unicasts() -> None:
    """What a VM may say to another arrives there once, as it was sent, and nowhere else."""
    world = World(2)
    with six_vms(world) as (ears, _):
        for at, vm in ((1, NEAR), (2, THIRD), (3, FAR), (5, VMS[5])):
            good = attacks.honest(vm)
            heard = ears.hear(good)
            assert sorted(heard.vms[at]) == sorted(good), (at, set(good) ^ set(heard.vms[at]))
            others = [came for number, came in enumerate(heard.vms) if number != at]
            assert others == [[]] * 5, others
            assert heard.gateways == ([], [])
    world.close()


def link_locals() -> None:
    """Link-local addresses and groups are all VMs' on the kernel's data path; on the other, the gateway's alone."""
    world = World(2)
    with six_vms(world) as (ears, _):
        good = attacks.local_groups()
        heard = ears.hear(good).vms
        # The one about its own address stays on its node: each node answers its own VMs.
        far = [what for what in good if what != "a look for its own address"]
        assert heard[0] == []
        for at in (1, 2):
            assert heard[at] == ([] if OVS else list(good)), (at, heard[at])
        for at in (3, 4, 5):
            assert heard[at] == ([] if OVS else far), (at, heard[at])
    world.close()


def nowhere() -> None:
    """What is for nobody reaches nobody: unknown MACs, the sender's own, another cluster's VMs, what is too large."""
    world = World(2)
    one, two = world.nodes
    # vm6 is the other cluster's.
    other = Cluster((NET,), 8, cpus=4, job_id=13, first_vni=6001, slot=1, ports_taken=MANY_TAKEN)
    with six_vms(world) as (ears, _), cluster_on(world, other) as (theirs, foreign):
        strange = [(one, one.call(nodes.open_tap, theirs, 1)), (two, two.call(nodes.open_tap, foreign, 6))]
        said = frames.ipv4(SELF.address, NEAR.address, 17, attacks.HELLO)
        said6 = frames.udp6(SELF.address6, NEAR.address6, 1000, 1000, b"hello")
        lost = {
            f"{what} for {target}": frame
            for target in (
                *("52:54:00:00:00:07", "52:54:00:00:00:77", "52:54:00:00:ff:01", "52:54:00:ff:ff:01"),
                *("52:54:00:01:00:02", "02:00:00:00:00:02", "00:00:00:00:00:00", SELF.mac),
                *("02:00:0a:63:00:02", "02:00:00:00:00:01", "02:00:00:02:00:01"),
            )
            for what, frame in (
                ("IPv4", attacks.to4(target, said)),
                ("TCP", attacks.to4(target, frames.ipv4(SELF.address, NEAR.address, 6, attacks.tcp()))),
                ("IPv6", attacks.to6(target, said6)),
            )
        }
        for vm in (NEAR, FAR):
            for more in (1, 4, 400):
                data = b"x" * (MTU - 28 + more)
                lost[f"{more} bytes too many for vm{vm.rank}"] = attacks.to4(
                    vm.mac, frames.ipv4(SELF.address, vm.address, 17, frames.udp(1000, 1000, data))
                )
        data = b"x" * (MTU - 28 + 400)
        lost["too many bytes for all"] = attacks.to4(
            frames.BROADCAST, frames.ipv4(SELF.address, "10.200.255.255", 17, frames.udp(1000, 1000, data))
        )
        heard = ears.hear(lost)
        assert heard == Heard(([],) * 6, ([], [])), heard
        if not OVS:
            giant = frames.ipv4(SELF.address, FAR.address, 6, attacks.tcp() + b"x" * 12000)
            for vm in (NEAR, FAR):
                # virtio 1.2, 5.1.6: a frame for TSO in segments of 5000 bytes.
                one.call(send_segments, ears.taps[0][1], 5000, attacks.to4(vm.mac, giant))
            heard = ears.hear({})
            assert heard == Heard(([],) * 6, ([], [])), heard
        for node, fd in strange:
            said = [frame for frame in node.call(taken, fd) if frame[6:12] != frames.mac(GATEWAY_MAC)]
            assert said == []
            node.call(nodes.close, fd)
    world.close()


def send_segments(fd: int, size: int, frame: bytes) -> None:
    """On a node: a guest's frame that is to be cut into segments of IPv4's TCP."""
    needs_sum, tcp4 = 1, 1
    os.write(fd, struct.pack("=BBHHHH", needs_sum, tcp4, 54, size, 34, 16) + frame)


def rewritten() -> None:
    """What a guest leaves to be summed (virtio 1.2, 5.1.6.2) is written behind all that a frame is judged by."""
    world = World(2)
    one, _ = world.nodes
    with six_vms(world) as (ears, _):
        _, tap = ears.taps[0]
        if OVS:
            # Its own process reads frames that are complete: there is no way to leave anything out.
            assert not one.call(takes_sums, tap)
        for vm in () if OVS else (NEAR, FAR):
            udp = attacks.to4(vm.mac, frames.ipv4(SELF.address, vm.address, 17, attacks.HELLO))
            tcp = attacks.to4(vm.mac, frames.ipv4(SELF.address, vm.address, 6, attacks.tcp()))
            options = frames.ipv4(SELF.address, vm.address, 17, attacks.HELLO, options=b"\1" * 8)
            later = frames.ipv4(SELF.address, vm.address, 17, attacks.HELLO, fragment=5)
            udp6 = attacks.to6(vm.mac, frames.udp6(SELF.address6, vm.address6, 1000, 1000, b"hello"))
            tcp6 = attacks.to6(vm.mac, frames.ipv6(SELF.address6, vm.address6, 6, attacks.tcp()))
            behind = attacks.chained(udp6[14:], attacks.DESTINATION)
            solicit = attacks.to6(vm.mac, frames.solicit6(SELF.local, NEAR.local, SELF.mac))
            answer = frames.arp(SELF.mac, SELF.mac, SELF.address, vm.address, reply=True)
            answer = frames.mac(vm.mac) + answer[6:]
            good = ((udp, 34, 6), (tcp, 34, 16), (udp6, 54, 6), (tcp6, 54, 16), (attacks.to6(vm.mac, behind), 62, 6))
            for frame, start, offset in good:
                assert one.call(send_unsummed, tap, start, offset, frame)
                # It is another frame when it arrives.
                (came,) = ears.hear({}).vms[vm.rank]
                assert came[: 2 * start] == frame[:start].hex(), came
            bad = {
                "a source port": (udp, 34, 0),
                "a target port": (udp, 34, 2),
                "an address over UDP": (udp, 24, 4),
                "an address over TCP": (tcp, 24, 2),
                "half of an address": (tcp, 24, 5),
                "a TCP port": (tcp, 34, 0),
                "a protocol": (tcp, 20, 2),
                "a source port behind options": (attacks.to4(vm.mac, options), 34, 8),
                "an address of a later fragment": (attacks.to4(vm.mac, later), 24, 4),
                "an IPv6 address over UDP": (udp6, 24, 12),
                "an IPv6 address over TCP": (tcp6, 24, 12),
                "a port over IPv6": (udp6, 54, 0),
                "a port over IPv6 behind options": (attacks.to6(vm.mac, behind), 54, 8),
                "what follows": (attacks.to6(vm.mac, behind), 54, 0),
                "a target of ND": (solicit, 54, 22),
                "a sender of ARP": (answer, 20, 8),
                "a MAC of ARP": (answer, 20, 4),
            }
            for what, (frame, start, offset) in bad.items():
                # The kernel refuses some by itself.
                if one.call(send_unsummed, tap, start, offset, frame):
                    heard = ears.hear({})
                    assert heard == Heard(([],) * 6, ([], [])), (what, heard)
    world.close()


def takes_sums(fd: int) -> bool:
    """On a node: whether a guest may leave sums out."""
    return nodes.header_size(fd) > 0


def send_unsummed(fd: int, start: int, offset: int, frame: bytes) -> bool:
    """On a node: a guest's frame with a sum over all from ``start`` still to be written to ``offset`` after it."""
    try:
        os.write(fd, struct.pack("=BBHHHH", 1, 0, 0, 0, start, offset) + frame)
    except OSError:
        return False
    return True


def lookups() -> None:
    """Who asks for a VM of another node is answered once, and no other VM hears it; one of the same node is asked."""
    world = World(2)
    with six_vms(world) as (ears, _):
        for vm in VMS[1:]:
            answers = {
                "ARP's answer": frames.ethernet(vm.mac, SELF.mac, 0x0806, _arp_answer(vm)),
                "ND's answer": attacks.to6(SELF.mac, _advert(vm), vm.mac),
            }
            called = {frame.rstrip(b"\0").hex(): what for what, frame in answers.items()}
            questions = {
                "ARP": frames.arp(SELF.mac, SELF.mac, SELF.address, vm.address),
                "ND": attacks.to6(
                    f"33:33:ff:00:00:{vm.rank + 1:02x}", frames.solicit6(SELF.address6, vm.address6, SELF.mac)
                ),
            }
            for what, question in questions.items():
                heard = ears.hear({what: question}).vms
                if vm.rank < 3 and not OVS:
                    assert heard[0] == [], (vm, what)
                    assert heard[vm.rank] == [what], (vm, what)
                    assert heard[3:] == ([],) * 3, (vm, what)
                else:
                    (answer,) = heard[0]
                    assert called.get(answer) == f"{what}'s answer", (vm, what, answer)
                    assert heard[1:] == ([],) * 5, (vm, what)
        for what, question in {
            "ARP": frames.arp(SELF.mac, SELF.mac, SELF.address, GATEWAY),
            "ND": attacks.to6("33:33:ff:ff:ff:fe", frames.solicit6(SELF.address6, GATEWAY6, SELF.mac)),
        }.items():
            node, fd = ears.taps[0]
            ears.say([question])
            # Besides, it may have questions of its own.
            came = [each for each in node.call(nodes.drain, fd) if each[:6] == frames.mac(SELF.mac)]
            came = [each for each in came if each[20:22] == b"\0\x02" or each[54] == 136]
            assert [each[6:12] for each in came] == [frames.mac(GATEWAY_MAC)], (what, came)
            assert ears.hear({}).vms[3:] == ([],) * 3
    world.close()


def _arp_answer(vm: Vm) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + frames.mac(vm.mac) + socket.inet_aton(vm.address)
    return body + frames.mac(SELF.mac) + socket.inet_aton(SELF.address)


def _advert(vm: Vm) -> bytes:
    """Solicited, to be believed (RFC 4861, 4.4)."""
    body = b"\x60\0\0\0" + IPv6Address(vm.address6).packed + b"\x02\x01" + frames.mac(vm.mac)
    return frames.icmp6(vm.address6, SELF.address6, 136, body)


SCENARIOS = (forged, unicasts, link_locals, nowhere, rewritten, lookups)


def main() -> None:
    nodes.run("mount", "-t", "tmpfs", "tmpfs", "/run")
    next(each for each in SCENARIOS if each.__name__ == sys.argv[1])()


if __name__ == "__main__":
    main()
