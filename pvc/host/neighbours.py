"""Forwarding entries of tunnels and bridges, written in bulk over one netlink socket.

There is one for each other node and each VM of this one. They are packed as bytes: a general encoder takes 0.1 ms
for each (rtnetlink(7), linux/neighbour.h).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from itertools import islice

from pvc.errors import HostError
from pvc.plan import addresses

_RTM_NEWNEIGH = 28
_REQUEST, _ACK, _REPLACE, _CREATE, _APPEND = 1, 4, 0x100, 0x400, 0x800
_AF_BRIDGE = 7
_NUD_REACHABLE, _NUD_NOARP, _NUD_PERMANENT = 0x02, 0x40, 0x80
_NTF_SELF, _NTF_MASTER = 0x02, 0x04
_NDA_DST, _NDA_LLADDR = 1, 2
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_NDMSG = struct.Struct("=BxxxiHBB")
_BATCH = 1000  # some 50 KB; a socket takes 200 KB at once


def ensure_peers(vxlan: str, nodes: Sequence[str], *, labelled: bool) -> None:
    """Have a tunnel lead what is for groups, or for nobody known, to each of ``nodes``, and what has its label to one.

    Runs in the namespace of the calling thread.

    :raise HostError: the device is missing, or the kernel refuses an entry.
    """
    if not nodes:
        return
    index = _index(vxlan)
    _write(_floods(index, nodes))
    if labelled:
        _write(_labels(index, nodes))


def ensure_ports(ports: Sequence[tuple[str, str]]) -> None:
    """Say which MAC is behind which port of a bridge, so that what is for one is never seen at another.

    Runs in the namespace of the calling thread.

    :raise HostError: a device is missing, or the kernel refuses an entry.
    """
    begin = _HEADER.size + _NDMSG.size + 4 + 8
    _write(
        _HEADER.pack(begin, _RTM_NEWNEIGH, _REQUEST | _CREATE | _REPLACE, 0, 0)
        + _NDMSG.pack(_AF_BRIDGE, _index(name), _NUD_NOARP | _NUD_REACHABLE, _NTF_MASTER, 0)
        + struct.pack("=HH", 4 + 6, _NDA_LLADDR)
        + _mac(mac)
        + b"\0\0"
        for name, mac in ports
    )


def _write(messages: Iterator[bytes]) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        while batch := list(islice(messages, _BATCH)):
            _send(link, batch)


def _labels(vxlan: int, nodes: Sequence[str]) -> Iterator[bytes]:
    body = _NDMSG.pack(_AF_BRIDGE, vxlan, _NUD_NOARP | _NUD_REACHABLE, _NTF_SELF, 0)
    begin, middle = _frame(body, 4, _REPLACE)
    for label, node in enumerate(nodes):
        yield begin + _mac(addresses.label_mac(label)) + middle + socket.inet_aton(node)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _frame(body: bytes, size: int, how: int) -> tuple[bytes, bytes]:
    """What comes before a MAC, and between that and a destination of ``size`` bytes, which is the end."""
    length = _HEADER.size + len(body) + 4 + 8 + 4 + size
    begin = _HEADER.pack(length, _RTM_NEWNEIGH, _REQUEST | _CREATE | how, 0, 0) + body
    return begin + struct.pack("=HH", 4 + 6, _NDA_LLADDR), b"\0\0" + struct.pack("=HH", 4 + size, _NDA_DST)


def _floods(vxlan: int, nodes: Sequence[str]) -> Iterator[bytes]:
    # The all-zero address stands for all that is not known; it has one entry for each destination (vxlan, bridge(8)).
    body = _NDMSG.pack(_AF_BRIDGE, vxlan, _NUD_NOARP | _NUD_PERMANENT, _NTF_SELF, 0)
    begin, middle = _frame(body, 4, _APPEND)
    for node in nodes:
        yield begin + bytes(6) + middle + socket.inet_aton(node)


def _send(link: socket.socket, messages: list[bytes]) -> None:
    # Only the last message asks for an acknowledgement; an error of any other comes unasked.
    length, kind, flags, _, _ = _HEADER.unpack_from(messages[-1])
    messages[-1] = _HEADER.pack(length, kind, flags | _ACK, 1, 0) + messages[-1][_HEADER.size :]
    link.send(b"".join(messages))
    while True:
        data = link.recv(65536)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
            if kind == _NLMSG_ERROR:
                code = struct.unpack_from("=i", data, offset + _HEADER.size)[0]
                if code:
                    raise HostError("cannot write forwarding entries") from OSError(-code, os.strerror(-code))
                if sequence:
                    return
            offset += (length + 3) & ~3


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as err:
        raise HostError(f"there is no network device {name}") from err
