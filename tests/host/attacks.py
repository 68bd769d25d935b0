# SPDX-License-Identifier: Apache-2.0
"""What VMs of an L3 network may say, and what an attacker among them might try: frames of vm0, each under a name.

The cluster is that of guard_world.py: vm0 to vm2 are on one node, vm3 to vm5 on another.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address

from pvc.plan import addresses
from tests.host import frames

GATEWAY, GATEWAY6, GATEWAY_MAC = "10.200.255.254", "fd00:c8::ffff:fffe", "52:54:00:ff:ff:00"
ROUTER = addresses.link_local(GATEWAY_MAC)
MTU = 1500
MORE = 0x2000  # fragments: there are more (RFC 791)


@dataclass(frozen=True)
class Vm:
    rank: int

    @property
    def mac(self) -> str:
        return f"52:54:00:00:00:{self.rank + 1:02x}"

    @property
    def address(self) -> str:
        return f"10.200.0.{self.rank + 1}"

    @property
    def address6(self) -> str:
        return f"fd00:c8::{self.rank + 1:x}"

    @property
    def local(self) -> str:
        return addresses.link_local(self.mac)


SELF, NEAR, THIRD, FAR = Vm(0), Vm(1), Vm(2), Vm(3)
ALL6 = "33:33:00:00:00:01"
Named = Iterator[tuple[str, bytes]]


def to4(target: str, packet: bytes, source: str = SELF.mac) -> bytes:
    return frames.ethernet(source, target, 0x0800, packet)


def to6(target: str, packet: bytes, source: str = SELF.mac) -> bytes:
    return frames.ethernet(source, target, 0x86DD, packet)


def tcp(port: int = 1000) -> bytes:
    """A segment with the SYN flag (RFC 9293)."""
    return struct.pack("!HHIIBBHHH", port, 80, 1, 0, 0x50, 2, 1024, 0, 0)


def echo() -> bytes:
    """An echo request (RFC 792)."""
    return struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1)


HELLO = frames.udp(1000, 1000, b"hello to you, too")

# --- extension headers of IPv6 (RFC 8200, 4): number, and what it is before a given next one -----------------------

Header = tuple[int, bytes]
HOP: Header = (0, b"\0\x05\x02\0\0\x01\0")  # router alert (RFC 2711), which MLD has
ROUTING: Header = (43, b"\0\0\0\0\0\0\0")
DESTINATION: Header = (60, b"\0\x01\x04\0\0\0\0")
LONG: Header = (60, b"\x1e\x01\xf4" + bytes(244))
ATOMIC: Header = (44, b"\0\0\0\0\0\0\x07")
FIRST: Header = (44, b"\0\0\x01\0\0\0\x07")
LATER: Header = (44, b"\0\0\x09\0\0\0\x07")
AUTH: Header = (51, b"\x02\0\0\0\0\0\x07\0\0\0\x01\0\0\0\0")
MOBILITY: Header = (135, b"\0\0\0\0\0\0\0")
HIP: Header = (139, b"\0\0\0\0\0\0\0")  # RFC 7401
SHIM6: Header = (140, b"\0\0\0\0\0\0\0")  # RFC 5533
EXPERIMENT: Header = (253, b"\0\0\0\0\0\0\0")  # RFC 4727: an extension header or a protocol, nobody knows


def chained(packet: bytes, *headers: Header) -> bytes:
    """The packet with headers in between, the first of them first."""
    following, payload = packet[6], packet[40:]
    for number, rest in reversed(headers):
        following, payload = number, bytes([following]) + rest + payload
    return packet[:4] + struct.pack("!HB", len(payload), following) + packet[7:40] + payload


def cut(packet: bytes, size: int) -> bytes:
    """No more than ``size`` bytes after the header, and that is what the header says."""
    return packet[:4] + struct.pack("!H", size) + packet[6 : 40 + size]


# --- honest -------------------------------------------------------------------------------------------------------


def honest(to: Vm) -> dict[str, bytes]:
    """What vm0 may send to another VM on both data paths."""
    return dict([*_honest4(to), *_honest6(to)])


def _honest4(to: Vm) -> Named:
    big = frames.udp(1000, 1000, bytes(range(1, 256)) * 8)
    for what, packet in {
        "UDP": frames.ipv4(SELF.address, to.address, 17, HELLO),
        "UDP without data": frames.ipv4(SELF.address, to.address, 17, frames.udp(1000, 1000, b"")),
        "UDP that wants no answer": frames.ipv4(SELF.address, to.address, 17, frames.udp(0, 1000, b"hello")),
        "TCP": frames.ipv4(SELF.address, to.address, 6, tcp()),
        "ICMP": frames.ipv4(SELF.address, to.address, 1, echo()),
        "IGMP": frames.ipv4(SELF.address, to.address, 2, b"\x16\0\x08\x04\xe1\0\0\xfb", options=b"\x94\x04\0\0"),
        "another protocol": frames.ipv4(SELF.address, to.address, 253, b"x" * 20),
        "no data": frames.ipv4(SELF.address, to.address, 253, b""),
        "options": frames.ipv4(SELF.address, to.address, 17, HELLO, options=b"\x01" * 8),
        "a first fragment": frames.ipv4(SELF.address, to.address, 17, big[:1480], fragment=MORE),
        "a later fragment": frames.ipv4(SELF.address, to.address, 17, big[1480:], fragment=185),
        "as much as fits": frames.ipv4(SELF.address, to.address, 17, frames.udp(1000, 1000, b"x" * 1472)),
        "bytes behind the packet": frames.ipv4(SELF.address, to.address, 17, HELLO) + bytes(range(1, 40)),
        "a source port of a server": frames.ipv4(SELF.address, to.address, 17, frames.udp(53, 1068, b"answer")),
        "an address behind it": frames.ipv4(SELF.address, "198.51.100.7", 17, HELLO),
    }.items():
        yield f"{what} over IPv4", to4(to.mac, packet)


def _honest6(to: Vm) -> Named:
    said = frames.udp6(SELF.address6, to.address6, 1000, 1000, b"hello to you, too")
    for what, packet in {
        "UDP": said,
        "UDP that wants no answer": frames.udp6(SELF.address6, to.address6, 0, 1000, b"hello"),
        "TCP": frames.ipv6(SELF.address6, to.address6, 6, tcp()),
        "ICMP": frames.icmp6(SELF.address6, to.address6, 128, b"\0\1\0\1"),
        "another protocol": frames.ipv6(SELF.address6, to.address6, 132, b"x" * 20),
        "no next header": frames.ipv6(SELF.address6, to.address6, 59, b""),
        "destination options": chained(said, DESTINATION),
        "hop-by-hop options": chained(said, HOP),
        "a first fragment": chained(said, FIRST),
        "a later fragment": chained(said, LATER),
        "an atomic fragment": chained(said, ATOMIC),
        "as much as fits": frames.udp6(SELF.address6, to.address6, 1000, 1000, b"x" * 1452),
        "bytes behind the packet": said + bytes(range(1, 40)),
    }.items():
        yield f"{what} over IPv6", to6(to.mac, packet)


def local_groups() -> dict[str, bytes]:
    """What vm0 may say to all with its link-local address, or none, where VMs hear each other's."""
    report = b"\0\0\0\1" + b"\x04\0\0\0" + IPv6Address("ff02::1:ff00:1").packed
    own = bytes(4) + IPv6Address(SELF.address6).packed
    return {
        "MLD": to6("33:33:00:00:00:16", chained(frames.icmp6(SELF.local, "ff02::16", 143, report), HOP)),
        "MLD without an address": to6("33:33:00:00:00:16", chained(frames.icmp6("::", "ff02::16", 143, report), HOP)),
        "MLD of version 1": to6(
            "33:33:ff:00:00:01",
            chained(frames.icmp6(SELF.local, "ff02::1:ff00:1", 131, bytes(4) + report[8:]), HOP),
        ),
        "names in a link": to6(
            "33:33:00:00:00:fb", frames.udp6(SELF.local, "ff02::fb", 5353, 5353, b"who is printer.local?")
        ),
        "an address it chose": to6(ALL6, frames.udp6("fe80::1234:5678:9abc:def0", "ff02::1", 1000, 1000, b"hello")),
        "a look for its own address": to6("33:33:ff:00:00:01", frames.icmp6("::", "ff02::1:ff00:1", 135, own)),
    }


