# SPDX-License-Identifier: Apache-2.0
"""Forwarded ports: which ports of the node lead to which ports of its VMs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pvc.errors import UsageError
from pvc.model.cluster import NodeShare
from pvc.model.network import Access, Layer, Protocol, ReverseNat
from pvc.plan import addresses
from pvc.plan.ethernet import Membership
from pvc.plan.grants import PortWant


@dataclass(frozen=True)
class Forward:
    """One port of the node's addresses, and what it leads to: of its IPv6 ones, too, where VMs have IPv6."""

    network: str
    rank: int
    vm_address: str
    vm_address6: str | None
    vm_port: int
    protocol: Protocol
    access: Access
    host_port: int

    @property
    def key(self) -> str:
        """How the VM's port is called in a grant: "22", "53/udp"."""
        return str(self.vm_port) if self.protocol is Protocol.TCP else f"{self.vm_port}/{self.protocol.value}"


def plan_wants(memberships: Sequence[Membership], share: NodeShare) -> tuple[PortWant, ...]:
    """The ports that this node's VMs need, one want for each entry of ``reverse-nat``."""
    return tuple(
        PortWant(membership.network.name, len(ranks) * _width(entry), entry.min_host_port, entry.max_host_port)
        for membership, entry, ranks in _entries(memberships, share)
    )


def plan_forwards(
    memberships: Sequence[Membership], share: NodeShare, ports: Sequence[int], vnis: Mapping[str, int]
) -> tuple[Forward, ...]:
    """What the ports that were taken for ``plan_wants`` lead to, in that order; ``vnis`` are by network.

    :raise UsageError: the ports were taken for something else.
    """
    left = iter(ports)
    found: list[Forward] = []
    for membership, entry, ranks in _entries(memberships, share):
        network = membership.network
        for rank in ranks:
            address = addresses.vm_address(network, rank)
            address6 = addresses.vm_address6(network, rank, vnis[network.name])
            for vm_port in range(entry.first_vm_port, entry.last_vm_port + 1):
                port = next(left, None)
                if port is None:
                    raise UsageError("fewer ports were granted than the cluster needs")
                found.append(
                    Forward(network.name, rank, address, address6, vm_port, entry.protocol, entry.access, port)
                )
    return tuple(found)


def plan_ports(forwards: Sequence[Forward]) -> dict[int, dict[str, Forward]]:
    """Each VM's forwards by their keys; of two networks with the same port, the later's is "22@NETWORK"."""
    found: dict[int, dict[str, Forward]] = {}
    for forward in forwards:
        of_vm = found.setdefault(forward.rank, {})
        known = of_vm.get(forward.key)
        of_vm[forward.key if known is None else f"{forward.key}@{forward.network}"] = forward
    return found


def _entries(memberships: Sequence[Membership], share: NodeShare) -> Iterator[tuple[Membership, ReverseNat, list[int]]]:
    for membership in memberships:
        if membership.network.layer is Layer.L3:
            ranks = membership.ranks_of(share)
            for entry in membership.network.reverse_nat:
                yield membership, entry, ranks


def _width(entry: ReverseNat) -> int:
    return entry.last_vm_port - entry.first_vm_port + 1
