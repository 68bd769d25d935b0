"""Addresses of VMs and gateways: functions of the rank alone, so every node computes all of them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from pvc.errors import UsageError
from pvc.model.network import EthernetNetwork

VXLAN_OVERHEAD = 50  # outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348)
_GATEWAY_INDEX = 255  # of the MAC's fourth byte; networks of a cluster count from 0


def vm_mac(network: EthernetNetwork, index: int, rank: int) -> str:
    """The MAC of VM ``rank`` on the cluster's network ``index``."""
    return f"{network.mac_prefix}:{index:02x}:{rank >> 8 & 0xFF:02x}:{rank & 0xFF:02x}"


def gateway_mac(network: EthernetNetwork, index: int) -> str:
    """The gateway's MAC, the same on every node."""
    return f"{network.mac_prefix}:{_GATEWAY_INDEX:02x}:ff:{index:02x}"


def vm_address(network: EthernetNetwork, rank: int) -> str:
    """The IPv4 address of VM ``rank``.

    :raise UsageError: the network has no address for that rank.
    """
    if rank >= capacity(network.int_network):
        raise UsageError(
            f"network {network.name} ({network.int_network}) has addresses for "
            f"{capacity(network.int_network)} VMs, not for vm{rank}"
        )
    return str(IPv4Address(int(network.int_network.network_address) + 1 + rank))


def gateway_address(network: EthernetNetwork) -> str:
    """The last usable address of the network: gateway, DHCP and DNS of every VM, on its own node."""
    return str(IPv4Address(int(network.int_network.broadcast_address) - 1))


def capacity(network: IPv4Network) -> int:
    """VMs that fit: all but the network's, the broadcast and the gateway's address."""
    return max(0, network.num_addresses - 3)


def guest_mtu(network: EthernetNetwork) -> int:
    """What a guest may send: ``mtu`` is what the node network carries."""
    return network.mtu - VXLAN_OVERHEAD


def uplink_pair(network: IPv4Network, slot: int) -> tuple[str, str]:
    """(node's, cluster's) address of uplink ``slot``: a /30 of the external network, local to the node.

    :raise UsageError: the external network has no such slot.
    """
    if slot >= uplink_slots(network):
        raise UsageError(f"external network {network} has room for {uplink_slots(network)} clusters on a node")
    base = int(network.network_address) + 4 * slot
    return str(IPv4Address(base + 1)), str(IPv4Address(base + 2))


def uplink_slots(network: IPv4Network) -> int:
    """Clusters that one node can connect."""
    return network.num_addresses // 4
