# SPDX-License-Identifier: Apache-2.0
"""Handing out a node's own numbers: pure functions of what is taken."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from dataclasses import dataclass

from pvc.errors import UsageError


@dataclass(frozen=True)
class PortWant:
    """``count`` ports of this node in [first, last], for a network's VMs."""

    network: str
    count: int
    first: int
    last: int


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


def take_ports(taken: Set[int], wants: Sequence[PortWant]) -> tuple[int, ...]:
    """The lowest free ports for each want, in that order. A number is handed out once, TCP or UDP.

    :raise UsageError: fewer are free than a want needs.
    """
    busy = set(taken)
    ports: list[int] = []
    for want in wants:
        mine: list[int] = []
        for port in range(want.first, want.last + 1):
            if len(mine) == want.count:
                break
            if port not in busy:
                mine.append(port)
        if len(mine) < want.count:
            raise UsageError(
                f"network {want.network}: {want.count} host ports wanted, {len(mine)} of {want.first}-{want.last} "
                "are free on this node",
                hint="wait for other clusters to end, or widen reverse-nat in networks.yaml",
            )
        busy.update(mine)
        ports += mine
    return tuple(ports)


def take_meters(taken: Set[int], count: int) -> tuple[int, ...]:
    """The ``count`` lowest numbers of meters of the shared switch that are free, ascending."""
    free = (number for number in itertools.count(1) if number not in taken)
    return tuple(itertools.islice(free, count))
