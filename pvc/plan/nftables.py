"""nftables rules of a cluster on a node: one table in its namespace, one in the node's (nft(8))."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

from pvc.model.network import EthernetNetwork, Outbound

UPLINK = "up0"


def inner_table(
    table: str, bridges: Sequence[tuple[str, EthernetNetwork]], forwards: Sequence[tuple[int, str, int]]
) -> str:
    """The table inside the cluster's namespace: gateway, NAT, and what the VMs may ask of the gateway.

    ``bridges`` are (bridge, network) of L3 networks; ``forwards`` (host port, VM address, VM port).
    """
    out = [name for name, network in bridges if network.allow_outbound is Outbound.ALL]
    lines = [f"table ip {table} {{"]
    lines += _chain("input", "type filter hook input priority filter; policy drop;", _input_rules(bridges))
    forward = ["ct state established,related accept"]
    forward += [f'iifname "{name}" oifname "{name}" accept' for name, _ in bridges]
    forward += [f'iifname "{name}" oifname "{UPLINK}" accept' for name in out]
    forward += [f'iifname "{UPLINK}" ct status dnat accept']
    lines += _chain("forward", "type filter hook forward priority filter; policy drop;", forward)
    if forwards:
        elements = ", ".join(f"{host} : {address} . {port}" for host, address, port in forwards)
        lines += _map("ports", "inet_service : ipv4_addr . inet_service", elements)
        rule = f'iifname "{UPLINK}" dnat ip addr . port to tcp dport map @ports'
        lines += _chain("prerouting", "type nat hook prerouting priority dstnat;", [rule])
    lines += _chain("postrouting", "type nat hook postrouting priority srcnat;", [f'oifname "{UPLINK}" masquerade'])
    return "\n".join([*lines, "}", ""])


def host_table(table: str, device: str, inner: str, external: IPv4Network, ports: Sequence[int]) -> str:
    """The table in the node's namespace: NAT of one cluster, its forwarded ports, and no way to its neighbours.

    ``device`` leads to the cluster, whose address there is ``inner``. Clusters of other jobs and the node's own
    services are out of reach from it; answers to connections that others opened pass.
    """
    lines = [f"table ip {table} {{"]
    if ports:
        wanted = ", ".join(str(port) for port in ports)
        rule = f"fib daddr type local tcp dport {{ {wanted} }} dnat to {inner}"
        lines += _chain("prerouting", "type nat hook prerouting priority dstnat;", [rule])
        lines += _chain("output", "type nat hook output priority -100;", [rule])
    lines += _chain(
        "postrouting",
        "type nat hook postrouting priority srcnat;",
        [f'ip saddr {inner} oifname != "{device}" masquerade'],
    )
    refused = f'iifname "{device}" ct state new'
    lines += _chain("forward", "type filter hook forward priority filter;", [f"{refused} ip daddr {external} drop"])
    lines += _chain("input", "type filter hook input priority filter;", [f"{refused} drop"])
    return "\n".join([*lines, "}", ""])


def _input_rules(bridges: Sequence[tuple[str, EthernetNetwork]]) -> list[str]:
    rules = ["ct state established,related accept", 'iifname "lo" accept']
    for name, _ in bridges:
        rules.append(f'iifname "{name}" udp dport {{ 53, 67 }} accept')
        rules.append(f'iifname "{name}" tcp dport 53 accept')
        rules.append(f'iifname "{name}" icmp type echo-request accept')
    return rules


def _chain(name: str, head: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", f"    {head}", *(f"    {rule}" for rule in rules), "  }"]


def _map(name: str, kind: str, elements: str) -> list[str]:
    return [f"  map {name} {{", f"    type {kind}", f"    elements = {{ {elements} }}", "  }"]
