# SPDX-License-Identifier: Apache-2.0
"""Which ports the kernel must not hand out by itself, since VMs answer there."""

from __future__ import annotations

from collections.abc import Iterable

from pvc.errors import HostError
from pvc.model.network import EthernetNetwork
from pvc.plan.members import to_ranks

SETTING = "net/ipv4/ip_local_reserved_ports"


def plan_reserved(networks: Iterable[EthernetNetwork], ephemeral: str, reserved: str) -> str | None:
    """What SETTING must be, so that no program of the node is given a port that leads to VMs; None: as it was.

    ``ephemeral`` is ip_local_port_range, ``reserved`` what SETTING was before jobs of ours, both as the kernel writes
    them (ip-sysctl.rst).

    :raise HostError: they cannot be read.
    """
    if not ephemeral:
        return None
    try:
        low, high = (int(word) for word in ephemeral.split())
        there = _parse(reserved)
    except ValueError as err:
        raise HostError(f"the kernel's port ranges cannot be read: {ephemeral!r}, {reserved!r}") from err
    wanted = {
        port
        for network in networks
        for entry in network.reverse_nat
        for port in range(max(low, entry.min_host_port), min(high, entry.max_host_port) + 1)
    }
    return None if wanted <= there else _format(wanted | there)


def _parse(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _format(ports: Iterable[int]) -> str:
    """As the kernel writes a set: ranges that touch are one."""
    ranges = to_ranks([range(port, port + 1) for port in sorted(ports)])
    return ",".join(str(first) if end == first + 1 else f"{first}-{end - 1}" for first, end in ranges)
