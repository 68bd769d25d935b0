# SPDX-License-Identifier: Apache-2.0
"""Networks as the administrator declares them (networks.yaml, resources.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

# Between a node and the clusters on it, never outside a node: a site prefix drawn once (RFC 4193).
UPLINKS6 = IPv6Network("fdb1:7c3e:5a90::/48")


class DataPath(StrEnum):
    """What carries a network's frames on a node."""

    AUTO = "auto"
    KERNEL = "kernel"
    OVS = "ovs"


class Layer(StrEnum):
    """L3: pvc assigns addresses, names and a gateway; L2: an empty switch."""

    L2 = "L2"
    L3 = "L3"


class Outbound(StrEnum):
    """Which destinations outside its network a VM may open connections to."""

    ALL = "all"
    NONE = "none"


class Outbound6(StrEnum):
    """How IPv6 packets of VMs leave their node: with its own address (NAT66, RFC 6296 in spirit), or as they are."""

    NAT = "nat"
    ROUTED = "routed"


class Protocol(StrEnum):
    """What a forwarded port speaks."""

    TCP = "tcp"
    UDP = "udp"


class Access(StrEnum):
    """Who may use a forwarded port: any host that reaches the node, or the job's owner on the node itself."""

    ANY = "any"
    OWNER = "owner"


@dataclass(frozen=True)
class ReverseNat:
    """Ports of each VM, each reached through a port of its node out of [min_host_port, max_host_port]."""

    first_vm_port: int
    last_vm_port: int
    min_host_port: int
    max_host_port: int
    protocol: Protocol = Protocol.TCP
    access: Access = Access.ANY


@dataclass(frozen=True)
class EthernetNetwork:
    """A private Ethernet network, one instance a cluster; keys as in networks.yaml."""

    name: str
    dev_prefix: str
    layer: Layer
    data_path: DataPath
    int_network: IPv4Network
    ext_network: IPv4Network
    mtu: int
    mac_prefix: str
    domain_name: str
    dns_servers: tuple[str, ...]
    dns_search: tuple[str, ...]
    ntp_server: str | None
    allow_outbound: Outbound
    reverse_nat: tuple[ReverseNat, ...]
    vxlan_port: int
    min_vni: int
    max_vni: int
    int_network6: IPv6Network | None = None
    outbound6: Outbound6 = Outbound6.NAT
    allow_host: bool = False  # whether VMs reach services of their own node
    allow_networks: tuple[IPv4Network | IPv6Network, ...] = ()  # that VMs reach although their node is part of them
    manage_forwarding: bool = True
    mac_offset: int = 0
    host_suffix: str = ""  # of a node's name, for its address on the network that carries the tunnels
    bandwidth_mbit: int | None = None  # of each VM's interface, each way


class Tagging(StrEnum):
    """How frames of a VLAN reach a VM: with their tag; without, beside tagged ones; or as the port's only VLAN."""

    TAGGED = "tagged"
    NATIVE = "native"
    UNTAGGED = "untagged"


@dataclass(frozen=True)
class Vlan:
    """A VLAN that VMs take part in (IEEE 802.1Q)."""

    vid: int
    tagging: Tagging


@dataclass(frozen=True)
class BridgedNetwork:
    """A network of the site's own: VMs are ports of a bridge that the nodes have; keys as in networks.yaml."""

    name: str
    host_bridge: str
    tap_prefix: str
    mtu: int
    vlans: tuple[Vlan, ...] = ()


@dataclass(frozen=True)
class PciNetwork:
    """PCI devices of the nodes for VMs: network adapters and whatever else; keys as in networks.yaml.

    With ``gres`` ("gpu", "gpu:a100") VMs get what Slurm gave to the job: ``host_devices`` are in Slurm's order.
    """

    name: str
    host_devices: tuple[str, ...]
    host_driver: str
    gres: str | None = None


Network = EthernetNetwork | BridgedNetwork | PciNetwork


@dataclass(frozen=True)
class ResourceSet:
    """What a VM gets besides cores and memory."""

    name: str
    networks: tuple[str, ...]
    default: bool = False