# --- not ----------------------------------------------------------------------------------------------------------


def forged() -> dict[str, bytes]:
    """What must reach neither a VM nor the gateway."""
    found: dict[str, bytes] = {}
    for part in (_tagged, _kinds, _runts, _macs, _sources4, _dhcp, _arps, _sources6, _discoveries):
        for what, frame in part():
            assert what not in found, what
            found[what] = frame
    # What is cut off before it differs is one frame.
    return {what: frame for frame, what in {frame: what for what, frame in found.items()}.items()}


def _tagged() -> Named:
    inside = {
        "what is its own": to4(NEAR.mac, frames.ipv4(SELF.address, NEAR.address, 6, tcp(1001))),
        "UDP of its own": to4(FAR.mac, frames.ipv4(SELF.address, FAR.address, 17, HELLO)),
        "IPv6 of its own": to6(ALL6, frames.udp6(SELF.address6, "ff02::1", 1000, 1000, b"tagged")),
        "another VM's address": to4(NEAR.mac, frames.ipv4(THIRD.address, NEAR.address, 6, tcp(1001))),
        "ARP for another VM": frames.arp(SELF.mac, SELF.mac, THIRD.address, NEAR.address, reply=True),
        "a router": to6(ALL6, frames.router_advert6(SELF.local)),
    }
    for tag, words in {
        "802.1Q": (0x8100, 5),
        "a priority": (0x8100, 0xE000),
        "no priority": (0x8100, 0),
        "802.1ad": (0x88A8, 5),
        "an 802.1ad priority": (0x88A8, 0),
        "an older tag": (0x9100, 5),
        "802.1ad and 802.1Q": (0x88A8, 5, 0x8100, 6),
        "two of 802.1Q": (0x8100, 0, 0x8100, 0),
        "three tags": (0x88A8, 0, 0x8100, 0, 0x8100, 0),
    }.items():
        for what, frame in inside.items():
            yield f"{tag} around {what}", frame[:12] + struct.pack(f"!{len(words)}H", *words) + frame[12:]


