# SPDX-License-Identifier: Apache-2.0
"""The Open vSwitch data path: devices of the node's own namespace, ports of its shared bridge, flows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pvc.model.cluster import Placement
from pvc.model.host import Grants, JobFacts, NodeFacts
from pvc.model.network import DataPath, EthernetNetwork, Layer
from pvc.model.node import Tap
from pvc.plan import actions, addresses, names, openflow
from pvc.plan.ethernet import Membership, plan_peers
from pvc.plan.members import numbering, to_ranks

SYSTEM = "system"


def is_switched(network: EthernetNetwork) -> bool:
    """Whether Open vSwitch carries the network; the kernel is faster, as docs/measurements.md shows."""
    return network.data_path is DataPath.OVS


def count_meters(local: Sequence[tuple[Membership, Sequence[int]]]) -> int:
    """The meters that the interfaces of this node's VMs need."""
    return sum(2 * len(ranks) for each, ranks in local if is_switched(each.network) and each.network.bandwidth_mbit)


@dataclass(frozen=True)
class SwitchPlan:
    """``taps`` are by network, in the order of the ranks that were given.

    ``deaf`` are the ports whose frames the node's own stack must not see: OVS' own process reads a copy of each,
    and the original goes on to the kernel, as on any device.
    """

    taps: dict[str, tuple[Tap, ...]]
    deaf: tuple[str, ...]
    actions: tuple[actions.Action, ...]


def plan_switch(
    job: JobFacts,
    local: Sequence[tuple[Membership, Sequence[int]]],
    placement: Placement,
    facts: NodeFacts,
    grants: Grants,
) -> SwitchPlan:
    """All networks of a cluster that Open vSwitch carries, each with its local ranks."""
    system = facts.ovs_datapath == SYSTEM
    group = names.link_group(job.job_id)
    segments: list[openflow.Segment] = []
    taps: dict[str, tuple[Tap, ...]] = {}
    devices: list[actions.Action] = []
    meters = iter(grants.meters)
    limits: list[tuple[int, int]] = []
    number = 0
    for membership, ranks in local:
        network = membership.network
        segment = _plan_segment(job, membership, ranks, placement, facts, grants, number)
        number += len(segment.ports) + (segment.gateway is not None)
        if network.bandwidth_mbit is not None:
            segment, found = _limited(segment, meters, network.bandwidth_mbit)
            limits += found
        segments.append(segment)
        ports = tuple(port.name for port in segment.ports)
        # The header says where a sum is written once flows have judged the frame: addresses are not safe from it.
        header = system and network.layer is Layer.L2
        taps[network.name] = tuple(Tap(name, None, header) for name in ports)
        mtu = addresses.guest_mtu(network)
        devices.append(actions.AddSwitchTaps(group, mtu, ports, header))
        if segment.gateway is not None:
            devices.append(_plan_gateway(job, membership, segment.gateway, system))
    if not segments:
        return SwitchPlan({}, (), ())
    ports = tuple(
        port.name for each in segments for port in (*each.ports, *([each.gateway] if each.gateway is not None else []))
    )
    tunnels = {names.tunnel(each.network.vxlan_port): each.network.vxlan_port for each, _ in local}
    steps: list[actions.Action] = [*devices]
    bridge = names.SWITCH
    steps.append(actions.AddSwitchPorts(job.job_id, bridge, facts.ovs_datapath, tuple(tunnels.items()), ports))
    vnis = tuple(each.vni for each in segments)
    peers = () if system else _peers([each.network for each, _ in local], segments, facts)
    steps.append(actions.LoadFlows(bridge, job.job_id, vnis, openflow.render(segments), tuple(limits), peers))
    return SwitchPlan(taps, () if system else ports, tuple(steps))


def _peers(
    networks: Sequence[EthernetNetwork], segments: Sequence[openflow.Segment], facts: NodeFacts
) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    found: dict[str, dict[str, None]] = {}
    for network, segment in zip(networks, segments, strict=True):
        found.setdefault(network.host_suffix, {}).update(dict.fromkeys(each.node for each in segment.peers))
    own = {suffix: facts.underlay(suffix) for suffix in found}
    return tuple((own[suffix].device, own[suffix].address, tuple(nodes)) for suffix, nodes in found.items())


def _plan_segment(
    job: JobFacts,
    membership: Membership,
    ranks: Sequence[int],
    placement: Placement,
    facts: NodeFacts,
    grants: Grants,
    number: int,
) -> openflow.Segment:
    network, index = membership.network, membership.index
    vni, layer3 = grants.vnis[network.name], network.layer is Layer.L3

    def name(at: int) -> str:
        return names.port(network.dev_prefix, grants.mark or names.job_mark(job.job_id), number + at)

    ports = tuple(
        openflow.Port(
            name(at),
            addresses.vm_mac(network, index, rank),
            addresses.vm_address(network, rank) if layer3 else None,
            addresses.vm_address6(network, rank, vni) if layer3 else None,
        )
        for at, rank in enumerate(ranks)
    )
    gateway = None
    if layer3:
        gateway = openflow.Port(
            name(len(ports)),
            addresses.gateway_mac(network, index),
            addresses.gateway_address(network),
            addresses.gateway_address6(network, vni),
        )
    return openflow.Segment(
        cookie=job.job_id,
        vni=vni,
        ports=ports,
        gateway=gateway,
        numbering=numbering(network, index, vni),
        members=to_ranks(membership.members),
        peers=plan_peers(membership, placement, job.node, facts),
        local_address=facts.underlay(network.host_suffix).address,
        tunnel=names.tunnel(network.vxlan_port),
    )


def _limited(
    segment: openflow.Segment, meters: Iterator[int], mbit: int
) -> tuple[openflow.Segment, list[tuple[int, int]]]:
    """The segment with two of ``meters`` for each port, and what these let through."""
    ports = tuple(replace(port, meters=(next(meters), next(meters))) for port in segment.ports)
    limits = [(meter, mbit * 1000) for port in ports for meter in port.meters or ()]
    return replace(segment, ports=ports), limits


def _plan_gateway(job: JobFacts, membership: Membership, gateway: openflow.Port, offload: bool) -> actions.AddGateway:
    network = membership.network
    own = [f"{gateway.address}/{network.int_network.prefixlen}"]
    if network.int_network6 is not None:
        own.append(f"{gateway.address6}/{network.int_network6.prefixlen}")
    return actions.AddGateway(
        netns=names.netns(job.job_id),
        name=names.bridge(membership.index),
        port=gateway.name,
        group=names.link_group(job.job_id),
        mac=gateway.mac,
        mtu=addresses.guest_mtu(network),
        addresses=tuple(own),
        offload=offload,
    )
