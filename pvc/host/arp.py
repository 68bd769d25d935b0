# SPDX-License-Identifier: Apache-2.0
"""ARP requests of our own, for those who listen to the answers (RFC 826).

Open vSwitch's own process learns from them where tunnels lead. Otherwise it would ask when the first frame is to be
sent there, and drop that frame (OVS, lib/tnl-neigh-cache.c).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from pvc.errors import HostError

_ETH_P_ARP = 0x0806
_REQUEST = 1
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_BROADCAST = b"\xff" * 6


def ask(device: str, own: str, others: Sequence[str]) -> None:
    """Ask on ``device``, which has the address ``own``, where ``others`` are. Who is not there does not answer.

    :raise HostError: there is no such device.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
            link.bind((device, 0))
            hardware = link.getsockname()[4]
            for other in others:
                link.send(
                    _FRAME.pack(
                        *(_BROADCAST, hardware, _ETH_P_ARP, 1, 0x0800, 6, 4, _REQUEST),
                        *(hardware, socket.inet_aton(own), bytes(6), socket.inet_aton(other)),
                    )
                )
    except OSError as err:
        raise HostError(f"cannot ask on {device} where other nodes are") from err