def _kinds() -> Named:
    lying = frames.ipv4(THIRD.address, NEAR.address, 17, HELLO)
    arp = frames.arp(SELF.mac, SELF.mac, THIRD.address, NEAR.address, reply=True)[14:42]
    for what, target, payload in (
        ("spanning tree", "01:80:c2:00:00:00", b"\x42\x42\x03" + bytes(35)),
        ("LLC", NEAR.mac, b"\xf0\xf0\x03" + b"x" * 40),
        ("Novell's frames", NEAR.mac, b"\xff\xff" + b"x" * 40),
        ("SNAP around another VM's address", NEAR.mac, b"\xaa\xaa\x03\0\0\0\x08\0" + lying),
        ("SNAP around ARP for another VM", NEAR.mac, b"\xaa\xaa\x03\0\0\0\x08\x06" + arp),
        ("SNAP of a maker", NEAR.mac, b"\xaa\xaa\x03\0\0\x0c\x20\0" + b"x" * 40),
    ):
        yield what, frames.ethernet(SELF.mac, target, len(payload), payload)
    for kind in (0x0000, 0x05FF, 0x0600, 0x0842, 0x6003, 0x8035, 0x809B, 0x8137, 0x8808, 0x8847, 0x8848, 0x8863):
        yield f"the protocol {kind:#06x}", frames.ethernet(SELF.mac, NEAR.mac, kind, lying)
    for kind in (0x8864, 0x888E, 0x88A2, 0x88B5, 0x88CC, 0x88E5, 0x88F7, 0x8906, 0x8915, 0x9000, 0xFFFF):
        yield f"the protocol {kind:#06x}", frames.ethernet(SELF.mac, FAR.mac, kind, lying)
    yield "a pause", frames.ethernet(SELF.mac, "01:80:c2:00:00:01", 0x8808, b"\0\1\xff\xff")
    yield "a discovery of neighbours", frames.ethernet(SELF.mac, "01:80:c2:00:00:0e", 0x88CC, b"\x02\x07\x04abcdef")


