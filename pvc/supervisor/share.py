# SPDX-License-Identifier: Apache-2.0
"""What one node's supervisor has to do: its VMs, each with all that was decided for it. No effects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pvc.errors import GuestError
from pvc.model.cluster import ClusterSpec, NodeShare
from pvc.model.node import NodeGrant, VmGrant
from pvc.model.vm import Accel, VmTemplate
from pvc.plan.expand import fill_template
from pvc.plan.numa import Pinning

SSH_PORT = "22"


@dataclass(frozen=True)
class VmShare:
    """One VM of this node; ``memory_mib`` is the guest's, ``taps`` are descriptors in the order of its nics."""

    rank: int
    template: VmTemplate
    grant: VmGrant
    node: str
    directory: Path
    cpus: int
    memory_mib: int
    accel: Accel
    pins: tuple[int, ...]
    taps: tuple[int, ...]
    ssh_host: str | None
    ssh_port: int | None
    ssh_by_owner: bool = False

    @property
    def name(self) -> str:
        """``vm<rank>``."""
        return f"vm{self.rank}"

    @property
    def display(self) -> str | None:
        """The Unix socket of its screen; None: it has no screen."""
        return None if self.template.remote_display == "none" else os.fspath(self.directory / "display.sock")

    @property
    def addresses(self) -> tuple[str, ...]:
        """All that the VM has, network by network, IPv4 before IPv6."""
        given = (address for nic in self.grant.nics for address in (nic.address, nic.address6) if address is not None)
        return tuple(address.partition("/")[0] for address in given)


def find_node_share(spec: ClusterSpec, node: str) -> NodeShare:
    """The share of ``node``.

    :raise GuestError: the cluster has nothing on it.
    """
    for share in spec.placement.shares:
        if share.node == node:
            return share
    raise GuestError(f"node {node!r} has no part in cluster {spec.name!r}")


def find_template(spec: ClusterSpec, rank: int) -> VmTemplate:
    """The template of one rank.

    :raise GuestError: the launcher's description does not cover it.
    """
    for group in spec.groups:
        if group.first_rank <= rank < group.first_rank + group.count:
            try:
                return spec.templates[group.template]
            except KeyError:
                break
    raise GuestError(f"the cluster's description has no template for vm{rank}")


def node_templates(spec: ClusterSpec, share: NodeShare) -> dict[int, VmTemplate]:
    """The template of each rank of a share."""
    return {rank: find_template(spec, rank) for rank in range(share.first_rank, share.first_rank + share.count)}


def plan_vms(
    spec: ClusterSpec,
    share: NodeShare,
    grant: NodeGrant,
    taps: Sequence[int],
    *,
    accels: dict[int, Accel],
    memory_mib: dict[int, int],
    pinning: Pinning,
) -> tuple[VmShare, ...]:
    """Every VM of the share; ``accels`` and ``memory_mib`` (of the guest) are by rank.

    :raise GuestError: the launcher's description and pvc-node's grant do not fit together.
    """
    grants = {vm.rank: vm for vm in grant.vms}
    templates = node_templates(spec, share)
    if grants.keys() != templates.keys():
        raise GuestError(
            f"node {share.node} was set up for ranks {sorted(grants)}, the launcher wants {sorted(templates)}",
            hint="does the definition of 'pvc start' equal the one given to --pvc?",
        )
    found: list[VmShare] = []
    for i, (rank, template) in enumerate(templates.items()):
        vm = grants[rank]
        if any(not 0 <= nic.tap_index < len(taps) for nic in vm.nics):
            raise GuestError(f"pvc-node sent too few taps for vm{rank}")
        port = vm.ports.get(SSH_PORT)
        found.append(
            VmShare(
                rank=rank,
                template=fill_template(template, rank, spec.job_id),
                grant=vm,
                node=share.node,
                directory=Path(grant.run_dir) / f"vm{rank}",
                cpus=spec.placement.cpus_of(rank),
                memory_mib=memory_mib[rank],
                accel=accels[rank],
                pins=pinning.vms[i],
                taps=tuple(taps[nic.tap_index] for nic in vm.nics),
                ssh_host=grant.node_address if port is not None else None,
                ssh_port=port,
                ssh_by_owner=SSH_PORT in vm.owner_ports,
            )
        )
    return tuple(found)
