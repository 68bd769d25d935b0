# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of changes on this node, whoever makes them: devices, addresses, forwarding, nftables.

Messages are those of rtnetlink(7) and of nf_tables (linux/netfilter/nf_tables.h), read as far as names go: whoever
gets one looks at the thing itself.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Set
from dataclasses import dataclass

from pvc.errors import HostError

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
# RTNLGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR, _IPV4_NETCONF, _IPV6_NETCONF; NFNLGRP_NFTABLES
_ROUTE_GROUPS, _NFT_GROUPS = (1, 5, 9, 24, 25), (7,)
_NEWLINK, _DELLINK, _DELADDR, _NEWNETCONF = 16, 17, 21, 80
_IFLA_IFNAME, _IFF_UP = 3, 1
_NETCONFA_IFINDEX, _NETCONFA_FORWARDING = 1, 2
_NFT_SUBSYSTEM, _NFT_NEWGEN = 10, 15
_NFTA_TABLE = 1  # the table's name, in the messages of tables, chains, rules and sets alike
_RECEIVE, _BUFFER = 1 << 16, 1 << 20
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")


@dataclass(frozen=True)
class Changes:
    """What has changed: nftables ``tables``, ``devices`` that are gone, down or without an address, and devices that do
    not forward any more ("all": none does). ``lost``: more has changed than the kernel could tell.
    """

    tables: Set[str] = frozenset()
    devices: Set[str] = frozenset()
    closed: Set[str] = frozenset()
    lost: bool = False


class KernelWatch:
    """Sockets that the kernel writes to; select(2) on ``fileno`` of each."""

    def __init__(self) -> None:
        """:raise HostError: the kernel does not tell."""
        self.sockets: list[socket.socket] = []
        try:
            for family, groups in ((_NETLINK_ROUTE, _ROUTE_GROUPS), (_NETLINK_NETFILTER, _NFT_GROUPS)):
                kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
                link = socket.socket(socket.AF_NETLINK, kind, family)
                self.sockets.append(link)
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                link.bind((0, 0))
                for group in groups:
                    link.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as err:
            self.close()
            raise HostError("the kernel does not tell of changes") from err

    def read(self) -> Changes:
        """What was told since the last time."""
        tables: set[str] = set()
        devices: set[str] = set()
        closed: set[str] = set()
        lost = False
        for link, netfilter in zip(self.sockets, (False, True), strict=True):
            while True:
                try:
                    data = link.recv(_RECEIVE)
                except BlockingIOError:
                    break
                except OSError as err:
                    if err.errno != errno.ENOBUFS:
                        raise
                    lost = True
                    continue
                for kind, body in _split(data):
                    if netfilter:
                        tables |= _read_table(kind, body)
                    elif kind == _NEWNETCONF:
                        closed |= _read_closed(body)
                    else:
                        devices |= _read_device(kind, body)
        return Changes(tables, devices, closed, lost)

    def close(self) -> None:
        """Listen no more."""
        for link in self.sockets:
            link.close()


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _attributes(body: bytes, start: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    data = body[start:]
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            break
        found[kind & 0x3FFF] = data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found


def _read_table(kind: int, body: bytes) -> set[str]:
    if kind >> 8 != _NFT_SUBSYSTEM or kind & 0xFF == _NFT_NEWGEN:
        return set()
    return {_text(_attributes(body, 4).get(_NFTA_TABLE, b""))}


def _read_device(kind: int, body: bytes) -> set[str]:
    """A device that is less than it was: what comes, and what only changes, is told as well."""
    if kind == _DELADDR and len(body) >= 8:
        return {_name_of(struct.unpack_from("=I", body, 4)[0])}
    if kind not in (_NEWLINK, _DELLINK) or len(body) < 16:
        return set()
    # struct ifinfomsg: family, padding, type, index, flags, change
    flags = struct.unpack_from("=BBHiII", body)[4]
    if kind == _NEWLINK and flags & _IFF_UP:
        return set()
    return {_text(_attributes(body, 16).get(_IFLA_IFNAME, b""))}


def _read_closed(body: bytes) -> set[str]:
    found = _attributes(body, 4)
    index, value = found.get(_NETCONFA_IFINDEX, b""), found.get(_NETCONFA_FORWARDING, b"")
    if len(index) != 4 or len(value) != 4 or any(value):
        return set()
    number = struct.unpack("=i", index)[0]
    return {"all"} if number == -1 else {_name_of(number)} if number > 0 else set()


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""  # it has gone meanwhile, which is told, too


def _text(value: bytes) -> str:
    return os.fsdecode(value.rstrip(b"\0"))
