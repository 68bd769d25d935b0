# SPDX-License-Identifier: Apache-2.0
"""The kernel data path: bridge, taps, VXLAN end, peers, and the programs that know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from pvc.errors import ConfigError, Problem, UsageError
from pvc.model.cluster import NodeShare, Placement
from pvc.model.host import NodeFacts
from pvc.model.network import EthernetNetwork, Layer
from pvc.model.node import Nic
from pvc.plan import actions, addresses, names
from pvc.plan.members import Peer, Ranks, numbering, to_ranks

_MIN_BURST = 256 << 10  # four of the largest frames that a guest hands over in one piece


@dataclass(frozen=True)
class Membership:
    """One network of the cluster: its number in the cluster, and the ranks on it."""

    index: int
    network: EthernetNetwork
    members: tuple[range, ...]

    def ranges_of(self, share: NodeShare) -> Ranks:
        """The members that a node runs, as ranges."""
        first, end = share.first_rank, share.first_rank + share.count
        return to_ranks([range(max(first, ranks.start), min(end, ranks.stop)) for ranks in self.members])

    def ranks_of(self, share: NodeShare) -> list[int]:
        """The members that a node runs."""
        return [rank for first, end in self.ranges_of(share) for rank in range(first, end)]


def check(membership: Membership, facts: NodeFacts) -> None:
    """What can only be known on the node.

    :raise ConfigError: the node network carries smaller frames than the network promises.
    """
    network = membership.network
    underlay = facts.underlay(network.host_suffix)
    if network.mtu > underlay.device_mtu:
        text = f"{network.mtu} is more than {underlay.device} carries ({underlay.device_mtu})"
        raise ConfigError([Problem("networks.yaml", 0, f"{network.name}.settings.mtu", text)])
    highest = max(ranks.stop for ranks in membership.members) - 1
    addresses.check_rank(network, highest)


def check_together(memberships: Sequence[Membership]) -> None:
    """Whether one gateway can serve all of a cluster's networks.

    :raise UsageError: addresses of two of them overlap.
    """
    layer3 = [each.network for each in memberships if each.network.layer is Layer.L3]
    for one, other in combinations(layer3, 2):
        six = (one.int_network6, other.int_network6)
        if one.int_network.overlaps(other.int_network) or (six[0] and six[1] and six[0].overlaps(six[1])):
            raise UsageError(
                f"networks {one.name} and {other.name} have overlapping addresses and cannot be in one cluster",
                hint="choose resource sets of the same network, or ask the site to change int-network",
            )


def plan_links(
    netns: str, membership: Membership, local: Sequence[int], peers: tuple[Peer, ...], facts: NodeFacts, vni: int
) -> tuple[actions.Action, ...]:
    """Bridge, tunnel end and taps of one network, and the way to the members that ``peers`` run."""
    index, network = membership.index, membership.network
    bridge, vxlan, mtu = names.bridge(index), names.vxlan(index), addresses.guest_mtu(network)
    switch = network.layer is Layer.L2
    taps = tuple(names.tap(rank, index) for rank in local)
    steps: tuple[actions.Action, ...] = (
        actions.AddBridge(netns, bridge, addresses.gateway_mac(network, index), mtu, gateway_addresses(network, vni)),
        actions.AddVxlan(
            netns, vxlan, bridge, vni, facts.underlay(network.host_suffix).address, network.vxlan_port, mtu, switch
        ),
        actions.AddTaps(netns, bridge, mtu, taps, network.bandwidth_mbit),
        actions.AddPeers(netns, bridge, vxlan, peers, labelled=not switch),
    )
    mbit = network.bandwidth_mbit
    if switch and mbit is None:
        return steps
    programs = actions.AddPrograms(
        netns,
        bridge,
        None if switch else vxlan,
        addresses.gateway_mac(network, index),
        mtu,
        numbering(network, index, vni),
        tuple(_plan_port(network, index, rank, vni) for rank in local),
        () if switch else tuple(peer.ranks for peer in peers),
        None if mbit is None else (mbit * 125_000, burst_bytes(mbit)),
    )
    return (*steps, programs)


def _plan_port(network: EthernetNetwork, index: int, rank: int, vni: int) -> actions.Port:
    layer3 = network.layer is Layer.L3
    return actions.Port(
        names.tap(rank, index),
        addresses.vm_mac(network, index, rank),
        addresses.vm_address(network, rank) if layer3 else None,
        addresses.vm_address6(network, rank, vni) if layer3 else None,
    )


def burst_bytes(mbit: int) -> int:
    """What may pass at once at a rate: 20 ms of it, and some of the largest frames."""
    return max(_MIN_BURST, mbit * 125_000 // 50)


def gateway_addresses(network: EthernetNetwork, vni: int) -> tuple[str, ...]:
    """What a network's gateway is called, with prefix lengths; nothing on L2."""
    if network.layer is not Layer.L3:
        return ()
    found = [f"{addresses.gateway_address(network)}/{network.int_network.prefixlen}"]
    if network.int_network6 is not None:
        found.append(f"{addresses.gateway_address6(network, vni)}/{network.int_network6.prefixlen}")
    return tuple(found)


def plan_peers(membership: Membership, placement: Placement, node: str, facts: NodeFacts) -> tuple[Peer, ...]:
    """The other nodes that run members."""
    peers = facts.underlay(membership.network.host_suffix).peers
    found = ((share, membership.ranges_of(share)) for share in placement.shares if share.node != node and share.count)
    return tuple(Peer(peers[share.node], ranks) for share, ranks in found if ranks)


def plan_nic(membership: Membership, rank: int, tap_index: int, vni: int) -> Nic:
    """What a VM's interface is told, and which tap it gets."""
    network = membership.network
    address = gateway = address6 = None
    if network.layer is Layer.L3:
        address = f"{addresses.vm_address(network, rank)}/{network.int_network.prefixlen}"
        gateway = addresses.gateway_address(network)
        if network.int_network6 is not None:
            address6 = f"{addresses.vm_address6(network, rank, vni)}/{network.int_network6.prefixlen}"
    mac = addresses.vm_mac(network, membership.index, rank)
    return Nic(network.name, mac, addresses.guest_mtu(network), address, gateway, tap_index, address6)
