# SPDX-License-Identifier: Apache-2.0
"""nftables rules of a cluster on a node: tables in its namespace, and one or two in the node's (nft(8)).

Inside the namespace is the gateway: what its VMs may reach is decided there, where the bridge that they come from is
still known. In the node's namespace are the forwarded ports, NAT, and what keeps everybody else out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from pvc.model.network import UPLINKS6, Access, EthernetNetwork, Outbound, Outbound6, Protocol
from pvc.plan.forwards import Forward
from pvc.plan.names import UPLINK_GROUP

UPLINK = "up0"
TABLE = "pvc"
MOST_CONNECTIONS = 65536
# Servers take a port below 1024 for a sign of trust (exports(5), "secure"); a VM's root is nobody's root.
_UNPRIVILEGED = "1024-65535"
_ND = "{ nd-neighbor-solicit, nd-neighbor-advert }"
# Of a VM: who boots asks some four times. Each further one would be a line of the node's log.
_ASKING = "update @asking { ether saddr limit rate over 1/second burst 20 packets } drop"
_MANY_VMS = 4096


@dataclass(frozen=True)
class Gate:
    """An L3 network at its gateway: the bridge where its VMs come in, and the gateway's hardware address there."""

    bridge: str
    network: EthernetNetwork
    mac: str


@dataclass(frozen=True)
class Surroundings:
    """Where VMs do not get to by themselves: the node's own addresses, and networks that it is part of."""

    own: tuple[str, ...]
    closed: tuple[str, ...]

    def of(self, family: str) -> Surroundings:
        """Those of one family ("ip", "ip6"), merged so that none overlap."""
        return Surroundings(_merge(self.own, family), _merge(self.closed, family))


@dataclass(frozen=True)
class Tunnel:
    """A VXLAN of the job: who may send with it."""

    port: int
    vni: int
    peers: tuple[str, ...]


@dataclass(frozen=True)
class Outside:
    """A cluster as the node's namespace sees it. ``device`` leads to it, and its address there is ``inner``.

    ``vxlan_ports`` are those of all networks of the site. ``quiet`` are devices that forward for clusters alone, and
    ``quiet6`` is whether IPv6 is forwarded for them alone. ``most_connections`` is what the cluster may have at once.
    """

    uid: int
    device: str
    inner: str
    inner6: str | None
    allow_host: bool
    forwards: tuple[Forward, ...]
    vxlan_ports: tuple[int, ...]
    quiet: tuple[str, ...] = ()
    quiet6: bool = False
    most_connections: int = MOST_CONNECTIONS


def inner_tables(
    gates: Sequence[Gate],
    forwards: Sequence[Forward],
    surroundings: Surroundings,
    switches: Sequence[str],
    most_connections: int = MOST_CONNECTIONS,
) -> str:
    """The gateway's tables inside the cluster's namespace; ``switches`` are the bridges of its L2 networks.

    ``most_connections``: a namespace has a connection table of its own, as large as the node's and in its memory.
    """
    limit = f'iifname != {{ "lo", "{UPLINK}" }} ct state new ct count over {most_connections} drop'
    text = _inner_table("ip", gates, _leads(forwards, "ip"), surroundings.of("ip"), switches, limit)
    gates6 = [gate for gate in gates if gate.network.int_network6 is not None]
    if gates6:
        text += _inner_table("ip6", gates6, _leads(forwards, "ip6"), surroundings.of("ip6"), switches, limit)
    return text


def _leads(forwards: Sequence[Forward], family: str) -> list[tuple[Forward, str]]:
    """The forwarded ports of a family with the VMs' addresses in it."""
    if family == "ip":
        return [(each, each.vm_address) for each in forwards]
    return [(each, each.vm_address6) for each in forwards if each.vm_address6 is not None]


def deaf_table(table: str, devices: Sequence[str]) -> str:
    """The table of the netdev family that keeps the node's own stack from what comes out of ``devices``."""
    names = ", ".join(f'"{device}"' for device in devices)
    head = f"type filter hook ingress devices = {{ {names} }} priority 0; policy drop;"
    return "\n".join([f"table netdev {table} {{", *_chain("ingress", head, []), "}", ""])


