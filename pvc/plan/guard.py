"""What a VM may send, decided at its tap: a table of nftables' bridge family inside the cluster's namespace.

On an L3 network every frame of a VM has the VM's own addresses, and no VM plays router or DHCP server. On an L2
network addresses are the users' own affair (VMs inside VMs, a DHCP server of theirs), so only the rate is limited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from pvc.model.network import EthernetNetwork
from pvc.plan import addresses, names

TABLE = "pvc"
# Before anything else that hooks into a bridge: what is refused here costs nothing more (nft(8), bridge priorities).
_PRIORITY = -300
_GROUP = "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00"
_BEFORE_ADDRESS = "nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report"
_MIN_BURST_KIB = 256  # four of the largest frames that a guest hands over in one piece


@dataclass(frozen=True)
class Port:
    """A tap, and what its VM may call itself; addresses are None on an L2 network."""

    tap: str
    network: EthernetNetwork
    mac: str
    gateway_mac: str
    address: str | None
    address6: str | None


@dataclass(frozen=True)
class Tunnel:
    """The way to the other nodes of an L3 network, each of which has a gateway with this MAC."""

    device: str
    gateway_mac: str


def guard_table(ports: Sequence[Port], tunnels: Sequence[Tunnel]) -> str:
    """The table, or "" when there is nothing to forbid or to limit."""
    checked = [port for port in ports if port.address is not None]
    limited = [port for port in ports if port.network.bandwidth_mbit is not None]
    if not checked and not limited and not tunnels:
        return ""
    lines = [f"table bridge {TABLE} {{"]
    rules: list[str] = []
    if limited:
        rules += _limits(limited)
    if checked:
        lines += _sets(checked)
        lines += _chain("arps", _arp_rules())
        lines += _chain("ipv4", _ipv4_rules())
        with6 = any(port.address6 is not None for port in checked)
        if with6:
            lines += _chain("ipv6", _ipv6_rules(checked))
        lines += _chain("frames", _frame_rules(with6))
        rules += _fast_rules(with6)
        rules += ["iifname @guarded jump frames"]
    if rules:
        lines += _chain("prerouting", [_head("prerouting"), *rules])
    if tunnels:
        lines += _chain("leaving", _leaving_rules(tunnels))
        lines += _chain(
            "postrouting",
            [_head("postrouting"), *(f'oifname "{tunnel.device}" {_GROUP} jump leaving' for tunnel in tunnels)],
        )
        # No gateway hears what VMs of other nodes say to all: they have one of their own.
        lines += _chain("input", [_head("input"), *(f'iifname "{tunnel.device}" {_GROUP} drop' for tunnel in tunnels)])
    return "\n".join([*lines, "}", ""])


def _head(hook: str) -> str:
    return f"type filter hook {hook} priority {_PRIORITY};"


def burst_bytes(mbit: int) -> int:
    """What may pass at once at a rate: 20 ms of it, and some of the largest frames."""
    return max(_MIN_BURST_KIB << 10, mbit * 125_000 // 50)


def _limits(ports: Sequence[Port]) -> list[str]:
    rules = []
    for port in ports:
        mbit = port.network.bandwidth_mbit
        assert mbit is not None
        rate, burst = mbit * 125_000 // 1024, burst_bytes(mbit) >> 10
        rules.append(f'iifname "{port.tap}" limit rate over {rate} kbytes/second burst {burst} kbytes drop')
    return rules


def _sets(ports: Sequence[Port]) -> list[str]:
    own6 = [(port.tap, port.address6) for port in ports if port.address6 is not None]
    six = [
        *_set(
            "own6",
            "type ifname . ether_addr . ipv6_addr",
            [f'"{port.tap}" . {port.mac} . {port.address6}' for port in ports if port.address6 is not None],
        ),
        *_set("addresses6", "type ifname . ipv6_addr", [f'"{tap}" . {address}' for tap, address in own6]),
        *_set("targets6", "typeof iifname . @th,64,128", [f'"{tap}" . {_hex6(address)}' for tap, address in own6]),
    ]
    return [
        *_set("guarded", "type ifname", [f'"{port.tap}"' for port in ports]),
        *_set(
            "own",
            "type ifname . ether_addr . ipv4_addr",
            [f'"{port.tap}" . {port.mac} . {port.address}' for port in ports],
        ),
        *_set("macs", "type ifname . ether_addr", [f'"{port.tap}" . {port.mac}' for port in ports]),
        *_set("addresses", "type ifname . ipv4_addr", [f'"{port.tap}" . {port.address}' for port in ports]),
        *(six if own6 else []),
    ]


def _fast_rules(with6: bool) -> list[str]:
    """Most of all traffic with one look: what other nodes let out of their VMs, and TCP between right addresses."""
    return [
        f'iifname "{names.vxlan(0)[:-1]}*" accept',
        "meta l4proto tcp iifname . ether saddr . ip saddr @own accept",
        *(["meta l4proto tcp iifname . ether saddr . ip6 saddr @own6 accept"] if with6 else []),
    ]


def _frame_rules(with6: bool) -> list[str]:
    return [
        "iifname . ether saddr != @macs drop",
        "ether type arp goto arps",
        "ether type ip goto ipv4",
        *(["ether type ip6 goto ipv6"] if with6 else []),
        "drop",
    ]


def _arp_rules() -> list[str]:
    return [
        "iifname . arp saddr ether != @macs drop",
        # RFC 5227: a probe asks with no address of its own.
        "arp operation request arp saddr ip 0.0.0.0 accept",
        "iifname . arp saddr ip != @addresses drop",
    ]


def _ipv4_rules() -> list[str]:
    return [
        "udp sport 67 drop",
        "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
        "iifname . ip saddr != @addresses drop",
    ]


def _ipv6_rules(ports: Sequence[Port]) -> list[str]:
    gateways = sorted({addresses.link_local(port.gateway_mac) for port in ports})
    targets = ", ".join(_hex6(each) for each in gateways)
    claims = ("icmpv6 type nd-neighbor-advert", "ip6 saddr :: icmpv6 type nd-neighbor-solicit")
    return [
        # Routers, their redirects, and DHCPv6 servers: none of these is a VM.
        "icmpv6 type { nd-router-advert, nd-redirect } drop",
        "udp sport 547 drop",
        f"ip6 saddr {{ {', '.join(gateways)} }} drop",
        # A link-local address is the guest's own choice (RFC 7217), but that of the gateway is taken.
        *(f"{claim} @th,64,128 {{ {targets} }} drop" for claim in claims),
        *(f"{claim} @th,64,10 != 0x3fa iifname . @th,64,128 != @targets6 drop" for claim in claims),
        # RFC 4862: whoever looks whether an address is free has none.
        f"ip6 saddr :: icmpv6 type {{ {_BEFORE_ADDRESS} }} accept",
        "ip6 saddr fe80::/10 accept",
        "iifname . ip6 saddr != @addresses6 drop",
    ]


def _leaving_rules(tunnels: Sequence[Tunnel]) -> list[str]:
    """What is for a group and stays here, for each node answers its own VMs."""
    gateways = ", ".join(sorted({tunnel.gateway_mac for tunnel in tunnels}))
    return [
        f"ether saddr {{ {gateways} }} drop",
        "ether type arp drop",
        "udp dport { 67, 547 } drop",
        "icmpv6 type nd-router-solicit drop",
        # Solicitations for any but link-local addresses have been answered.
        "icmpv6 type nd-neighbor-solicit @th,64,10 != 0x3fa drop",
    ]


def _hex6(address: str) -> str:
    return f"0x{int(IPv6Address(address)):032x}"


def _chain(name: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]


def _set(name: str, kind: str, elements: Sequence[str]) -> list[str]:
    content = [f"    elements = {{ {', '.join(elements)} }}"] if elements else []
    return [f"  set {name} {{", f"    {kind}", *content, "  }"]