def _runts() -> Named:
    own = to4(NEAR.mac, frames.ipv4(SELF.address, NEAR.address, 17, HELLO))
    own6 = to6(NEAR.mac, frames.udp6(SELF.address6, NEAR.address6, 1000, 1000, b"hello"))
    arp = frames.arp(SELF.mac, SELF.mac, SELF.address, NEAR.address, reply=True)
    for what, frame, sizes in (("IPv4", own, (1, 10, 19)), ("IPv6", own6, (1, 8, 24, 39)), ("ARP", arp, (1, 8, 27))):
        yield f"nothing but a header, {what}", frame[:14]
        for size in sizes:
            yield f"{size} bytes of {what}", frame[: 14 + size]
    yield (
        "an IPv4 header cut off in an address of the gateway",
        to4(NEAR.mac, frames.ipv4(GATEWAY, "0.0.0.0", 17, b""))[:29],
    )
    lying = to4(NEAR.mac, frames.ipv4(THIRD.address, NEAR.address, 17, HELLO))
    for first, what in ((0x40, "none"), (0x41, "4 bytes"), (0x44, "16 bytes"), (0x4F, "60 bytes that are not there")):
        for whose, frame in (("its own", own), ("another's", lying)):
            yield f"an IPv4 header of {what}, {whose}", frame[:14] + bytes([first]) + frame[15:42]
    yield "IPv4 that calls itself IPv6", own[:14] + b"\x65" + own[15:]
    yield "IPv6 that calls itself IPv4", own6[:14] + b"\x45" + own6[15:]
    yield "IPv6 called IPv4", to4(NEAR.mac, own6[14:])
    yield "IPv4 called IPv6", to6(NEAR.mac, own[14:])
    for size in (0, 1, 3):
        yield (
            f"{size} bytes of UDP",
            to4(NEAR.mac, frames.ipv4(SELF.address, NEAR.address, 17, HELLO[:size]))[: 34 + size],
        )
        yield f"{size} bytes of UDP over IPv6", to6(NEAR.mac, cut(own6[14:], size))[: 54 + size]
    yield "ICMPv6 without a type", to6(ALL6, frames.ipv6(SELF.address6, "ff02::1", 58, b""))[:54]


def _macs() -> Named:
    for whose, source in (
        ("another VM's", NEAR.mac),
        ("a far VM's", FAR.mac),
        ("the gateway's", GATEWAY_MAC),
        ("nobody's", "52:54:00:00:00:77"),
        ("a foreign", "02:00:00:00:00:01"),
        ("no", "00:00:00:00:00:00"),
        ("everybody's", frames.BROADCAST),
        ("a group's", "53:54:00:00:00:01"),
    ):
        for way, target in (("to a VM", THIRD.mac), ("to a far VM", FAR.mac), ("to all", frames.BROADCAST)):
            said = frames.ipv4(SELF.address, THIRD.address, 17, HELLO)
            yield f"{whose} MAC {way}", to4(target, said, source)
        said = frames.ipv4(SELF.address, THIRD.address, 6, tcp(1002))
        yield f"{whose} MAC over TCP", to4(THIRD.mac, said, source)
        said = frames.udp6(SELF.address6, "ff02::1", 1000, 1000, b"hello")
        yield f"{whose} MAC over IPv6", to6(ALL6, said, source)
        yield f"{whose} MAC asks", frames.arp(source, source, SELF.address, THIRD.address)