def host_tables(table: str, tunnels: Sequence[Tunnel], outside: Outside | None) -> str:
    """The job's tables in the node's namespace; clusters without L3 networks have no ``outside``."""
    lines = [f"table ip {table} {{"]
    for at, tunnel in enumerate(tunnels):
        if tunnel.peers:
            lines += _set(f"peers{at}", "ipv4_addr", tunnel.peers)
    # A frame in a tunnel comes from a peer of the job, and from its kernel or its root: nobody else's is let in or out.
    entering = [
        f"udp dport {tunnel.port} @th,96,24 {tunnel.vni}{f' ip saddr != @peers{at}' if tunnel.peers else ''} drop"
        for at, tunnel in enumerate(tunnels)
    ]
    leaving = [f"udp dport {port} meta skuid != 0 drop" for port in sorted({tunnel.port for tunnel in tunnels})]
    coming, going = _untracked(tunnels)
    if coming:
        lines += _chain("raw_prerouting", "type filter hook prerouting priority raw;", coming)
    lines += _chain("raw_output", "type filter hook output priority raw;", [*leaving, *going])
    if outside is None:
        lines += _chain("input", "type filter hook input priority filter;", entering)
        return "\n".join([*lines, "}", ""])
    lines += _host_nat("ip", outside, outside.forwards, outside.inner)
    lines += _host_filters("ip", outside, entering)
    lines.append("}")
    if outside.inner6 is not None:
        lines.append(f"table ip6 {table} {{")
        forwards6 = [each for each in outside.forwards if each.vm_address6 is not None]
        lines += _host_nat("ip6", outside, forwards6, outside.inner6)
        lines += _host_filters("ip6", outside, [])
        lines.append("}")
    return "\n".join([*lines, ""])


def _inner_table(
    family: str,
    gates: Sequence[Gate],
    forwards: Sequence[tuple[Forward, str]],
    surroundings: Surroundings,
    switches: Sequence[str],
    limit: str,
) -> str:
    lines = [f"table {family} {TABLE} {{"]
    lines += _limits("asking")
    kind = "ipv4_addr" if family == "ip" else "ipv6_addr"
    if surroundings.own:
        lines += _set("own", kind, surroundings.own, interval=True)
    if surroundings.closed:
        lines += _set("closed", kind, surroundings.closed, interval=True)
    lines += _chain("input", "type filter hook input priority filter; policy drop;", _inner_input(family, gates, limit))
    forward = ["ct state established,related accept"]
    # Bridged frames come by here where br_netfilter is loaded while the cluster runs (host.ethernet.ensure_netns).
    forward += [f'iifname "{name}" oifname "{name}" accept' for name in switches]
    forward.append(limit)
    for gate in gates:
        forward += _inner_forward(family, gate, surroundings)
    forward += [f'iifname "{UPLINK}" ct status dnat accept']
    lines += _chain("forward", "type filter hook forward priority filter; policy drop;", forward)
    rules = []
    for protocol in Protocol:
        elements = [
            f"{each.host_port} : {address} . {each.vm_port}" for each, address in forwards if each.protocol is protocol
        ]
        if elements:
            lines += _map(f"ports_{protocol.value}", f"inet_service : {kind} . inet_service", ", ".join(elements))
            rules.append(
                f'iifname "{UPLINK}" dnat {family} addr . port to {protocol.value} dport map @ports_{protocol.value}'
            )
    if rules:
        lines += _chain("prerouting", "type nat hook prerouting priority dstnat;", rules)
    masquerade = [f'oifname "{UPLINK}" masquerade']
    if family == "ip6":
        routed = [gate.network.int_network6 for gate in gates if gate.network.outbound6 is Outbound6.ROUTED]
        masquerade = [f"ip6 saddr {prefix} accept" for prefix in routed] + masquerade
    lines += _chain("postrouting", "type nat hook postrouting priority srcnat;", masquerade)
    return "\n".join([*lines, "}", ""])


