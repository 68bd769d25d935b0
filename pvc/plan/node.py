# SPDX-License-Identifier: Apache-2.0
"""plan_node: everything that one node does for a job, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from pvc.errors import UsageError
from pvc.model.cluster import NodeShare, Placement
from pvc.model.host import Grants, JobFacts, NodeFacts
from pvc.model.network import Access, BridgedNetwork, EthernetNetwork, Layer, PciNetwork, ResourceSet
from pvc.model.node import ImageCache, Nic, NodeGrant, Tap, VmGrant
from pvc.model.request import Request
from pvc.plan import actions, names
from pvc.plan.bridged import Attachment, plan_bridged
from pvc.plan.ethernet import Membership, check, check_together, plan_links, plan_nic, plan_peers
from pvc.plan.forwards import Forward, plan_forwards, plan_ports
from pvc.plan.pci import Passthrough, plan_devices
from pvc.plan.services import Setting, plan_services
from pvc.plan.switch import is_switched, plan_switch


@dataclass(frozen=True)
class Site:
    """The administrator's part of the input; directories are absolute paths."""

    networks: dict[str, EthernetNetwork]
    resource_sets: dict[str, ResourceSet]
    run_dir: str
    service_dir: str
    bridged: dict[str, BridgedNetwork] = field(default_factory=dict)
    devices: dict[str, PciNetwork] = field(default_factory=dict)
    image_cache: ImageCache | None = None  # the parent of users' directories


@dataclass(frozen=True)
class NodePlan:
    """``taps`` are those behind the grant's tap indexes; ``netns`` is the cluster's namespace."""

    grant: NodeGrant
    netns: str
    taps: tuple[Tap, ...]
    actions: tuple[actions.Action, ...]


def plan_ranks(request: Request, site: Site) -> dict[str, tuple[range, ...]]:
    """The ranks on each network of the cluster, in order of first use.

    :raise UsageError: the request names a resource set that is not there.
    """
    order: dict[str, list[range]] = {}
    first = 0
    for item in request.sets:
        found = site.resource_sets.get(item.resource_set)
        if found is None:
            known = ", ".join(sorted(site.resource_sets)) or "none"
            raise UsageError(f"there is no resource set {item.resource_set!r}", hint=f"resource sets: {known}")
        for name in found.networks:
            order.setdefault(name, []).append(range(first, first + item.count))
        first += item.count
    return {name: tuple(members) for name, members in order.items()}


def plan_memberships(request: Request, site: Site) -> tuple[Membership, ...]:
    """The Ethernet networks of the cluster, in order of first use, with the ranks on each.

    :raise UsageError: the request names a resource set that is not there, or networks that exclude each other.
    """
    ranks = {name: members for name, members in plan_ranks(request, site).items() if name in site.networks}
    found = tuple(Membership(at, site.networks[name], members) for at, (name, members) in enumerate(ranks.items()))
    check_together(found)
    return found


def plan_attachments(request: Request, site: Site) -> tuple[Attachment, ...]:
    """The same for networks of the site's own.

    :raise UsageError: the request names a resource set that is not there.
    """
    ranks = {name: members for name, members in plan_ranks(request, site).items() if name in site.bridged}
    return tuple(Attachment(index, site.bridged[name], members) for index, (name, members) in enumerate(ranks.items()))


def plan_passthroughs(request: Request, site: Site) -> tuple[Passthrough, ...]:
    """The same for PCI devices of the nodes.

    :raise UsageError: the request names a resource set that is not there.
    """
    ranks = {name: members for name, members in plan_ranks(request, site).items() if name in site.devices}
    return tuple(Passthrough(site.devices[name], members) for name, members in ranks.items())


def find_share(placement: Placement, node: str) -> NodeShare:
    """The ranks that a node runs.

    :raise UsageError: the node is not one of the job's.
    """
    for share in placement.shares:
        if share.node == node:
            return share
    raise UsageError(f"node {node} is not one of the job's")


