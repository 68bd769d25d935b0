"""Forwarding and ARP entries of a cluster's remote VMs, written in bulk over one netlink socket.

Messages are packed here because there are two for each VM of the cluster: at 10,000 VMs a general
encoder costs seconds, this costs tens of milliseconds (rtnetlink(7), linux/neighbour.h).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Sequence

from pvc.errors import HostError

_RTM_NEWNEIGH = 28
_REQUEST, _ACK, _REPLACE, _CREATE = 1, 4, 0x100, 0x400
_AF_BRIDGE = 7
_NUD_REACHABLE, _NUD_NOARP, _NUD_PERMANENT = 0x02, 0x40, 0x80
_NTF_SELF, _NTF_MASTER = 0x02, 0x04
_NDA_DST, _NDA_LLADDR = 1, 2
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_NDMSG = struct.Struct("=BxxxiHBB")
_BATCH = 200

Entry = tuple[str, str | None, str]


def ensure_peers(bridge: str, vxlan: str, entries: Sequence[Entry]) -> None:
    """Write (MAC, IPv4 or None, node address) entries: FDB of tunnel and bridge, ARP of the bridge.

    Static FDB entries say which node a MAC is behind; permanent ARP entries let the bridge answer for it
    (bridge(8), neigh_suppress). Runs in the namespace of the calling thread.

    :raise HostError: a device is missing, or the kernel refuses an entry.
    """
    if not entries:
        return
    vxlan_index, bridge_index = _index(vxlan), _index(bridge)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        batch: list[bytes] = []
        for message in _messages(vxlan_index, bridge_index, entries):
            batch.append(message)
            if len(batch) == _BATCH:
                _send(link, batch)
                batch = []
        if batch:
            _send(link, batch)


def _messages(vxlan: int, bridge: int, entries: Iterable[Entry]) -> Iterable[bytes]:
    fdb = _NDMSG.pack(_AF_BRIDGE, vxlan, _NUD_NOARP | _NUD_REACHABLE, _NTF_SELF | _NTF_MASTER, 0)
    arp = _NDMSG.pack(socket.AF_INET, bridge, _NUD_PERMANENT, 0, 0)
    for mac, address, node in entries:
        hardware = _attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
        yield fdb + hardware + _attribute(_NDA_DST, socket.inet_aton(node))
        if address is not None:
            yield arp + hardware + _attribute(_NDA_DST, socket.inet_aton(address))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _send(link: socket.socket, bodies: Sequence[bytes]) -> None:
    # Only the last message asks for an acknowledgement; an error of any other comes unasked.
    flags = _REQUEST | _CREATE | _REPLACE
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
