"""Forwarding and ARP entries of a cluster's remote VMs, written in bulk over one netlink socket.

Messages are packed here because there are two for each VM of the cluster: at 10,000 VMs a general
encoder costs seconds, this costs tens of milliseconds (rtnetlink(7), linux/neighbour.h).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from pvc.errors import HostError

_RTM_NEWNEIGH = 28
_REQUEST, _ACK, _REPLACE, _CREATE, _APPEND = 1, 4, 0x100, 0x400, 0x800
_AF_BRIDGE = 7
_NUD_REACHABLE, _NUD_NOARP, _NUD_PERMANENT = 0x02, 0x40, 0x80
_NTF_SELF, _NTF_MASTER = 0x02, 0x04
_NDA_DST, _NDA_LLADDR = 1, 2
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_NDMSG = struct.Struct("=BxxxiHBB")
_BATCH = 200

Entry = tuple[str, str | None, str | None, str]


def ensure_peers(bridge: str, vxlan: str, entries: Sequence[Entry], flood: Sequence[str] = ()) -> None:
    """Write (MAC, IPv4 or None, IPv6 or None, node address) entries: FDB of tunnel and bridge, ARP of the bridge.

    Static FDB entries say which node a MAC is behind; permanent neighbours let the bridge answer for it
    (bridge(8), neigh_suppress). What is for nobody known goes to every node of ``flood``. Runs in the namespace
    of the calling thread.

    :raise HostError: a device is missing, or the kernel refuses an entry.
    """
    if not entries and not flood:
        return
    vxlan_index, bridge_index = _index(vxlan), _index(bridge)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        for flags, messages in (
            (_REPLACE, _messages(vxlan_index, bridge_index, entries)),
            (_APPEND, _floods(vxlan_index, flood)),
        ):
            while batch := list(islice(messages, _BATCH)):
                _send(link, batch, flags)


def _messages(vxlan: int, bridge: int, entries: Iterable[Entry]) -> Iterator[bytes]:
    fdb = _NDMSG.pack(_AF_BRIDGE, vxlan, _NUD_NOARP | _NUD_REACHABLE, _NTF_SELF | _NTF_MASTER, 0)
    arp = _NDMSG.pack(socket.AF_INET, bridge, _NUD_PERMANENT, 0, 0)
    nd = _NDMSG.pack(socket.AF_INET6, bridge, _NUD_PERMANENT, 0, 0)
    for mac, address, address6, node in entries:
        hardware = _attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
        yield fdb + hardware + _attribute(_NDA_DST, socket.inet_aton(node))
        if address is not None:
            yield arp + hardware + _attribute(_NDA_DST, socket.inet_aton(address))
        if address6 is not None:
            yield nd + hardware + _attribute(_NDA_DST, socket.inet_pton(socket.AF_INET6, address6))


def _floods(vxlan: int, nodes: Iterable[str]) -> Iterator[bytes]:
    # The all-zero address stands for all that is not known; it has one entry for each destination (vxlan, bridge(8)).
    head = _NDMSG.pack(_AF_BRIDGE, vxlan, _NUD_NOARP | _NUD_PERMANENT, _NTF_SELF, 0) + _attribute(_NDA_LLADDR, bytes(6))
    for node in nodes:
        yield head + _attribute(_NDA_DST, socket.inet_aton(node))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _send(link: socket.socket, bodies: Sequence[bytes], how: int) -> None:
    # Only the last message asks for an acknowledgement; an error of any other comes unasked.
    flags = _REQUEST | _CREATE | how
    last = len(bodies) - 1
    link.send(
        b"".join(
            _HEADER.pack(_HEADER.size + len(body), _RTM_NEWNEIGH, flags | (_ACK if at == last else 0), at, 0) + body
            for at, body in enumerate(bodies)
        )
    )
    while True:
        data = link.recv(65536)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
            if kind == _NLMSG_ERROR:
                code = struct.unpack_from("=i", data, offset + _HEADER.size)[0]
                if code:
                    raise HostError("cannot write forwarding entries") from OSError(-code, os.strerror(-code))
                if sequence == last:
                    return
            offset += (length + 3) & ~3


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as err:
        raise HostError(f"there is no network device {name}") from err