def _inner_input(family: str, gates: Sequence[Gate], limit: str) -> list[str]:
    names = [gate.bridge for gate in gates]
    # How a VM gets its address comes first: no other VM's connections take its place.
    asked = ["udp dport 67"] if family == "ip" else ["udp dport 547", "icmpv6 type nd-router-solicit"]
    rules = [f'iifname "{name}" {each} {_ASKING}' for name in names for each in asked]
    rules += [f'iifname "{name}" {each} accept' for name in names for each in asked]
    rules += ["ct state established,related accept", 'iifname "lo" accept']
    if family == "ip6":
        rules.append(f"icmpv6 type {_ND} accept")
    rules.append(limit)
    echo = "icmp type echo-request" if family == "ip" else "icmpv6 type echo-request"
    for name in names:
        rules += [f'iifname "{name}" {each} accept' for each in ("udp dport 53", echo, "tcp dport 53")]
    return rules


def _inner_forward(family: str, gate: Gate, surroundings: Surroundings) -> list[str]:
    name, network = gate.bridge, gate.network
    # VMs reach each other without the gateway. By it they would have it ask for neighbours that do not exist, in a
    # table that all namespaces of the node share (gc_thresh3 of arp(7)).
    rules = [
        f'iifname "{name}" oifname "{name}" ether daddr {gate.mac} drop',
        f'iifname "{name}" oifname "{name}" accept',
    ]
    opened = _merge((str(each) for each in network.allow_networks), family)
    if opened:
        rules.append(f'iifname "{name}" oifname "{UPLINK}" {family} daddr {{ {", ".join(opened)} }} accept')
    if network.allow_host and surroundings.own:
        rules.append(f'iifname "{name}" oifname "{UPLINK}" {family} daddr @own accept')
    if network.allow_outbound is Outbound.ALL:
        if surroundings.closed:
            rules.append(f'iifname "{name}" {family} daddr @closed drop')
        rules.append(f'iifname "{name}" oifname "{UPLINK}" accept')
    return rules


def _host_nat(family: str, outside: Outside, forwards: Sequence[Forward], inner: str) -> list[str]:
    anybody: list[str] = []
    owner: list[str] = []
    for protocol in Protocol:
        for access, rules in ((Access.ANY, anybody), (Access.OWNER, owner)):
            ports = [str(each.host_port) for each in forwards if each.protocol is protocol and each.access is access]
            if ports:
                wanted = f"fib daddr type local {protocol.value} dport {{ {', '.join(ports)} }} dnat to {inner}"
                rules.append(wanted if access is Access.ANY else f"meta skuid {outside.uid} {wanted}")
    lines: list[str] = []
    if anybody:
        lines += _chain("prerouting", "type nat hook prerouting priority dstnat;", anybody)
    if anybody or owner:
        lines += _chain("nat_output", "type nat hook output priority -100;", [*anybody, *owner])
    return lines + _host_masquerade(family, inner, outside.device)


def _host_masquerade(family: str, inner: str, device: str) -> list[str]:
    leaving = f'{family} saddr {inner} oifname != "{device}"'
    rules = [f"{leaving} meta l4proto {{ tcp, udp }} masquerade to :{_UNPRIVILEGED}", f"{leaving} masquerade"]
    return _chain("postrouting", "type nat hook postrouting priority srcnat;", rules)


def _untracked(tunnels: Sequence[Tunnel]) -> tuple[list[str], list[str]]:
    """Datagrams from and to peers are no connections: tracking costs time, and VMs' would fill the node's table.

    What may come in is decided later, in the input hook: here a datagram may still be in fragments.
    """
    mine = [
        (f"udp dport {tunnel.port} @th,96,24 {tunnel.vni}", at) for at, tunnel in enumerate(tunnels) if tunnel.peers
    ]
    return (
        [f"{datagram} ip saddr @peers{at} notrack" for datagram, at in mine],
        [f"{datagram} ip daddr @peers{at} notrack" for datagram, at in mine],
    )


