# SPDX-License-Identifier: Apache-2.0
"""Whether the machine at the other end of a TCP connection is still there: tcp(7)."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

# Nothing to be sent: the other machine is asked after 15 s, and is gone when it does not answer for 15 s more.
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
# How often to ask ``is_lost``.
LOOK_S = 5.0
_LOST_MS = 30_000
# struct tcp_info of linux/tcp.h: retransmits, probes, and the time since the last ACK.
_TCP_INFO = struct.Struct("=2x2B52xI")


def keep_alive(connection: socket.socket | None) -> None:
    """Let the kernel notice when the other machine is gone without a word while nothing is sent."""
    if connection is None:
        return
    with suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def is_lost(connection: socket.socket | None) -> bool:
    """Whether what was sent has had no answer for half a minute, though it was sent again.

    TCP_USER_TIMEOUT would be less work, but it also ends a connection whose other end is there and does not read
    (Linux 5.11 and later): a pager that shows its first page.
    """
    if connection is None:
        return False
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        retransmits, probes, silent_ms = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return False
    return bool(silent_ms > _LOST_MS and (retransmits > 1 or probes > 1))
