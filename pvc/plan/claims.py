# SPDX-License-Identifier: Apache-2.0
"""Ranges of networks.yaml against what a node needs itself: addresses that are elsewhere must not be taken here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from pvc.errors import Problem
from pvc.model.host import Claim, NodeFacts
from pvc.model.network import EthernetNetwork, Layer

_Range = IPv4Network | IPv6Network
HINT = "choose a range that no machine of the site has, the same on all nodes"


def find_conflicts(networks: Iterable[EthernetNetwork], claims: Sequence[Claim]) -> tuple[Problem, ...]:
    """What of the networks' ranges is already somewhere else for this node.

    A wider route that a range lies in is none: it leads to what is not nearer by.
    """
    return tuple(
        Problem("networks.yaml", 0, f"{network.name}.settings.{key}", f"{mine} is not free on this node: {what}")
        for network in networks
        if network.layer is Layer.L3
        for key, mine in _ranges(network)
        for what in _meet(mine, claims)[:1]
    )


def claims_of(facts: NodeFacts, held: Iterable[Claim]) -> list[Claim]:
    """What the node has (``held``), and whom it talks to: nodes of the job and name servers."""
    found = [Claim(f"{address}/32", f"the address of node {node}") for node, address in facts.peers.items()]
    for tunnel in facts.tunnels.values():
        found += [Claim(f"{address}/32", f"the address of node {node}") for node, address in tunnel.peers.items()]
    found += [Claim(f"{address}/32", "a name server of this node") for address in facts.dns_servers]
    return [*held, *found]


def _ranges(network: EthernetNetwork) -> Iterator[tuple[str, _Range]]:
    yield "ext-network", network.ext_network
    yield "int-network", network.int_network
    if network.int_network6 is not None:
        yield "int-network6", network.int_network6


def _meet(mine: _Range, claims: Iterable[Claim]) -> list[str]:
    found = []
    for claim in claims:
        theirs = ip_network(claim.network, strict=False)
        if theirs.version == mine.version and theirs.overlaps(mine) and (claim.direct or theirs.subnet_of(mine)):  # type: ignore[arg-type]
            found.append(f"{theirs} is {claim.what}")
    return found
