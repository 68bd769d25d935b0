"""Handing out a node's own numbers: pure functions of what is taken."""

from __future__ import annotations

from collections.abc import Set

from pvc.errors import UsageError


def take_slot(taken: Set[int], size: int, network: str) -> int:
    """The lowest free uplink slot below ``size``.

    :raise UsageError: all are taken.
    """
    for slot in range(size):
        if slot not in taken:
            return slot
    raise UsageError(
        f"network {network}: all {size} clusters that fit on a node are there",
        hint="wait for one to end, or widen ext-network in networks.yaml",
    )


def take_ports(taken: Set[int], count: int, first: int, last: int, network: str) -> tuple[int, ...]:
    """The ``count`` lowest free ports in [first, last], ascending.

    :raise UsageError: fewer are free.
    """
    ports: list[int] = []
    for port in range(first, last + 1):
        if len(ports) == count:
            break
        if port not in taken:
            ports.append(port)
    if len(ports) < count:
        raise UsageError(
            f"network {network}: {count} host ports wanted, {len(ports)} of {first}-{last} are free on this node",
            hint="wait for other clusters to end, or widen reverse-nat in networks.yaml",
        )
    return tuple(ports)