def _host_filters(family: str, outside: Outside, entering: Sequence[str]) -> list[str]:
    device = outside.device
    # A VM's datagram would reach a tunnel with the address of its node, which is a peer.
    tunnels = f'iifname "{device}" udp dport {{ {", ".join(map(str, outside.vxlan_ports))} }} drop'
    answers = f'iifname "{device}" ct state established,related accept'
    # Each of a VM's connections is one of the node's, which has places for so many, its own included.
    limit = f'iifname "{device}" ct state new ct count over {outside.most_connections} drop'
    only_forwarded = [
        # What is not the cluster's, as tunnels and all else of the node, is let go with one look.
        f'oifname != "{device}" accept',
        f'oifname "{device}" ct state established,related accept',
        f'oifname "{device}" ct status dnat accept',
        *([f'oifname "{device}" icmpv6 type {_ND} accept'] if family == "ip6" else []),
        f'oifname "{device}" drop',
    ]
    receive = [*entering, f'iifname != "{device}" accept', tunnels, answers]
    if family == "ip6":
        receive.append(f'iifname "{device}" icmpv6 type {_ND} accept')
    receive += [limit, f'iifname "{device}" accept'] if outside.allow_host else [f'iifname "{device}" drop']
    forward = [tunnels, limit, *_closed_ways(family, outside), *only_forwarded]
    return [
        *_chain("forward", "type filter hook forward priority filter;", forward),
        *_chain("input", "type filter hook input priority filter;", receive),
        *_chain("output", "type filter hook output priority filter;", only_forwarded),
    ]


def _closed_ways(family: str, outside: Outside) -> list[str]:
    """What the node began to forward because clusters need it, and is no cluster's: it stays no router."""
    elsewhere = f"oifgroup != {UPLINK_GROUP} drop"
    if family == "ip6":
        return [f"iifgroup != {UPLINK_GROUP} {elsewhere}"] if outside.quiet6 else []
    names = ", ".join(f'"{device}"' for device in outside.quiet)
    return [f"iifname {{ {names} }} {elsewhere}"] if names else []


def surroundings(own: Iterable[str], peers: Iterable[str], external: Iterable[IPv4Network]) -> Surroundings:
    """From the node's addresses with prefix lengths, its peers' addresses, and the networks towards clusters."""
    interfaces = list(own)
    closed = [
        *interfaces,
        *peers,
        *map(str, external),
        # Clouds answer a node there with its identity; no VM has business at a link's own addresses.
        "169.254.0.0/16",
        "fe80::/10",
        str(UPLINKS6),
    ]
    return Surroundings(tuple(each.partition("/")[0] for each in interfaces), tuple(closed))


def _merge(networks: Iterable[str], family: str) -> tuple[str, ...]:
    # One that contains another is an error to nft(8) in a set of intervals.
    if family == "ip":
        return tuple(
            str(each)
            for each in collapse_addresses(IPv4Network(text, strict=False) for text in networks if ":" not in text)
        )
    return tuple(
        str(each) for each in collapse_addresses(IPv6Network(text, strict=False) for text in networks if ":" in text)
    )


def _chain(name: str, head: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", f"    {head}", *(f"    {rule}" for rule in rules), "  }"]


def _set(name: str, kind: str, elements: Sequence[str], *, interval: bool = False) -> list[str]:
    flags = ["    flags interval"] if interval else []
    return [f"  set {name} {{", f"    type {kind}", *flags, f"    elements = {{ {', '.join(elements)} }}", "  }"]


def _limits(name: str) -> list[str]:
    """A set that rules fill with VMs' hardware addresses, for the limits of each."""
    return [
        f"  set {name} {{",
        "    type ether_addr",
        f"    size {_MANY_VMS}",
        "    flags dynamic,timeout",
        "    timeout 1m",
        "  }",
    ]


def _map(name: str, kind: str, elements: str) -> list[str]:
    return [f"  map {name} {{", f"    type {kind}", f"    elements = {{ {elements} }}", "  }"]
