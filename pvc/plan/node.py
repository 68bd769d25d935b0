"""plan_node: everything that one node does for a job, as data."""

from __future__ import annotations

from dataclasses import dataclass

from pvc.errors import UsageError
from pvc.model.cluster import NodeShare, Placement
from pvc.model.host import Grants, JobFacts, NodeFacts
from pvc.model.network import EthernetNetwork, Layer, ResourceSet
from pvc.model.node import Nic, NodeGrant, VmGrant
from pvc.model.request import Request
from pvc.plan import actions, addresses, dnsmasq, names, nftables
from pvc.plan.ethernet import Membership, check, plan_links, plan_nic, plan_peers


@dataclass(frozen=True)
class Site:
    """The administrator's part of the input; directories are absolute paths."""

    networks: dict[str, EthernetNetwork]
    resource_sets: dict[str, ResourceSet]
    run_dir: str
    service_dir: str


@dataclass(frozen=True)
class NodePlan:
    """``taps`` are the names behind the grant's tap indexes, in the namespace ``netns``."""

    grant: NodeGrant
    netns: str
    taps: tuple[str, ...]
    actions: tuple[actions.Action, ...]


def plan_memberships(request: Request, site: Site) -> tuple[Membership, ...]:
    """The networks of the cluster, in order of first use, with the ranks on each.

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
    return tuple(
        Membership(index, site.networks[name], tuple(members)) for index, (name, members) in enumerate(order.items())
    )


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
    taps: list[str] = []
    nics: dict[int, list[Nic]] = {rank: [] for rank in range(share.first_rank, share.first_rank + share.count)}
    if share.count and memberships:
        steps.append(actions.AddNetns(netns))
        for membership in memberships:
            check(membership, facts)
            local = membership.ranks_of(share)
            steps += plan_links(netns, membership, local, facts, grants.vnis[membership.network.name])
            steps.append(plan_peers(netns, membership, placement, job.node, facts))
            for rank in local:
                nics[rank].append(plan_nic(membership, rank, len(taps)))
                taps.append(names.tap(rank, membership.index))
        steps += _services(job, share, site, facts, grants, memberships)
    ports = _ports(memberships, share, grants)
    vms = tuple(VmGrant(rank, tuple(nics[rank]), ports.get(rank, {})) for rank in nics)
    grant = NodeGrant(job.job_id, job.node, facts.address, run_dir, vms)
    return NodePlan(grant, netns, tuple(taps), tuple(steps))


def count_ports(request: Request, site: Site, share: NodeShare) -> tuple[int, tuple[int, int]]:
    """(host ports this node's VMs need, the range they come from); (0, (0, -1)) without reverse NAT."""
    memberships = plan_memberships(request, site)
    nat = _forwarded(memberships)
    if nat is None or nat.network.reverse_nat is None:
        return 0, (0, -1)
    reverse = nat.network.reverse_nat
    return len(nat.ranks_of(share)), (reverse.min_host_port, reverse.max_host_port)


def uplink_network(request: Request, site: Site) -> EthernetNetwork | None:
    """The network whose external range the cluster's uplink comes from: its first L3 one."""
    for membership in plan_memberships(request, site):
        if membership.network.layer is Layer.L3:
            return membership.network
    return None


def _forwarded(memberships: tuple[Membership, ...]) -> Membership | None:
    for membership in memberships:
        if membership.network.layer is Layer.L3 and membership.network.reverse_nat is not None:
            return membership
    return None


def _ports(memberships: tuple[Membership, ...], share: NodeShare, grants: Grants) -> dict[int, dict[str, int]]:
    nat = _forwarded(memberships)
    if nat is None or nat.network.reverse_nat is None:
        return {}
    port = str(nat.network.reverse_nat.vm_port)
    return {rank: {port: host} for rank, host in zip(nat.ranks_of(share), grants.ports, strict=True)}


def _services(
    job: JobFacts,
    share: NodeShare,
    site: Site,
    facts: NodeFacts,
    grants: Grants,
    memberships: tuple[Membership, ...],
) -> list[actions.Action]:
    layer3 = [membership for membership in memberships if membership.network.layer is Layer.L3]
    if not layer3:
        return []
    netns = names.netns(job.job_id)
    outer = layer3[0].network
    host_address, inner_address = addresses.uplink_pair(outer.ext_network, grants.uplink_slot)
    device = names.uplink(outer.dev_prefix, job.job_id)
    forwards: list[tuple[int, str, int]] = []
    nat = _forwarded(memberships)
    if nat is not None and nat.network.reverse_nat is not None:
        vm_port = nat.network.reverse_nat.vm_port
        for rank, port in zip(nat.ranks_of(share), grants.ports, strict=True):
            forwards.append((port, addresses.vm_address(nat.network, rank), vm_port))
    served = [
        dnsmasq.Served(
            membership.network,
            names.bridge(membership.index),
            tuple(
                (rank, addresses.vm_mac(membership.network, membership.index, rank))
                for rank in membership.ranks_of(share)
            ),
            membership.members,
        )
        for membership in layer3
    ]
    bridges = [(item.bridge, item.network) for item in served]
    table = names.host_table(job.job_id)
    directory = f"{site.service_dir}/{job.job_id}"
    upstream = outer.dns_servers or facts.dns_servers
    inner_rules = nftables.inner_table("pvc", bridges, forwards)
    host_rules = nftables.host_table(table, device, inner_address, outer.ext_network, grants.ports)
    return [
        actions.AddUplink(netns, device, host_address, inner_address, 30),
        actions.LoadRules(netns, "ip", "pvc", inner_rules),
        actions.LoadRules(None, "ip", table, host_rules),
        actions.SetSysctl(f"net/ipv4/conf/{facts.device}/forwarding", "1", job.job_id),
        actions.StartDnsmasq(
            netns,
            directory,
            dnsmasq.render_config(f"{directory}/hosts", served, upstream),
            dnsmasq.render_hosts(served),
        ),
    ]
