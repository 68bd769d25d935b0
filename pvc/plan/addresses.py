# SPDX-License-Identifier: Apache-2.0
"""Addresses of VMs and gateways: functions of the rank alone, so every node computes all of them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pvc.errors import UsageError
from pvc.model.network import UPLINKS6, EthernetNetwork, Layer, Outbound6

VXLAN_OVERHEAD = 50  # outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348)
MAX_RANK = 0xFFFE  # two bytes of a MAC, one group of an IPv6 address
_GATEWAY_INDEX = 255  # of the MAC's fourth byte; networks of a cluster count from 0


def check_rank(network: EthernetNetwork, rank: int) -> None:
    """Whether the network has addresses for VM ``rank``.

    :raise UsageError: it has not.
    """
    if rank > MAX_RANK:
        raise UsageError(f"a network has hardware addresses for {MAX_RANK + 1} VMs, not for vm{rank}")
    if network.layer is Layer.L3:
        vm_address(network, rank)


def vm_mac(network: EthernetNetwork, index: int, rank: int) -> str:
    """The MAC of VM ``rank`` on the cluster's network ``index``.

    It ends with the number of the VM's address in the network, so a switch can make one of the other (plan.openflow).
    """
    number = rank + 1 + network.mac_offset
    return f"{network.mac_prefix}:{index:02x}:{number >> 8 & 0xFF:02x}:{number & 0xFF:02x}"


def gateway_mac(network: EthernetNetwork, index: int) -> str:
    """The gateway's MAC, the same on every node."""
    return f"{network.mac_prefix}:{_GATEWAY_INDEX:02x}:ff:{index:02x}"


def pack_mac(mac: str) -> bytes:
    """Its six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def label_mac(label: int) -> str:
    """The MAC that stands for another node in a tunnel (bpf/port.c)."""
    return f"02:00:{label.to_bytes(4).hex(':')}"


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


def vm_address6(network: EthernetNetwork, rank: int, vni: int) -> str | None:
    """The IPv6 address of VM ``rank``; None where the network has none.

    Clusters may all use the same addresses behind NAT. Routed ones are seen by the site, so the VNI is part of them.
    """
    if network.int_network6 is None:
        return None
    return str(IPv6Address(_base6(network.int_network6, network, vni) + 1 + rank))


def gateway_address6(network: EthernetNetwork, vni: int) -> str | None:
    """The gateway's IPv6 address besides its link-local one: DNS of every VM, on its own node."""
    if network.int_network6 is None:
        return None
    return str(IPv6Address(_base6(network.int_network6, network, vni) + 0xFFFFFFFE))


def _base6(prefix: IPv6Network, network: EthernetNetwork, vni: int) -> int:
    return int(prefix.network_address) + ((vni << 32) if network.outbound6 is Outbound6.ROUTED else 0)


def link_local(mac: str) -> str:
    """The link-local address that the kernel makes of a MAC (RFC 4291, appendix A)."""
    octets = pack_mac(mac)
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]))


def uplink_pair6(slot: int) -> tuple[str, str]:
    """(node's, cluster's) IPv6 address of uplink ``slot``: a /126."""
    base = int(UPLINKS6.network_address) + 4 * slot
    return str(IPv6Address(base + 1)), str(IPv6Address(base + 2))


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
