# SPDX-License-Identifier: Apache-2.0
"""Many devices changed at once over one netlink socket: a message each, hundreds in one call (rtnetlink(7)).

A general encoder and an answer to wait for cost 2 ms for each device.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

from pvc.errors import HostError

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_REQUEST_ACK = 0x5
_NLMSG_ERROR = 2
_IFF_UP = 1
_IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_GROUP = 4, 10, 18, 27
_INFO_KIND, _INFO_DATA = 1, 2
_BR_FDB_MAX_LEARNED = 49
_HEADER = struct.Struct("=IHHII")
_IFINFOMSG = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HHI")
_ERROR = struct.Struct("=i")
# Answers beyond what the socket buffers would be lost.
_AT_ONCE = 100
_DOOMED = 0x7D00D  # a group (ip-link(8)) of devices that are about to go
_BUFFER = 1 << 16


def put_up(names: Sequence[str], *, mtu: int, master: int | None = None, group: int | None = None) -> None:
    """Put devices of the calling thread's namespace up, as ports of the bridge with index ``master``.

    :raise HostError: a device is not there, or the kernel refused.
    """
    given = ((_IFLA_MTU, mtu), (_IFLA_MASTER, master), (_IFLA_GROUP, group))
    attributes = b"".join(_ATTRIBUTE.pack(_ATTRIBUTE.size, kind, value) for kind, value in given if value is not None)
    bodies = [_IFINFOMSG.pack(socket.AF_UNSPEC, 0, get_index(name), _IFF_UP, _IFF_UP) + attributes for name in names]
    _change(names, bodies, "put {} up")


def remove_all() -> None:
    """Delete all devices of the calling thread's namespace but its loopback, in one go.

    One by one each would wait for the kernel's other processors (20 ms).

    :raise HostError: the kernel refused.
    """
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not names:
        return
    group = _ATTRIBUTE.pack(_ATTRIBUTE.size, _IFLA_GROUP, _DOOMED)
    _change(names, [_IFINFOMSG.pack(socket.AF_UNSPEC, 0, get_index(name), 0, 0) + group for name in names], "mark {}")
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + group
    _change([", ".join(names)], [body], "delete {}", kind=_RTM_DELLINK)


def limit_learning(bridge: str, addresses: int) -> None:
    """Have a bridge learn no more addresses; Linux before 6.7 has no such limit, and ignores it.

    :raise HostError: there is no such bridge, or the kernel refused.
    """
    most = _nested(_INFO_DATA, _ATTRIBUTE.pack(_ATTRIBUTE.size, _BR_FDB_MAX_LEARNED, addresses))
    kind = struct.pack("=HH8s", 11, _INFO_KIND, b"bridge\0")
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, get_index(bridge), 0, 0) + _nested(_IFLA_LINKINFO, kind + most)
    _change([bridge], [body], "limit what {} learns")


def _nested(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content


def _change(names: Sequence[str], bodies: Sequence[bytes], what: str, kind: int = _RTM_NEWLINK) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        for start in range(0, len(names), _AT_ONCE):
            _send(link, names[start : start + _AT_ONCE], bodies[start : start + _AT_ONCE], what, kind)


def _send(link: socket.socket, names: Sequence[str], bodies: Sequence[bytes], what: str, verb: int) -> None:
    link.send(
        b"".join(
            _HEADER.pack(_HEADER.size + len(body), verb, _REQUEST_ACK, number, 0) + body
            for number, body in enumerate(bodies)
        )
    )
    missing = len(names)
    while missing:
        data, at = link.recv(_BUFFER), 0
        while at < len(data):
            length, kind, _, number, _ = _HEADER.unpack_from(data, at)
            (code,) = _ERROR.unpack_from(data, at + _HEADER.size)
            if kind == _NLMSG_ERROR and code:
                raise HostError(f"cannot {what.format(names[number])}") from OSError(-code, os.strerror(-code))
            missing -= 1
            at += (length + 3) & ~3


def get_index(name: str) -> int:
    """The index of a device of the calling thread's namespace.

    :raise HostError: there is none.
    """
    try:
        return socket.if_nametoindex(name)
    except OSError as err:
        raise HostError(f"there is no network device {name}") from err
