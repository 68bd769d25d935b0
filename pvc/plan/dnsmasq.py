"""dnsmasq(8)'s configuration: leases for this node's VMs, names for all of the cluster's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pvc.model.network import EthernetNetwork
from pvc.plan import addresses, names


@dataclass(frozen=True)
class Served:
    """One L3 network on this node: its bridge, local VMs as (rank, MAC), and every member's rank."""

    network: EthernetNetwork
    bridge: str
    local: tuple[tuple[int, str], ...]
    members: Sequence[range]


def render_config(hosts_path: str, served: Sequence[Served], upstream: Sequence[str]) -> str:
    """dnsmasq.conf. Every lease is fixed and infinite, so no lease file has to survive anything."""
    lines = [
        "user=nobody",
        "no-resolv",
        "no-hosts",
        "no-ping",
        "bind-interfaces",
        "except-interface=lo",
        "leasefile-ro",
        "dhcp-authoritative",
        "dhcp-ignore=tag:!known",
        "domain-needed",
        "bogus-priv",
        f"addn-hosts={hosts_path}",
    ]
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
    for rank, mac in item.local:
        lines.append(f"dhcp-host={mac},{addresses.vm_address(network, rank)},{names.vm(rank)},infinite")
    return lines


def render_hosts(served: Sequence[Served]) -> str:
    """hosts(5) of the whole cluster; a VM on several networks has its short name on the first."""
    lines: list[str] = []
    named: set[int] = set()
    for item in served:
        domain = item.network.domain_name
        first = int(item.network.int_network.network_address) + 1
        for rank in (rank for ranks in item.members for rank in ranks):
            short = "" if rank in named else f" {names.vm(rank)}"
            lines.append(f"{_dotted(first + rank)} {names.vm(rank)}.{domain}{short}")
            named.add(rank)
    return "\n".join(lines) + "\n"


def _dotted(number: int) -> str:
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
