# SPDX-License-Identifier: Apache-2.0
"""What this node tells a job's owner of the job's networks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pvc.errors import HostError
from pvc.host import netns, ovsview
from pvc.host.counters import read_counters
from pvc.model.netview import Counters, Member, NetworkReport, NetworkShare
from pvc.model.network import DataPath, EthernetNetwork
from pvc.model.node import Nic, NodeGrant, Tap, VmGrant
from pvc.plan import addresses, names, openflow
from pvc.plan.forwards import plan_forwards
from pvc.plan.inputs import Inputs
from pvc.plan.node import find_share, plan_attachments, plan_passthroughs
from pvc.plan.pci import divide_devices
from pvc.plan.switch import is_switched
from pvc.state.ledger import Ledger, Ready

_Seen = dict[tuple[str | None, str], Counters]  # (namespace, device) -> what it carried
_Ports = dict[tuple[str, int], dict[str, int]]  # (network, rank) -> the VM's port -> the node's


def read_inputs(ledger: Ledger) -> Inputs:
    """What the job's plan on this node followed from.

    :raise HostError: it is not known.
    """
    inputs = ledger.read_inputs()
    if inputs is None:
        raise HostError(
            "what was planned for this job is not known",
            hint="it was set up by another version of pvc; new jobs can be examined",
        )
    return inputs


def report(ledger: Ledger, ready: Ready) -> NetworkReport:
    """The job's networks here, with counters read now.

    :raise HostError: the plan is not known, or the kernel does not answer.
    """
    inputs = read_inputs(ledger)
    grant = ready.grant
    places = {tap.netns for tap in ready.taps}
    # Without VMs on networks a cluster has no namespace.
    if netns.exists(ready.netns):
        places.add(ready.netns)
    seen = {(place, name): found for place in places for name, found in read_counters(place).items()}
    ports = _ports(inputs)
    switched = any(is_switched(each.network) for each in inputs.memberships()) and grant.vms
    flows = ovsview.read_flows(names.SWITCH, grant.job_id) if switched else ()
    shares = []
    for membership in inputs.memberships():
        network = membership.network
        vni = inputs.grants.vnis.get(network.name)
        tunnel = seen.get((ready.netns, names.vxlan(membership.index)))
        if is_switched(network) and flows:
            tunnel = _count_flows(flows, vni)
        shares.append(
            NetworkShare(
                network=network.name,
                data_path=_data_path(network),
                vni=vni,
                mtu=addresses.guest_mtu(network),
                members=_members(grant, network.name, ready.taps, seen, ports),
                tunnel=tunnel,
            )
        )
    for each in plan_attachments(inputs.request, inputs.site):
        attached = each.network
        members = _members(grant, attached.name, ready.taps, seen, {})
        shares.append(NetworkShare(attached.name, f"bridge {attached.host_bridge}", None, attached.mtu, members, None))
    for passthrough in plan_passthroughs(inputs.request, inputs.site):
        name = passthrough.network.name
        ranks = passthrough.ranks_of(find_share(inputs.placement(), grant.node))
        owners = divide_devices(ranks, inputs.grants.devices.get(name, ()))
        devices = tuple(Member(rank, "", addresses, {}, None) for rank, addresses in owners)
        shares.append(NetworkShare(name, "vfio", None, 0, devices, None))
    return NetworkReport(grant.node, grant.node_address, tuple(shares))


def _count_flows(flows: Sequence[ovsview.Flow], vni: int | None) -> Counters:
    """What a network's flows carried to and from other nodes; copies for all of them (broadcast) are not told."""
    came = [each for each in flows if each.table == openflow.CLASSIFY and _has(each.match, "tun_id", vni)]
    went = [
        each
        for each in flows
        if each.table == openflow.SWITCH and _has(each.match, "metadata", vni) and "tun_dst" in each.actions
    ]
    return Counters(
        sum(each.packets for each in came),
        sum(each.bytes for each in came),
        0,
        sum(each.packets for each in went),
        sum(each.bytes for each in went),
        0,
    )


def _has(match: str, field: str, value: int | None) -> bool:
    found = re.search(rf"\b{field}=(0x[0-9a-f]+|\d+)\b", match)
    return found is not None and int(found[1], 0) == value


def _ports(inputs: Inputs) -> _Ports:
    share = find_share(inputs.placement(), inputs.job.node)
    found: _Ports = {}
    for forward in plan_forwards(inputs.memberships(), share, inputs.grants.ports, inputs.grants.vnis):
        found.setdefault((forward.network, forward.rank), {})[forward.key] = forward.host_port
    return found


def _data_path(network: EthernetNetwork) -> str:
    return DataPath.KERNEL.value if network.data_path is DataPath.AUTO else network.data_path.value


def _members(grant: NodeGrant, network: str, taps: tuple[Tap, ...], seen: _Seen, ports: _Ports) -> tuple[Member, ...]:
    return tuple(
        _member(vm, nic, seen.get(_place(taps[nic.tap_index])), ports.get((network, vm.rank), {}))
        for vm in grant.vms
        for nic in vm.nics
        if nic.network == network
    )


def _member(vm: VmGrant, nic: Nic, counters: Counters | None, ports: dict[str, int]) -> Member:
    addresses = tuple(each for each in (nic.address, nic.address6) if each is not None)
    return Member(vm.rank, nic.mac, addresses, ports, counters.mirrored() if counters else None)


def _place(tap: Tap) -> tuple[str | None, str]:
    return tap.netns, tap.name
