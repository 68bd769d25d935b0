"""Many devices changed at once over one netlink socket: a message each, hundreds in one call (rtnetlink(7)).

A general encoder and an answer to wait for cost 2 ms for each device.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

from pvc.errors import HostError

_RTM_NEWLINK = 16
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
_BUFFER = 1 << 16


def put_up(names: Sequence[str], *, mtu: int, master: int | None = None, group: int | None = None) -> None:
    """Put devices of the calling thread's namespace up, as ports of the bridge with index ``master``.

    :raise HostError: a device is not there, or the kernel refused.
    """
    given = ((_IFLA_MTU, mtu), (_IFLA_MASTER, master), (_IFLA_GROUP, group))
    attributes = b"".join(_ATTRIBUTE.pack(_ATTRIBUTE.size, kind, value) for kind, value in given if value is not None)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        for start in range(0, len(names), _AT_ONCE):
            _change(link, names[start : start + _AT_ONCE], attributes)


def limit_learning(bridge: int, addresses: int) -> None:
    """Have the bridge with that index learn no more addresses; Linux before 6.7 has no such limit, and ignores it.

    :raise HostError: the kernel refused.
    """
    most = _nested(_INFO_DATA, _ATTRIBUTE.pack(_ATTRIBUTE.size, _BR_FDB_MAX_LEARNED, addresses))
    kind = struct.pack("=HH8s", 11, _INFO_KIND, b"bridge\0")
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, bridge, 0, 0) + _nested(_IFLA_LINKINFO, kind + most)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        link.send(_HEADER.pack(_HEADER.size + len(body), _RTM_NEWLINK, _REQUEST_ACK, 0, 0) + body)
        (code,) = _ERROR.unpack_from(link.recv(_BUFFER), _HEADER.size)
    if code:
        raise HostError("cannot limit what a bridge learns") from OSError(-code, os.strerror(-code))


def _nested(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content


def _change(link: socket.socket, names: Sequence[str], attributes: bytes) -> None:
    messages = []
    for number, name in enumerate(names):
        try:
            body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(name), _IFF_UP, _IFF_UP) + attributes
        except OSError as err:
            raise HostError(f"there is no network device {name}") from err
        messages.append(_HEADER.pack(_HEADER.size + len(body), _RTM_NEWLINK, _REQUEST_ACK, number, 0) + body)
    link.send(b"".join(messages))
    missing = len(names)
    while missing:
        data, at = link.recv(_BUFFER), 0
        while at < len(data):
            length, kind, _, number, _ = _HEADER.unpack_from(data, at)
            (code,) = _ERROR.unpack_from(data, at + _HEADER.size)
            if kind == _NLMSG_ERROR and code:
                raise HostError(f"cannot put {names[number]} up") from OSError(-code, os.strerror(-code))
            missing -= 1
            at += (length + 3) & ~3
