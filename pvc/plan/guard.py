# SPDX-License-Identifier: Apache-2.0
"""What of an L3 network's groups stays on a node: a table of nftables' bridge family in the cluster's namespace.

Each node answers its own VMs. What a VM may send at all is decided at its tap (bpf/port.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TABLE = "pvc"
# Before anything else that hooks into a bridge: what is refused here costs nothing more (nft(8), bridge priorities).
_PRIORITY = -300
_GROUP = "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00"


@dataclass(frozen=True)
class Tunnel:
    """The way to the other nodes of an L3 network, each of which has a gateway with this MAC."""

    device: str
    gateway_mac: str


def guard_table(tunnels: Sequence[Tunnel]) -> str:
    """The table, or "" without tunnels."""
    if not tunnels:
        return ""
    leaving = [f'oifname "{tunnel.device}" {_GROUP} jump leaving' for tunnel in tunnels]
    # No gateway hears what VMs of other nodes say to all: they have one of their own.
    entering = [f'iifname "{tunnel.device}" {_GROUP} drop' for tunnel in tunnels]
    lines = [
        f"table bridge {TABLE} {{",
        *_chain("leaving", _leaving_rules(tunnels)),
        *_chain("postrouting", [_head("postrouting"), *leaving]),
        *_chain("input", [_head("input"), *entering]),
        "}",
        "",
    ]
    return "\n".join(lines)


def _head(hook: str) -> str:
    return f"type filter hook {hook} priority {_PRIORITY};"


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


def _chain(name: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]
