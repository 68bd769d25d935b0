# SPDX-License-Identifier: Apache-2.0
"""Frames as an attacker writes them, and the few protocols that guests speak to their gateway (RFC numbers beside)."""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import IPv6Address

BROADCAST = "ff:ff:ff:ff:ff:ff"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes) -> bytes:
    return (mac(target) + mac(source) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def arp(source: str, sender_mac: str, sender_ip: str, target_ip: str, *, reply: bool = False) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2 if reply else 1)
    body += mac(sender_mac) + socket.inet_aton(sender_ip) + bytes(6) + socket.inet_aton(target_ip)
    return ethernet(source, BROADCAST, 0x0806, body)


def ipv4(source: str, target: str, protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    """``fragment`` has the flags and the offset in units of 8 bytes (RFC 791, 3.1)."""
    size = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 | size // 4, 0, size + len(payload), 1, fragment, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target) + options
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + payload


def udp(source_port: int, target_port: int, data: bytes) -> bytes:
    # A checksum of zero is none (RFC 768); IPv6 wants one: see udp6.
    return struct.pack("!HHHH", source_port, target_port, 8 + len(data), 0) + data


def ipv6(source: str, target: str, header: int, payload: bytes, hops: int = 255) -> bytes:
    head = struct.pack("!IHBB", 0x60000000, len(payload), header, hops)
    return head + IPv6Address(source).packed + IPv6Address(target).packed + payload


def icmp6(source: str, target: str, kind: int, body: bytes) -> bytes:
    message = struct.pack("!BBH", kind, 0, 0) + body
    return ipv6(source, target, 58, _with_sum6(source, target, 58, message, 2))


def udp6(source: str, target: str, source_port: int, target_port: int, data: bytes) -> bytes:
    message = struct.pack("!HHHH", source_port, target_port, 8 + len(data), 0) + data
    return ipv6(source, target, 17, _with_sum6(source, target, 17, message, 6))


def advert6(source: str, target_address: str, hardware: str) -> bytes:
    """A neighbour advertisement (RFC 4861, 4.4) to all nodes."""
    body = struct.pack("!I", 0x20000000) + IPv6Address(target_address).packed + b"\x02\x01" + mac(hardware)
    return icmp6(source, "ff02::1", 136, body)


def solicit6(source: str, target_address: str, hardware: str) -> bytes:
    """A neighbour solicitation (RFC 4861, 4.3)."""
    wanted = IPv6Address(target_address)
    group = IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(wanted) & 0xFFFFFF)
    return icmp6(source, str(group), 135, bytes(4) + wanted.packed + b"\x01\x01" + mac(hardware))


def router_advert6(source: str) -> bytes:
    """A router advertisement (RFC 4861, 4.2) to all nodes."""
    return icmp6(source, "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))


def vxlan(vni: int, inner: bytes) -> bytes:
    """RFC 7348."""
    return struct.pack("!II", 0x08000000, vni << 8) + inner


def _sum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _with_sum6(source: str, target: str, header: int, message: bytes, at: int) -> bytes:
    pseudo = IPv6Address(source).packed + IPv6Address(target).packed + struct.pack("!II", len(message), header)
    padded = message + b"\0" * (len(message) % 2)
    return message[:at] + struct.pack("!H", _sum(pseudo + padded)) + message[at + 2 :]


def discover(hardware: str, identity: bytes) -> bytes:
    """DHCPDISCOVER (RFC 2131, 4.4.1), to be answered to all."""
    head = struct.pack("!BBBB", 1, 1, 6, 0) + identity + struct.pack("!HH", 0, 0x8000) + bytes(16)
    return head + mac(hardware) + bytes(202) + b"\x63\x82\x53\x63" + b"\x35\x01\x01\x37\x06\x01\x03\x06\x1a\x77\x2a\xff"


def request(hardware: str, identity: bytes, server: str, wanted: str) -> bytes:
    """DHCPREQUEST for an address (RFC 2131, 4.3.2)."""
    asked = b"\x35\x01\x03" + b"\x36\x04" + socket.inet_aton(server) + b"\x32\x04" + socket.inet_aton(wanted)
    return discover(hardware, identity).partition(b"\x35\x01\x01")[0] + asked + b"\xff"


def ask_dhcp(hardware: str) -> dict[int, bytes]:
    """In a guest: the options of an offer (RFC 2131, 2132); key 0 is the address offered. {}: nobody answers."""
    identity = os.urandom(4)
    message = discover(hardware, identity)
    packet = ipv4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, message))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as link:
        link.bind(("eth0", 0))
        link.settimeout(2.0)
        link.send(ethernet(hardware, BROADCAST, 0x0800, packet))
        try:
            while True:
                answer = link.recv(4000)
                at = 14 + (answer[14] & 15) * 4
                data = answer[at + 8 :]
                if answer[23] == 17 and answer[at : at + 2] == b"\0\x43" and data[4:8] == identity:
                    return {0: data[16:20], **_options(data[240:])}
        except TimeoutError:
            return {}


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data and data[0] != 255:
        length = data[1] if data[0] else -1
        if data[0]:
            found[data[0]] = data[2 : 2 + length]
        data = data[2 + length :]
    return found


def ask_dhcp6(hardware: str) -> dict[int, bytes]:
    """In a guest: the options of an advertisement (RFC 8415); key 5 is the address in it. {}: nobody answers."""
    identity = os.urandom(3)
    client = struct.pack("!HHHH", 1, 10, 3, 1) + mac(hardware)
    wanted = struct.pack("!HHIII", 3, 12, 7, 0, 0) + struct.pack("!HHHH", 6, 4, 23, 24)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as link:
        link.bind(("::", 546))
        link.settimeout(3.0)
        scope = socket.if_nametoindex("eth0")
        link.sendto(b"\x01" + identity + client + wanted + struct.pack("!HHH", 8, 2, 0), ("ff02::1:2", 547, 0, scope))
        try:
            while True:
                data = link.recv(4000)
                if data[1:4] == identity:
                    found = _options6(data[4:])
                    return found | _options6(found.get(3, b"")[12:])
        except TimeoutError:
            return {}


def _options6(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        kind, length = struct.unpack_from("!HH", data)
        found[kind] = data[4 : 4 + length]
        data = data[4 + length :]
    return found


def ask_name(server: str, name: str, kind: int) -> list[bytes]:
    """The data of the records of a name (RFC 1035): 1 is A, 28 AAAA, 12 PTR."""
    query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0)
    query += b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + struct.pack("!BHH", 0, kind, 1)
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(2.0)
        link.sendto(query, (server, 53))
        try:
            answer = link.recv(4000)
        except OSError:
            return []
    found, at = [], len(query)
    for _ in range(struct.unpack_from("!H", answer, 6)[0]):
        at = _skip_name(answer, at)
        given, _, _, length = struct.unpack_from("!HHIH", answer, at)
        if given == kind:
            found.append(answer[at + 10 : at + 10 + length])
        at += 10 + length
    return found


def _skip_name(data: bytes, at: int) -> int:
    while data[at]:
        if data[at] >= 0xC0:
            return at + 2
        at += data[at] + 1
    return at + 1