def plan_node(
    job: JobFacts, request: Request, placement: Placement, site: Site, facts: NodeFacts, grants: Grants
) -> NodePlan:
    """The node's share of a cluster: actions in order of creation, and what its supervisor is told.

    :raise UsageError, ConfigError: the request or the site's networks do not fit this job.
    """
    share = find_share(placement, job.node)
    netns = names.netns(job.job_id)
    run_dir = f"{site.run_dir}/{job.job_id}"
    memberships = plan_memberships(request, site)
    steps: list[actions.Action] = [actions.MakeRunDir(run_dir, job.uid, job.gid)]
    cache = site.image_cache if share.count else None
    if cache is not None:
        cache = ImageCache(f"{cache.directory}/{job.uid}", cache.size)
        steps.append(actions.MakeCacheDir(cache.directory, job.uid, job.gid))
    taps: list[Tap] = []
    nics: dict[int, list[Nic]] = {rank: [] for rank in range(share.first_rank, share.first_rank + share.count)}
    forwards = plan_forwards(memberships, share, grants.ports, grants.vnis)
    if share.count and memberships:
        steps.append(actions.AddNetns(netns))
        for membership in memberships:
            check(membership, facts)
        local_switched = [(each, each.ranks_of(share)) for each in memberships if is_switched(each.network)]
        switched = plan_switch(job, local_switched, placement, facts, grants)
        for membership in memberships:
            local = membership.ranks_of(share)
            vni = grants.vnis[membership.network.name]
            own = switched.taps.get(membership.network.name)
            for at, rank in enumerate(local):
                nics[rank].append(plan_nic(membership, rank, len(taps), vni))
                taps.append(own[at] if own is not None else Tap(names.tap(rank, membership.index), netns))
            if own is None:
                peers = plan_peers(membership, placement, job.node, facts)
                steps += plan_links(netns, membership, local, peers, facts, vni)
        steps += switched.actions
        networks = tuple(site.networks.values())
        steps += plan_services(
            Setting(
                job, share, placement, facts, grants, networks, site.service_dir, memberships, forwards, switched.deaf
            )
        )
    attached = plan_bridged(job.job_id, plan_attachments(request, site), share, facts, len(taps))
    if attached.actions and not memberships:
        steps.append(actions.AddNetns(netns))
    steps += attached.actions
    taps += attached.taps
    for rank, nic in attached.nics:
        nics[rank].append(nic)
    _sort_nics(nics, request, site)
    binding, devices = plan_devices(job, plan_passthroughs(request, site), share, facts, grants.devices)
    steps += binding
    ports = plan_ports(forwards)
    vms = tuple(_grant(rank, tuple(nics[rank]), ports.get(rank, {}), devices.get(rank, ())) for rank in nics)
    grant = NodeGrant(job.job_id, job.node, facts.address, run_dir, vms, cache)
    return NodePlan(grant, netns, tuple(taps), tuple(steps))


def _sort_nics(nics: dict[int, list[Nic]], request: Request, site: Site) -> None:
    """Interfaces are in the order of the resource set, whatever kinds of networks these are."""
    first = 0
    for item in request.sets:
        order = site.resource_sets[item.resource_set].networks
        for rank in range(first, first + item.count):
            if rank in nics:
                nics[rank].sort(key=lambda nic: order.index(nic.network))
        first += item.count


def uplink_network(request: Request, site: Site) -> EthernetNetwork | None:
    """The network whose external range the cluster's uplink comes from: its first L3 one."""
    for membership in plan_memberships(request, site):
        if membership.network.layer is Layer.L3:
            return membership.network
    return None


def _grant(rank: int, nics: tuple[Nic, ...], ports: dict[str, Forward], devices: tuple[str, ...]) -> VmGrant:
    owner = tuple(key for key, forward in ports.items() if forward.access is Access.OWNER)
    return VmGrant(rank, nics, {key: forward.host_port for key, forward in ports.items()}, devices, owner)
