# SPDX-License-Identifier: Apache-2.0
"""What a cluster's VMs are served on their own node: gateway, NAT, forwarded ports, names, and what guards them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pvc.model.cluster import NodeShare, Placement
from pvc.model.host import Grants, JobFacts, NodeFacts
from pvc.model.network import EthernetNetwork, Layer, Outbound, Outbound6
from pvc.plan import actions, addresses, dnsmasq, guard, names, nftables, ownports
from pvc.plan.ethernet import Membership, plan_peers
from pvc.plan.forwards import Forward
from pvc.plan.switch import is_switched

# So many clusters fill a node's table of connections, unless it is very small; the kernel's has 262,144 places where
# nobody said how many (nf_conntrack-sysctl).
_CLUSTERS_FILL, _FEW_CONNECTIONS, _CONNECTIONS = 8, 4096, 262144


@dataclass(frozen=True)
class Setting:
    """What all parts of a node's services follow from. ``networks`` are all of the site's."""

    job: JobFacts
    share: NodeShare
    placement: Placement
    facts: NodeFacts
    grants: Grants
    networks: tuple[EthernetNetwork, ...]
    service_dir: str
    memberships: tuple[Membership, ...]
    forwards: tuple[Forward, ...]
    deaf: tuple[str, ...] = ()  # devices of the shared switch, see plan.switch

    @property
    def layer3(self) -> tuple[Membership, ...]:
        """The networks that have a gateway here."""
        return tuple(each for each in self.memberships if each.network.layer is Layer.L3)

    @property
    def with6(self) -> bool:
        """Whether any has IPv6."""
        return any(each.network.int_network6 is not None for each in self.layer3)

    @property
    def most_connections(self) -> int:
        """What the cluster may have at once."""
        return max(_FEW_CONNECTIONS, (self.facts.most_connections or _CONNECTIONS) // _CLUSTERS_FILL)

    def vni(self, membership: Membership) -> int:
        """The VXLAN identifier that was granted."""
        return self.grants.vnis[membership.network.name]


def plan_services(setting: Setting) -> list[actions.Action]:
    """In order of creation: uplink, rules inside, rules of the node, forwarding, DHCP and DNS."""
    netns = names.netns(setting.job.job_id)
    steps: list[actions.Action] = []
    if setting.layer3:
        steps.append(_plan_uplink(setting, netns))
    inner = _inner_rules(setting)
    if inner:
        tables = [("ip", nftables.TABLE)] if setting.layer3 else []
        tables += [("ip6", nftables.TABLE)] if setting.with6 else []
        tables += [("bridge", guard.TABLE)] if f"table bridge {guard.TABLE} " in inner else []
        steps.append(actions.LoadRules(netns, tuple(tables), inner))
    steps.append(_host_rules(setting))
    if setting.layer3:
        steps += _plan_forwarding(setting)
        reserved = ownports.plan_reserved(setting.networks, setting.facts.ephemeral, setting.facts.reserved)
        if reserved is not None and setting.forwards:
            steps.append(actions.SetSysctl(ownports.SETTING, reserved, setting.job.job_id))
        steps.append(_plan_dnsmasq(setting, netns))
    return steps


def _plan_uplink(setting: Setting, netns: str) -> actions.AddUplink:
    outer = setting.layer3[0].network
    host_address, inner_address = addresses.uplink_pair(outer.ext_network, setting.grants.uplink_slot)
    pair6 = addresses.uplink_pair6(setting.grants.uplink_slot) if setting.with6 else None
    routed = [
        f"{addresses.vm_address6(each.network, rank, setting.vni(each))}/128"
        for each in setting.layer3
        if each.network.int_network6 is not None and each.network.outbound6 is Outbound6.ROUTED
        for rank in each.ranks_of(setting.share)
    ]
    device = names.uplink(outer.dev_prefix, setting.job.job_id)
    return actions.AddUplink(netns, device, host_address, inner_address, 30, pair6, tuple(routed))


def _inner_rules(setting: Setting) -> str:
    text = ""
    if setting.layer3:
        gates = [
            nftables.Gate(names.bridge(each.index), each.network, addresses.gateway_mac(each.network, each.index))
            for each in setting.layer3
        ]
        external = {each.ext_network for each in setting.networks if each.layer is Layer.L3}
        facts = setting.facts
        peers = [*facts.peers.values(), *(each for tunnel in facts.tunnels.values() for each in tunnel.peers.values())]
        around = nftables.surroundings(facts.addresses, peers, external)
        switches = [names.bridge(each.index) for each in setting.memberships if each.network.layer is Layer.L2]
        text = nftables.inner_tables(gates, setting.forwards, around, switches, setting.most_connections)
    tunnels = [
        guard.Tunnel(names.vxlan(each.index), addresses.gateway_mac(each.network, each.index))
        for each in setting.layer3
        if not is_switched(each.network)
    ]
    return text + guard.guard_table(tunnels)


def _host_rules(setting: Setting) -> actions.LoadRules:
    job, facts = setting.job, setting.facts
    table = names.host_table(job.job_id)
    tunnels = [
        nftables.Tunnel(
            each.network.vxlan_port,
            setting.vni(each),
            tuple(peer.node for peer in plan_peers(each, setting.placement, job.node, facts)),
        )
        for each in setting.memberships
    ]
    outside = None
    if setting.layer3:
        outer = setting.layer3[0].network
        slot = setting.grants.uplink_slot
        managed = [each.network for each in setting.layer3 if each.network.manage_forwarding]
        outside = nftables.Outside(
            uid=job.uid,
            device=names.uplink(outer.dev_prefix, job.job_id),
            inner=addresses.uplink_pair(outer.ext_network, slot)[1],
            inner6=addresses.uplink_pair6(slot)[1] if setting.with6 else None,
            allow_host=any(each.network.allow_host for each in setting.layer3),
            forwards=setting.forwards,
            vxlan_ports=tuple(sorted({each.vxlan_port for each in setting.networks})),
            quiet=facts.quiet if managed else (),
            quiet6=facts.quiet6 and any(each.int_network6 is not None for each in managed),
            most_connections=setting.most_connections,
        )
    tables: tuple[tuple[str, str], ...] = (("ip", table), ("ip6", table)) if setting.with6 else (("ip", table),)
    text = nftables.host_tables(table, tunnels, outside)
    if setting.deaf:
        tables = (*tables, ("netdev", table))
        text += nftables.deaf_table(table, setting.deaf)
    return actions.LoadRules(None, tables, text)


def _plan_forwarding(setting: Setting) -> list[actions.Action]:
    managed = [each.network for each in setting.layer3 if each.network.manage_forwarding]
    if not managed:
        return []
    # Where packets for VMs come in: those to forwarded ports, and answers from outside.
    devices = dict.fromkeys((setting.facts.device, *setting.facts.exits))
    steps: list[actions.Action] = [
        actions.SetSysctl(f"net/ipv4/conf/{device}/forwarding", "1", setting.job.job_id) for device in devices
    ]
    if any(network.int_network6 is not None for network in managed):
        steps.append(actions.ForwardIpv6(setting.job.job_id))
    return steps


def _plan_dnsmasq(setting: Setting, netns: str) -> actions.StartDnsmasq:
    served = [
        dnsmasq.Served(
            each.index,
            each.network,
            names.bridge(each.index),
            tuple((rank, addresses.vm_mac(each.network, each.index, rank)) for rank in each.ranks_of(setting.share)),
            each.members,
            setting.vni(each),
        )
        for each in setting.layer3
    ]
    directory = f"{setting.service_dir}/{setting.job.job_id}"
    return actions.StartDnsmasq(
        netns,
        directory,
        dnsmasq.render_config(f"{directory}/hosts", served, _upstream(setting)),
        dnsmasq.plan_zones(served),
    )


def _upstream(setting: Setting) -> Sequence[str]:
    """Name servers outside. VMs that may not go out do not get out in questions either, unless the site says where."""
    named = [server for each in setting.layer3 for server in each.network.dns_servers]
    if named:
        return tuple(dict.fromkeys(named))
    if any(each.network.allow_outbound is Outbound.ALL for each in setting.layer3):
        return setting.facts.dns_servers
    return ()
