# SPDX-License-Identifier: Apache-2.0
"""Reading tunnels' forwarding entries back, over one netlink socket: the counterpart of ``neighbours``.

They are unpacked here because a general decoder costs a multiple (rtnetlink(7), linux/neighbour.h).
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from collections.abc import Iterator

from pvc.errors import HostError
from pvc.host import netns

_RTM_GETNEIGH = 30
_REQUEST_DUMP = 0x301
_AF_BRIDGE = 7
_NDA_DST, _NDA_LLADDR = 1, 2
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_NDMSG = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")


def read_tunnels(namespace: str) -> dict[str, dict[str, set[str]]]:
    """Device -> MAC -> addresses of nodes, of all tunnels of a namespace.

    :raise HostError: there is no such namespace, or the kernel refuses.
    """
    return netns.run_inside(namespace, _read)


def _read() -> dict[str, dict[str, set[str]]]:
    names = dict(socket.if_nameindex())
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for index, attributes in _dump(_AF_BRIDGE):
        device, mac = names.get(index), attributes.get(_NDA_LLADDR)
        if device is not None and mac is not None and len(attributes.get(_NDA_DST, b"")) == 4:
            found[device][mac.hex(":")].add(socket.inet_ntoa(attributes[_NDA_DST]))
    return found


def _dump(family: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    """(device's index, attributes) of every entry of a family."""
    body = _NDMSG.pack(family, 0, 0, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        link.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETNEIGH, _REQUEST_DUMP, 1, 0) + body)
        while True:
            data = link.recv(1 << 18)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind = _HEADER.unpack_from(data, offset)[:2]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise HostError("the kernel does not list forwarding entries")
                message = data[offset + _HEADER.size : offset + length]
                yield _NDMSG.unpack_from(message)[1], _attributes(message[_NDMSG.size :])
                offset += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found
