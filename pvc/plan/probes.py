# SPDX-License-Identifier: Apache-2.0
"""Probe frames between the nodes of a cluster: who sends which to whom, and how they look.

They have the local experimental EtherType 1 (IEEE 802, 0x88B5), the address of a VM of the other node or that node's
label, and go the way of the VMs' own frames: through the bridge or switch, the tunnel and the nodes' network. Their
payload is

    "PVCP", 8 bytes that name the test, the sender's number among the job's nodes, the payload's size, zeros
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from pvc.model.network import Layer
from pvc.plan import addresses, names
from pvc.plan.ethernet import Membership
from pvc.plan.inputs import Inputs
from pvc.plan.node import NodePlan
from pvc.plan.switch import is_switched

ETHERTYPE = 0x88B5
MAGIC = b"PVCP"
NONCE_BYTES = 8
SMALL = 100
_HEAD = struct.Struct(">4s8sIH")


@dataclass(frozen=True)
class Probe:
    """One network's probes on one node; devices are (namespace, name). ``targets``: node -> a MAC that is behind it.

    Frames leave by a device or, with ``switch_port``, as if they had come into the shared switch there.
    ``by_kernel``: tunnels end in the kernel at the device ``underlay``, past the node's own firewall.
    ``to_vm``: they are heard on their way to this VM, which must run.
    """

    network: str
    sender: tuple[str | None, str]
    listener: tuple[str | None, str]
    source: str
    targets: dict[str, str]
    sizes: tuple[int, ...]
    udp_port: int
    underlay: str
    underlay_mtu: int
    by_kernel: bool = True
    switch_port: str | None = None
    to_vm: str = ""

    @property
    def carrier(self) -> str:
        """What the frames travel in, in words."""
        return f"UDP {self.udp_port}"


def plan_probes(inputs: Inputs) -> tuple[Probe, ...]:
    """The probes of all networks that this node shares with others."""
    found = []
    placement, plan = inputs.placement(), inputs.plan()
    for membership in inputs.memberships():
        ranks = {share.node: membership.ranks_of(share) for share in placement.shares}
        local = ranks.pop(inputs.job.node, [])
        network, index = membership.network, membership.index
        first = {node: there[0] for node, there in ranks.items() if there}
        targets = {node: addresses.vm_mac(network, index, rank) for node, rank in first.items()}
        if not local or not targets:
            continue
        probe = Probe(
            network=network.name,
            sender=(plan.netns, names.bridge(index)),
            listener=(plan.netns, names.vxlan(index)),
            source=_source(membership, local[0]),
            targets=targets,
            sizes=(SMALL, addresses.guest_mtu(network)),
            udp_port=network.vxlan_port,
            underlay=inputs.facts.underlay(network.host_suffix).device,
            underlay_mtu=network.mtu,
        )
        if is_switched(network):
            tap = _tap_of(plan, network.name, local[0])
            port = tap if network.layer is Layer.L2 else None
            by_kernel = inputs.facts.ovs_datapath == "system"
            to_vm = names.vm(local[0])
            probe = replace(probe, listener=(None, tap), switch_port=port, to_vm=to_vm, by_kernel=by_kernel)
        elif network.layer is Layer.L3:
            # As the programs at the taps send what is for a VM there (bpf/port.c); no VM has the number 0.
            labels = {node: addresses.label_mac(label) for label, node in enumerate(first)}
            probe = replace(probe, sender=probe.listener, source=addresses.label_mac(0), targets=labels)
        found.append(probe)
    return tuple(found)


def _source(membership: Membership, rank: int) -> str:
    # Where addresses are learnt (L2), a frame must tell the truth about where it comes from.
    if membership.network.layer is Layer.L3:
        return addresses.gateway_mac(membership.network, membership.index)
    return addresses.vm_mac(membership.network, membership.index, rank)


def _tap_of(plan: NodePlan, network: str, rank: int) -> str:
    vm = next(vm for vm in plan.grant.vms if vm.rank == rank)
    return plan.taps[next(nic.tap_index for nic in vm.nics if nic.network == network)].name


def render_frame(probe: Probe, node: str, nonce: bytes, sender: int, size: int) -> bytes:
    """The frame to one node."""
    addresses_ = addresses.pack_mac(probe.targets[node]) + addresses.pack_mac(probe.source)
    payload = _HEAD.pack(MAGIC, nonce, sender, size).ljust(size, b"\0")
    return addresses_ + ETHERTYPE.to_bytes(2, "big") + payload


def parse_frame(frame: bytes, nonce: bytes) -> tuple[int, int] | None:
    """(sender's number, size) of a frame of this test that came whole; None for anything else."""
    payload = frame[14:]
    if frame[12:14] != ETHERTYPE.to_bytes(2, "big") or len(payload) < _HEAD.size:
        return None
    magic, name, sender, size = _HEAD.unpack_from(payload)
    return (sender, size) if (magic, name) == (MAGIC, nonce) and len(payload) >= size else None