def _sources4() -> Named:
    ways = (
        ("to a VM", NEAR.mac, NEAR.address),
        ("to a far VM", FAR.mac, FAR.address),
        ("to all", frames.BROADCAST, "10.200.255.255"),
        ("to a group", "01:00:5e:00:00:fb", "224.0.0.251"),
        ("to the gateway", GATEWAY_MAC, GATEWAY),
        ("past the gateway", GATEWAY_MAC, "198.51.100.1"),
    )
    for source in (
        *(THIRD.address, GATEWAY, "198.51.100.1", "10.200.0.77", "10.200.0.0", "10.200.255.255", "10.201.0.1"),
        *("127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "169.254.1.1"),
    ):
        for way, hardware, target in ways:
            said = frames.ipv4(source, target, 17, HELLO)
            yield f"{source} over UDP {way}", to4(hardware, said)
            yield f"{source} over TCP {way}", to4(hardware, frames.ipv4(source, target, 6, tcp(1003)))
        hardware, target = FAR.mac, FAR.address
        yield f"{source} over ICMP", to4(hardware, frames.ipv4(source, target, 1, echo()))
        yield f"{source} over another protocol", to4(hardware, frames.ipv4(source, target, 253, b"x"))
        yield f"{source} with options", to4(hardware, frames.ipv4(source, target, 6, tcp(1003), options=b"\1\1\1\1"))
        yield f"{source}, a first fragment", to4(hardware, frames.ipv4(source, target, 17, HELLO[:24], fragment=MORE))
        for kind in (6, 17):
            packet = frames.ipv4(source, target, kind, b"the rest", fragment=3)
            yield f"{source}, a later fragment of {kind}", to4(hardware, packet)


def _dhcp() -> Named:
    everybody = (frames.BROADCAST, "255.255.255.255")
    for way, (hardware, target) in {
        "to a VM": (NEAR.mac, NEAR.address),
        "to a far VM": (FAR.mac, FAR.address),
        "to all": everybody,
        "to the gateway": (GATEWAY_MAC, GATEWAY),
    }.items():
        offers = {
            "a DHCP server": frames.udp(67, 68, b"offer"),
            "a DHCP relay": frames.udp(67, 67, b"offer"),
            "a DHCP server on another port": frames.udp(1067, 68, b"offer"),
        }
        for what, offer in offers.items():
            packet = frames.ipv4(SELF.address, target, 17, offer)
            yield f"{what} {way}", to4(hardware, packet)
            packet = frames.ipv4(SELF.address, target, 17, offer, options=b"\1" * 12)
            yield f"{what} {way} behind options", to4(hardware, packet)
            packet = frames.ipv4(SELF.address, target, 17, offer + b"abc", fragment=MORE)
            yield f"{what} {way} in a first fragment", to4(hardware, packet)
            packet = frames.ipv4(SELF.address, target, 17, offer + b"abc", options=b"\1" * 40, fragment=MORE)
            yield f"{what} {way} in a first fragment behind options", to4(hardware, packet)
            if way != "to the gateway":
                yield f"{what} without an address {way}", to4(hardware, frames.ipv4("0.0.0.0", target, 17, offer))
    for way, hardware, target in (("a VM", NEAR.mac, NEAR.address), ("a far VM", FAR.mac, FAR.address)):
        packet = frames.ipv4("0.0.0.0", target, 17, frames.udp(68, 67, b"discover"))
        yield f"a DHCP client's question to {way}", to4(hardware, packet)
    for source, what in ((68, "another's answer"), (1068, "another port's")):
        packet = frames.ipv4("0.0.0.0", "255.255.255.255", 17, frames.udp(source, 69 if source == 68 else 67, b"?"))
        yield f"no address, and {what}", to4(frames.BROADCAST, packet)


def _arps() -> Named:
    def arp(
        target: str = frames.BROADCAST,
        *,
        head: tuple[int, int, int, int, int] = (1, 0x0800, 6, 4, 1),
        who: str = SELF.mac,
        says: str = SELF.address,
        of: str = NEAR.address,
        kind: int = 0x0806,
    ) -> bytes:
        body = struct.pack("!HHBBH", *head) + frames.mac(who) + socket.inet_aton(says)
        return frames.ethernet(SELF.mac, target, kind, body + bytes(6) + socket.inet_aton(of))

    for way, target in (("a VM", NEAR.mac), ("a far VM", FAR.mac), ("all", frames.BROADCAST)):
        for operation, what in ((1, "asks"), (2, "answers")):
            head = (1, 0x0800, 6, 4, operation)
            for whose, says in (("another VM", THIRD.address), ("a far VM", "10.200.0.5"), ("the gateway", GATEWAY)):
                yield f"{what} {way} as {whose}", arp(target, head=head, says=says)
                yield f"{what} {way} as {whose} about itself", arp(target, head=head, says=says, of=says)
            for whose, who in (("another VM", THIRD.mac), ("the gateway", GATEWAY_MAC), ("all", frames.BROADCAST)):
                yield f"{what} {way} with the MAC of {whose}", arp(target, head=head, who=who)
        yield f"answers {way} as nobody", arp(target, head=(1, 0x0800, 6, 4, 2), says="0.0.0.0")
        for what, head in {
            "hardware": (6, 0x0800, 6, 4, 2),
            "protocol": (1, 0x86DD, 6, 4, 2),
            "length of hardware": (1, 0x0800, 8, 4, 2),
            "no length of hardware": (1, 0x0800, 0, 4, 2),
            "length of protocol": (1, 0x0800, 6, 16, 2),
            "operation": (1, 0x0800, 6, 4, 0),
            "reverse question": (1, 0x0800, 6, 4, 3),
            "reverse answer": (1, 0x0800, 6, 4, 4),
            "inverse question": (1, 0x0800, 6, 4, 8),
            "inverse answer": (1, 0x0800, 6, 4, 9),
            "far operation": (1, 0x0800, 6, 4, 0x0102),
        }.items():
            yield f"ARP to {way}, odd {what}", arp(target, head=head)
        for operation in (3, 4):
            yield f"RARP {operation} to {way}", arp(target, head=(1, 0x0800, 6, 4, operation), kind=0x8035)


def _sources6() -> Named:
    for source in (
        *(THIRD.address6, FAR.address6, GATEWAY6, "2001:db8::1", "fd00:c8::77", "fd00:c8::", "::", "::1"),
        *(ROUTER, NEAR.local, FAR.local, "ff02::1", "::ffff:10.200.0.1", "fec0::1"),
    ):
        for way, hardware, target in (
            ("to a VM", NEAR.mac, NEAR.address6),
            ("to a far VM", FAR.mac, FAR.address6),
            ("to a group", ALL6, "ff02::1"),
            ("to the gateway", GATEWAY_MAC, GATEWAY6),
        ):
            said = frames.udp6(source, target, 1000, 1000, b"hello")
            yield f"{source} over UDP {way}", to6(hardware, said)
            yield f"{source} over TCP {way}", to6(hardware, frames.ipv6(source, target, 6, tcp(1004)))
            yield f"{source} behind options {way}", to6(hardware, chained(said, HOP, DESTINATION))
            yield f"{source}, a first fragment {way}", to6(hardware, chained(said, FIRST))
            yield f"{source}, a later fragment {way}", to6(hardware, chained(said, LATER))
        if source != "::":
            yield f"{source} over ICMP", to6(ALL6, frames.icmp6(source, "ff02::1", 128, b"\0\1\0\1"))


def _lies() -> Iterator[tuple[str, str, bytes]]:
    """Messages that no VM sends: what it is, its target, and the packet."""
    link_option = b"\x02\x01" + frames.mac(SELF.mac)
    for source in (SELF.local, SELF.address6):
        whose = "its link-local address" if source == SELF.local else "its address"
        for way, target in (("all", "ff02::1"), ("a VM", NEAR.address6), ("a far VM", FAR.address6)):
            where = f"by {whose} to {way}"
            routes = struct.pack("!BBHII", 64, 0, 1800, 0, 0)
            yield f"a router {where}", target, frames.icmp6(source, target, 134, routes)
            better = bytes(4) + IPv6Address(SELF.local).packed + IPv6Address("2001:db8::7").packed + link_option
            yield f"a redirect {where}", target, frames.icmp6(source, target, 137, better)
            for claim in (GATEWAY6, ROUTER, THIRD.address6, FAR.address6, NEAR.local, FAR.local):
                body = b"\x60\0\0\0" + IPv6Address(claim).packed + link_option
                yield f"a claim of {claim} {where}", target, frames.icmp6(source, target, 136, body)
            for claim in (SELF.local, SELF.address6):
                body = b"\x60\0\0\0" + IPv6Address(claim).packed + b"\x02\x01" + frames.mac(NEAR.mac)
                said = frames.icmp6(source, target, 136, body)
                yield f"a claim of {claim} for another's MAC {where}", target, said
            body = bytes(4) + IPv6Address(THIRD.address6).packed + b"\x01\x01" + frames.mac(NEAR.mac)
            yield f"a look with another's MAC {where}", target, frames.icmp6(source, target, 135, body)
            for ports in ((547, 546), (547, 547), (1547, 546)):
                said = frames.udp6(source, target, *ports, b"\x07reply")
                yield f"a DHCPv6 server ({ports[0]} to {ports[1]}) {where}", target, said
    for claim in (GATEWAY6, ROUTER, THIRD.address6, FAR.address6, NEAR.local, FAR.local):
        body = bytes(4) + IPv6Address(claim).packed
        for way, target in (("all", "ff02::1"), ("a VM", NEAR.address6)):
            yield f"a look whether {claim} is free, at {way}", target, frames.icmp6("::", target, 135, body)


def _discoveries() -> Named:
    hardware = {"ff02::1": ALL6, NEAR.address6: NEAR.mac, FAR.address6: FAR.mac}
    for what, target, packet in _lies():
        for behind, headers in {
            "nothing": (),
            "hop-by-hop options": (HOP,),
            "destination options": (DESTINATION,),
            "a routing header": (ROUTING,),
            "both kinds of options": (HOP, DESTINATION),
            "an atomic fragment": (ATOMIC,),
            "a first fragment": (FIRST,),
            "a first fragment and options": (FIRST, DESTINATION),
            "options and a first fragment": (DESTINATION, FIRST),
            "all of them": (HOP, DESTINATION, ROUTING, FIRST, DESTINATION),
            "seven options": (DESTINATION,) * 7,
            "twenty options": (DESTINATION,) * 20,
            "long options": (LONG, LONG, LONG, LONG),
            "an authentication header": (AUTH,),
            "a mobility header": (MOBILITY,),
            "an identity": (HIP,),
            "options and an identity": (DESTINATION, HIP),
            "a shim": (SHIM6,),
            "an experiment": (EXPERIMENT,),
        }.items():
            yield f"{what} behind {behind}", to6(hardware[target], chained(packet, *headers))
        for size, there in ((8, "no options"), (12, "half of the options"), (16, "options"), (17, "a byte of it")):
            if size == 17 and packet[6] == 58:
                continue
            # RFC 7112: what it is comes in the next fragment.
            first = cut(chained(packet, FIRST, DESTINATION), size)
            yield f"{what} behind a first fragment that has {there}", to6(hardware[target], first)[: 54 + size]
            # Nor does it begin behind the packet, which its receiver cuts off.
            other = frames.icmp6(SELF.address6, target, 128, bytes(20))
            harmless = other if packet[6] == 58 else frames.udp6(SELF.address6, target, 1000, 1000, b"hello")
            padded = first[: 40 + size] + chained(harmless, FIRST, DESTINATION)[40 + size :]
            yield (
                f"{what} behind a first fragment that has {there}, and other ones behind it",
                to6(hardware[target], padded),
            )
