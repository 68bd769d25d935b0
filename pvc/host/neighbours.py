# SPDX-License-Identifier: Apache-2.0
"""Forwarding entries of tunnels and bridges, written in bulk over one netlink socket.

There is one for each other node and each VM of this one. They are packed as bytes: a general encoder takes 0.1 ms
for each (rtnetlink(7), linux/neighbour.h).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

from pvc.errors import HostError
from pvc.host import linkbatch
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
    index, ways = linkbatch.get_index(vxlan), [socket.inet_aton(node) for node in nodes]
    # The all-zero address stands for all that is not known; it has one entry for each destination (vxlan, bridge(8)).
    entries = [_entry(index, bytes(6), _NUD_PERMANENT, _NTF_SELF, _APPEND, way) for way in ways]
    if labelled:
        labels = (addresses.pack_mac(addresses.label_mac(label)) for label in range(len(ways)))
        entries += [
            _entry(index, label, _NUD_REACHABLE, _NTF_SELF, _REPLACE, way)
            for label, way in zip(labels, ways, strict=True)
        ]
    _write(entries)


def ensure_ports(ports: Sequence[tuple[str, str]]) -> None:
    """Say which MAC is behind which port of a bridge, so that what is for one is never seen at another.

    Runs in the namespace of the calling thread.

    :raise HostError: a device is missing, or the kernel refuses an entry.
    """
    _write(
        [
            _entry(linkbatch.get_index(name), addresses.pack_mac(mac), _NUD_REACHABLE, _NTF_MASTER, _REPLACE)
            for name, mac in ports
        ]
    )


def _entry(device: int, mac: bytes, state: int, where: int, how: int, way: bytes = b"") -> bytes:
    body = _NDMSG.pack(_AF_BRIDGE, device, _NUD_NOARP | state, where, 0)
    body += struct.pack("=HH", 4 + len(mac), _NDA_LLADDR) + mac + b"\0\0"
    if way:
        body += struct.pack("=HH", 4 + len(way), _NDA_DST) + way
    return _HEADER.pack(_HEADER.size + len(body), _RTM_NEWNEIGH, _REQUEST | _CREATE | how, 0, 0) + body


def _write(entries: Sequence[bytes]) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        for start in range(0, len(entries), _BATCH):
            _send(link, list(entries[start : start + _BATCH]))


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
