"""Networks as the administrator declares them (networks.yaml, resources.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network


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


@dataclass(frozen=True)
class ReverseNat:
    """A port of each VM, reached through a port of its node out of [min_host_port, max_host_port]."""

    vm_port: int
    min_host_port: int
    max_host_port: int


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
    reverse_nat: ReverseNat | None
    vxlan_port: int
    min_vni: int
    max_vni: int


@dataclass(frozen=True)
class ResourceSet:
    """What a VM gets besides cores and memory."""

    name: str
    networks: tuple[str, ...]
    default: bool = False
