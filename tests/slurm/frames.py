# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames as bytes, honest and forged; the guest's ``frames`` (tests/vm/frames.c) sends and counts them."""

from __future__ import annotations

import socket
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6, EXPERIMENT = 0x0806, 0x0800, 0x86DD, 0x88B5
_MULTICAST_LISTENERS = "33:33:00:00:00:01"


def ethernet(to: str, source: str, kind: int, payload: bytes) -> bytes:
    """A frame of at least 60 bytes."""
    return (_mac(to) + _mac(source) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def arp(operation: int, mac: str, address: str, target: str, mark: str) -> bytes:
    """ARP's payload: ``address`` is said to be at ``mac``; the mark is in the padding."""
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return head + _mac(mac) + socket.inet_aton(address) + bytes(6) + socket.inet_aton(target) + mark.encode()


def udp4(source: str, to: str, ports: tuple[int, int], payload: bytes) -> bytes:
    """An IPv4 packet with a datagram."""
    datagram = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0) + addresses
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + datagram


def router_advertisement(mac: str, source: str, mark: str) -> bytes:
    """A frame by which ``mac`` says that it is the router."""
    to = socket.inet_pton(socket.AF_INET6, "ff02::1")
    sender = socket.inet_pton(socket.AF_INET6, source)
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + mark.encode().ljust(24, b"\0")
    pseudo = sender + to + struct.pack("!II", len(body), 58)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    return ethernet(
        _MULTICAST_LISTENERS, mac, IPV6, struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + sender + to + body
    )


def vxlan(vni: int, frame: bytes) -> bytes:
    """What a datagram to port 4789 carries (RFC 7348)."""
    return struct.pack("!II", 0x08000000, vni << 8) + frame


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
