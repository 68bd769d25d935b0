# SPDX-License-Identifier: Apache-2.0
"""Which ports of this node are in use."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from pvc.errors import HostError

_BUSY = {errno.EADDRINUSE, errno.EACCES}


def find_busy(ports: Iterable[int]) -> set[int]:
    """Those of ``ports`` that a socket of this node has, listening or connected, TCP or UDP, at whatever address.

    The kernel is asked by bind(2), for some microseconds each: what it says costs nothing that grows with the node's
    connections, as reading its tables would.

    :raise HostError: a socket cannot be made.
    """
    return {port for port in ports if not (_is_free(port, socket.SOCK_STREAM) and _is_free(port, socket.SOCK_DGRAM))}


def _is_free(port: int, kind: int) -> bool:
    try:
        with _open(kind) as probe:
            probe.bind(("::" if probe.family == socket.AF_INET6 else "0.0.0.0", port))
    except OSError as err:
        if err.errno in _BUSY:
            return False
        raise HostError(f"cannot find out whether port {port} is in use") from err
    return True


def _open(kind: int) -> socket.socket:
    try:
        both = socket.socket(socket.AF_INET6, kind | socket.SOCK_CLOEXEC)
    except OSError as err:
        if err.errno != errno.EAFNOSUPPORT:
            raise
        return socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return both
