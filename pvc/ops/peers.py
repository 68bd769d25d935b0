# SPDX-License-Identifier: Apache-2.0
"""Whose socket is at the other end of a connection over loopback: /proc/net/tcp and udp (proc(5))."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

_PROC = Path("/proc/net")


def find_peer_uid(kind: str, peer: tuple[str, int], here: tuple[str, int], proc: Path = _PROC) -> int | None:
    """The uid of the local socket at ``peer`` that speaks to ``here``; None: there is none any more, or nobody's.

    ``kind``: tcp or udp. A UDP socket may be connected or not.
    """
    try:
        lines = (proc / kind).read_text().splitlines()[1:]
    except OSError:
        return None
    wanted = {_encode(*peer), _encode("0.0.0.0", peer[1])} if kind == "udp" else {_encode(*peer)}
    far = {_encode(*here), _encode("0.0.0.0", 0)} if kind == "udp" else {_encode(*here)}
    for line in lines:
        fields = line.split()
        if len(fields) > 9 and fields[1] in wanted and fields[2] in far and fields[7].isdecimal():
            uid, inode = int(fields[7]), fields[9]
            # A socket that was closed has no owner any more, and the table says 0 for that: anybody's, not root's.
            return None if uid == 0 and inode == "0" else uid
    return None


def _encode(host: str, port: int) -> str:
    """As the kernel prints it: the address as a number of the machine's byte order, in hex."""
    (number,) = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"
