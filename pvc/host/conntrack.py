# SPDX-License-Identifier: Apache-2.0
"""Entries of the node's connection table, by ctnetlink (linux/netfilter/nfnetlink_conntrack.h): no process."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

LOG = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
# NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_GET and _DELETE
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_NESTED, _KIND = 0x8000, 0x3FFF
# CTA_TUPLE_*, and the filter's flags of each; CTA_FILTER is of Linux 5.8.
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _SOURCE4, _SOURCE6 = 1, 1, 3
_BY_SOURCE = 1
_HEAD, _PART, _FAMILY = struct.Struct("=IHHII"), struct.Struct("=HH"), struct.Struct("=BBH")
_WAIT_S = 2.0
_CHUNK, _AT_ONCE = 1 << 18, 200


def flush(addresses: Iterable[str]) -> None:
    """Forget all connections that these addresses began or answer. An older kernel forgets them by its time limits."""
    found = [ip_address(text) for text in addresses]
    with suppress(OSError), _open() as link:
        _flush4(link, [each for each in found if isinstance(each, IPv4Address)])
        six = {each.packed for each in found if isinstance(each, IPv6Address)}
        if six:
            _flush6(link, six)


def _open() -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    link.settimeout(_WAIT_S)
    return link


def _flush4(link: socket.socket, addresses: Iterable[IPv4Address]) -> None:
    """The kernel finds them."""
    for address in addresses:
        where = _attribute(_NESTED | _TUPLE_IP, _attribute(_SOURCE4, address.packed))
        for way in (_ORIGINAL, _REPLY):
            chosen = _attribute(_NESTED | _FILTER, _attribute(way, struct.pack("=I", _BY_SOURCE)))
            # With version 0 the family would be overlooked.
            message = _FAMILY.pack(socket.AF_INET, 1, 0) + _attribute(_NESTED | way, where) + chosen
            link.send(_pack(_DELETE, _REQUEST | _ACK, message))
            code = _read_code(link.recv(4096))
            if code:
                LOG.debug("connections are left to their time limits: error %d of ctnetlink", -code)
                return


def _flush6(link: socket.socket, addresses: set[bytes]) -> None:
    """We find them: with a filter for an IPv6 address the kernel takes all others (ipv6_addr_cmp; Linux 6.18)."""
    link.send(_pack(_GET, _REQUEST | _DUMP, _FAMILY.pack(socket.AF_INET6, 0, 0)))
    doomed: list[bytes] = []
    done = False
    while not done:
        for kind, content in _messages(link.recv(_CHUNK)):
            done = done or kind in (_DONE, _ERROR)
            parts = {} if done else dict(_attributes(content[_FAMILY.size :]))
            if any(_find_source6(parts.get(way, b"")) in addresses for way in (_ORIGINAL, _REPLY)):
                same = b"".join(
                    _attribute(number | (_NESTED if number == _ORIGINAL else 0), parts[number])
                    for number in (_ORIGINAL, _ZONE, _ID)
                    if number in parts
                )
                doomed.append(_pack(_DELETE, _REQUEST, _FAMILY.pack(socket.AF_INET6, 0, 0) + same))
    for start in range(0, len(doomed), _AT_ONCE):
        link.send(b"".join(doomed[start : start + _AT_ONCE]))


def _find_source6(content: bytes) -> bytes | None:
    return dict(_attributes(dict(_attributes(content)).get(_TUPLE_IP, b""))).get(_SOURCE6)


def _pack(kind: int, flags: int, content: bytes) -> bytes:
    return _HEAD.pack(_HEAD.size + len(content), kind, flags, 1, 0) + content


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEAD.size:
        length, kind, *_ = _HEAD.unpack_from(data)
        yield kind, data[_HEAD.size : length]
        data = data[max(_HEAD.size, length + 3 & ~3) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _PART.size:
        length, kind = _PART.unpack_from(data)
        yield kind & _KIND, data[_PART.size : length]
        data = data[max(_PART.size, length + 3 & ~3) :]


def _attribute(kind: int, content: bytes) -> bytes:
    return _PART.pack(_PART.size + len(content), kind) + content + b"\0" * (-len(content) % 4)


def _read_code(answer: bytes) -> int:
    """The error number of an acknowledgement, 0 or less."""
    kind = _HEAD.unpack_from(answer)[1]
    code: int = struct.unpack_from("=i", answer, _HEAD.size)[0] if kind == _ERROR else 0
    return code
