"""Forwarding and ARP entries of a cluster's remote VMs, written in bulk over one netlink socket.

The kernel has no masks here, so there are two or three messages for each VM of the cluster (HACKING.md has what that
costs). They are packed as bytes that differ in a few places: a general encoder costs seconds for 10,000 VMs
(rtnetlink(7), linux/neighbour.h).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from pvc.errors import HostError
from pvc.plan.members import Numbering, Peer, mac_number

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


def ensure_peers(bridge: str, vxlan: str, numbering: Numbering, peers: Sequence[Peer]) -> None:
    """Write the entries of the VMs that ``peers`` run: FDB of tunnel and bridge, ARP and ND of the bridge.

    Static FDB entries say which node a MAC is behind; permanent neighbours let the bridge answer for it
    (bridge(8), neigh_suppress). What the bridge lets in for everybody, or for nobody known, goes to each peer. Runs in
    the namespace of the calling thread.

    :raise HostError: a device is missing, or the kernel refuses an entry.
    """
    if not peers:
        return
    vxlan_index, bridge_index = _index(vxlan), _index(bridge)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        entries = _entries(vxlan_index, bridge_index, numbering, peers)
        for messages in (entries, _floods(vxlan_index, peers)):
            while batch := list(islice(messages, _BATCH)):
                _send(link, batch)


def _entries(vxlan: int, bridge: int, first: Numbering, peers: Iterable[Peer]) -> Iterator[bytes]:
    head, number = bytes.fromhex(first.mac[:12].replace(":", "")), mac_number(first.mac)
    kinds = []
    for family, text in ((socket.AF_INET, first.address), (socket.AF_INET6, first.address6)):
        if text is not None:
            packed = socket.inet_pton(family, text)
            body = _NDMSG.pack(family, bridge, _NUD_PERMANENT, 0, 0)
            begin, middle = _frame(body, len(packed), _REPLACE)
            kinds.append((begin + head, middle, int.from_bytes(packed), len(packed)))
    fdb = _NDMSG.pack(_AF_BRIDGE, vxlan, _NUD_NOARP | _NUD_REACHABLE, _NTF_SELF | _NTF_MASTER, 0)
    begin, middle = _frame(fdb, 4, _REPLACE)
    begin += head
    for peer in peers:
        way = middle + socket.inet_aton(peer.node)
        for start, end in peer.ranks:
            for rank in range(start, end):
                low = (number + rank & 0xFFFF).to_bytes(2)
                yield begin + low + way
                for before, between, base, size in kinds:
                    yield before + low + between + (base + rank).to_bytes(size)


def _frame(body: bytes, size: int, how: int) -> tuple[bytes, bytes]:
    """What comes before a MAC, and between that and a destination of ``size`` bytes, which is the end."""
    length = _HEADER.size + len(body) + 4 + 8 + 4 + size
    begin = _HEADER.pack(length, _RTM_NEWNEIGH, _REQUEST | _CREATE | how, 0, 0) + body
    return begin + struct.pack("=HH", 4 + 6, _NDA_LLADDR), b"\0\0" + struct.pack("=HH", 4 + size, _NDA_DST)


def _floods(vxlan: int, peers: Iterable[Peer]) -> Iterator[bytes]:
    # The all-zero address stands for all that is not known; it has one entry for each destination (vxlan, bridge(8)).
    body = _NDMSG.pack(_AF_BRIDGE, vxlan, _NUD_NOARP | _NUD_PERMANENT, _NTF_SELF, 0)
    begin, middle = _frame(body, 4, _APPEND)
    for peer in peers:
        yield begin + bytes(6) + middle + socket.inet_aton(peer.node)


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
