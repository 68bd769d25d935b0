"""Every effect that pvc-node can have on a node, as data: names and values, no handles, no methods.

The order of a plan is the order of creation; undoing goes backwards. Each is recorded in the ledger
before it is done. ``node.apply`` maps the types to functions of ``host``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MakeRunDir:
    """A scratch directory of the job's owner; removed with all it holds."""

    path: str
    uid: int
    gid: int


@dataclass(frozen=True)
class AddNetns:
    """A named network namespace with its loopback up and forwarding on."""

    netns: str


@dataclass(frozen=True)
class AddBridge:
    """A bridge in a namespace; ``address`` (CIDR) makes it the gateway of its VMs."""

    netns: str
    name: str
    mac: str
    mtu: int
    address: str | None


@dataclass(frozen=True)
class AddVxlan:
    """A VXLAN end whose underlay stays in the node's namespace and whose device is a port of ``bridge``.

    It learns nothing and floods nothing: what it does not know it drops.
    """

    netns: str
    name: str
    bridge: str
    vni: int
    local: str
    port: int
    mtu: int


@dataclass(frozen=True)
class AddTaps:
    """Persistent taps of VMs on this node, as ports of ``bridge``; isolated ports are not used: VMs talk."""

    netns: str
    bridge: str
    mtu: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class AddPeers:
    """The VMs of other nodes: (MAC, IPv4 address or None, address of their node), in both FDBs and in ARP."""

    netns: str
    bridge: str
    vxlan: str
    entries: tuple[tuple[str, str | None, str], ...]


@dataclass(frozen=True)
class AddUplink:
    """A pair of devices between the node and a cluster's namespace, with the default route through it."""

    netns: str
    host_device: str
    host_address: str
    netns_address: str
    prefix_length: int


@dataclass(frozen=True)
class LoadRules:
    """An nftables table, in the node's namespace when ``netns`` is None; replaced whole, deleted whole."""

    netns: str | None
    family: str
    table: str
    text: str


@dataclass(frozen=True)
class SetSysctl:
    """A setting that several jobs share: the value before the first of them comes back after the last."""

    key: str
    value: str
    job_id: int


@dataclass(frozen=True)
class StartDnsmasq:
    """The DHCP and DNS server of this node's VMs; files live in ``directory``."""

    netns: str
    directory: str
    config: str
    hosts: str


@dataclass(frozen=True)
class ClaimMembership:
    """This node's membership of the cluster in the state store; the last one to leave frees the VNIs."""

    job_id: int
    node: str


Action = (
    MakeRunDir
    | AddNetns
    | AddBridge
    | AddVxlan
    | AddTaps
    | AddPeers
    | AddUplink
    | LoadRules
    | SetSysctl
    | StartDnsmasq
    | ClaimMembership
)
