"""The kernel data path of L3 networks: bridge, taps, VXLAN end, static peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pvc.errors import ConfigError, Problem
from pvc.model.cluster import NodeShare, Placement
from pvc.model.host import NodeFacts
from pvc.model.network import EthernetNetwork, Layer
from pvc.model.node import Nic
from pvc.plan import actions, addresses, names


@dataclass(frozen=True)
class Membership:
    """One network of the cluster: its number in the cluster, and the ranks on it."""

    index: int
    network: EthernetNetwork
    members: tuple[range, ...]

    def ranks_of(self, share: NodeShare) -> list[int]:
        """The members that a node runs."""
        first, end = share.first_rank, share.first_rank + share.count
        return [rank for ranks in self.members for rank in range(max(first, ranks.start), min(end, ranks.stop))]


def check(membership: Membership, facts: NodeFacts) -> None:
    """What can only be known on the node.

    :raise ConfigError: the node network carries smaller frames than the network promises.
    """
    network = membership.network
    if network.mtu > facts.device_mtu:
        text = f"{network.mtu} is more than {facts.device} carries ({facts.device_mtu})"
        raise ConfigError([Problem("networks.yaml", 0, f"{network.name}.settings.mtu", text)])
    highest = max(ranks.stop for ranks in membership.members) - 1
    addresses.vm_address(network, highest)


def plan_links(
    netns: str, membership: Membership, local: Sequence[int], facts: NodeFacts, vni: int
) -> tuple[actions.Action, ...]:
    """Bridge, tunnel end and taps of one network."""
    index, network = membership.index, membership.network
    bridge, vxlan, mtu = names.bridge(index), names.vxlan(index), addresses.guest_mtu(network)
    address = None
    if network.layer is Layer.L3:
        address = f"{addresses.gateway_address(network)}/{network.int_network.prefixlen}"
    taps = tuple(names.tap(rank, index) for rank in local)
    return (
        actions.AddBridge(netns, bridge, addresses.gateway_mac(network, index), mtu, address),
        actions.AddVxlan(netns, vxlan, bridge, vni, facts.address, network.vxlan_port, mtu),
        actions.AddTaps(netns, bridge, mtu, taps),
    )


def plan_peers(
    netns: str, membership: Membership, placement: Placement, node: str, facts: NodeFacts
) -> actions.AddPeers:
    """Entries for the members that other nodes run."""
    network, index = membership.network, membership.index
    first = int(network.int_network.network_address) + 1
    prefix = f"{network.mac_prefix}:{index:02x}:"
    layer3 = network.layer is Layer.L3
    entries: list[tuple[str, str | None, str]] = []
    for share in placement.shares:
        if share.node == node or not share.count:
            continue
        remote = facts.peers[share.node]
        for rank in membership.ranks_of(share):
            number = first + rank
            address = f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}" if layer3 else None
            entries.append((f"{prefix}{rank >> 8 & 255:02x}:{rank & 255:02x}", address, remote))
    return actions.AddPeers(netns, names.bridge(index), names.vxlan(index), tuple(entries))


def plan_nic(membership: Membership, rank: int, tap_index: int) -> Nic:
    """What a VM's interface is told, and which tap it gets."""
    network = membership.network
    address = gateway = None
    if network.layer is Layer.L3:
        address = f"{addresses.vm_address(network, rank)}/{network.int_network.prefixlen}"
        gateway = addresses.gateway_address(network)
    mac = addresses.vm_mac(network, membership.index, rank)
    return Nic(network.name, mac, addresses.guest_mtu(network), address, gateway, tap_index)
