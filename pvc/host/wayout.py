# SPDX-License-Identifier: Apache-2.0
"""Whether what a cluster sends outside leaves this node: a datagram to nobody, looked for where it leaves.

It is for an address of documentation (RFC 5737, RFC 3849) and lives for few hops, so no machine gets it; nobody has to
answer.
"""

from __future__ import annotations

import secrets
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from pvc.errors import HostError
from pvc.host import netlink, netns

_PORT, _HOPS = 33434, 3
_ETH_P_ALL = 3
_TRIES, _WAIT_S = 3, 0.3


@dataclass(frozen=True)
class Family:
    """How a datagram of one version of IP is sent: ``name`` as nftables has it, to a machine that nobody has."""

    name: str
    shown: str
    number: socket.AddressFamily
    target: str
    hops: tuple[int, int]  # level and name of the socket's option


IPV4 = Family("ip", "IPv4", socket.AF_INET, "192.0.2.1", (socket.IPPROTO_IP, socket.IP_TTL))
IPV6 = Family("ip6", "IPv6", socket.AF_INET6, "2001:db8::1", (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS))


def is_open(namespace: str, family: Family = IPV4) -> bool | None:
    """Whether a datagram from ``namespace`` leaves this node; None: nobody can tell, for the node's own does not.

    :raise HostError: the node cannot be read.
    """
    with netlink.opened("find the way outside") as links:
        device = links.exit_to(family.target)
    if device is None:
        return None
    if _leaves(namespace, device, family):
        return True
    return False if _leaves(None, device, family) else None


def _leaves(namespace: str | None, device: str, family: Family) -> bool:
    mark = secrets.token_bytes(16)

    def send() -> None:
        with socket.socket(family.number, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setsockopt(*family.hops, _HOPS)
            with suppress(OSError):  # refused here, which is an answer
                sender.sendto(mark, (family.target, _PORT))

    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0) as ear:
            ear.bind((device, _ETH_P_ALL))
            for _ in range(_TRIES):
                netns.run_inside(namespace, send)
                if _hears(ear, mark):
                    return True
    except OSError as err:
        raise HostError(f"cannot listen at {device}") from err
    return False


def _hears(ear: socket.socket, mark: bytes) -> bool:
    deadline = time.monotonic() + _WAIT_S
    while (left := deadline - time.monotonic()) > 0:
        if select.select([ear], [], [], left)[0]:
            with suppress(BlockingIOError):
                if ear.recv(256).endswith(mark):
                    return True
    return False
