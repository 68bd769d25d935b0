# SPDX-License-Identifier: Apache-2.0
"""dnsmasq(8)'s configuration: leases for this node's VMs, names for all of the cluster's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pvc.model.network import EthernetNetwork
from pvc.plan import addresses, members, names
from pvc.plan.actions import Zone

USER = "nobody"
# Guests ask when they come up; this is for those that missed the answer.
_RA_INTERVAL_S, _ROUTER_LIFETIME_S = 60, 1800


@dataclass(frozen=True)
class Served:
    """One L3 network on this node: its number, its bridge, local VMs as (rank, MAC), and every member's rank."""

    index: int
    network: EthernetNetwork
    bridge: str
    local: tuple[tuple[int, str], ...]
    members: Sequence[range]
    vni: int


def render_config(hosts_path: str, served: Sequence[Served], upstream: Sequence[str]) -> str:
    """dnsmasq.conf. Every lease is fixed and infinite, so no lease file has to survive anything."""
    lines = [
        f"user={USER}",
        "no-resolv",
        "no-hosts",
        "no-ping",
        # Guests ask as often as they like; what is still told of a question is bounded by plan.nftables.
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
        "bind-interfaces",
        "except-interface=lo",
        "leasefile-ro",
        "dhcp-authoritative",
        "dhcp-ignore=tag:!known",
        "domain-needed",
        "bogus-priv",
        f"addn-hosts={hosts_path}",
    ]
    if any(item.network.int_network6 is not None for item in served):
        lines.append("enable-ra")
    for index, item in enumerate(served):
        lines += _network_lines(f"net{index}", item)
    lines += [f"server={address}" for address in upstream]
    return "\n".join(lines) + "\n"


def _network_lines(tag: str, item: Served) -> list[str]:
    network = item.network
    gateway = addresses.gateway_address(network)
    search = (network.domain_name, *network.dns_search)
    lines = [
        f"interface={item.bridge}",
        f"domain={network.domain_name},{network.int_network}",
        f"local=/{network.domain_name}/",
        f"dhcp-range=set:{tag},{network.int_network.network_address},static,{network.int_network.netmask},infinite",
        f"dhcp-option=tag:{tag},option:router,{gateway}",
        f"dhcp-option=tag:{tag},option:dns-server,{gateway}",
        f"dhcp-option=tag:{tag},option:mtu,{addresses.guest_mtu(network)}",
        f"dhcp-option=tag:{tag},option:domain-search,{','.join(search)}",
    ]
    if network.ntp_server:
        lines.append(f"dhcp-option=tag:{tag},option:ntp-server,{network.ntp_server}")
    if network.int_network6 is not None:
        lines += _network6_lines(tag, item)
    for rank, mac in item.local:
        address6 = addresses.vm_address6(network, rank, item.vni)
        own = f"{addresses.vm_address(network, rank)}," + (f"[{address6}]," if address6 is not None else "")
        lines.append(f"dhcp-host={mac},{own}{names.vm(rank)},infinite")
    return lines


def _network6_lines(tag: str, item: Served) -> list[str]:
    """Router advertisements say that addresses come from DHCPv6, where each VM has its own."""
    network = item.network
    prefix, gateway = network.int_network6, addresses.gateway_address6(network, item.vni)
    assert prefix is not None
    search = (network.domain_name, *network.dns_search)
    return [
        f"domain={network.domain_name},{prefix}",
        f"dhcp-range=set:{tag},{prefix.network_address},static,{prefix.prefixlen},infinite",
        f"ra-param={item.bridge},mtu:{addresses.guest_mtu(network)},high,{_RA_INTERVAL_S},{_ROUTER_LIFETIME_S}",
        f"dhcp-option=tag:{tag},option6:dns-server,[{gateway}]",
        f"dhcp-option=tag:{tag},option6:domain-search,{','.join(search)}",
    ]


def plan_zones(served: Sequence[Served]) -> tuple[Zone, ...]:
    """The names of all VMs of the cluster."""
    found = []
    for each in served:
        first = members.numbering(each.network, each.index, each.vni)
        found.append(Zone(each.network.domain_name, first, members.to_ranks(each.members)))
    return tuple(found)


def render_hosts(zones: Sequence[Zone]) -> str:
    """hosts(5) of the whole cluster; a VM on several networks has its short name on the first."""
    lines: list[str] = []
    named: set[int] = set()
    for zone in zones:
        for rank, _, address, address6 in members.expand(zone.numbering, zone.ranks):
            name = names.vm(rank)
            called = f"{name}.{zone.domain}" if rank in named else f"{name}.{zone.domain} {name}"
            lines += [f"{each} {called}" for each in (address, address6) if each is not None]
        named.update(rank for first, end in zone.ranks for rank in range(first, end))
    return "\n".join(lines) + "\n"
