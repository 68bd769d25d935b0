# SPDX-License-Identifier: Apache-2.0
"""Every effect that pvc-node can have on a node, as data: names and values, no handles, no methods.

The order of a plan is the order of creation; undoing goes backwards. Each is recorded in the ledger
before it is done. ``node.apply`` maps the types to functions of ``host``.
"""

from __future__ import annotations

from dataclasses import dataclass

from pvc.plan.members import Numbering, Peer, Ranks


@dataclass(frozen=True)
class MakeRunDir:
    """A scratch directory of the job's owner; removed with all it holds."""

    path: str
    uid: int
    gid: int


@dataclass(frozen=True)
class MakeCacheDir:
    """A directory of a user's for copies of images; it stays for that user's next job."""

    path: str
    uid: int
    gid: int


@dataclass(frozen=True)
class AddNetns:
    """A named network namespace with its loopback up and forwarding on."""

    netns: str


@dataclass(frozen=True)
class AddBridge:
    """A bridge in a namespace; ``addresses`` (CIDR, IPv4 and IPv6) make it the gateway of its VMs."""

    netns: str
    name: str
    mac: str
    mtu: int
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class AddVxlan:
    """A VXLAN end whose underlay stays in the node's namespace and whose device is a port of ``bridge``.

    Multicast and broadcast go to all members (AddPeers). With ``learns`` it is a switch's port: it learns behind which
    node an address is, and what is for an address that nobody knows goes to all; without, that is dropped.
    """

    netns: str
    name: str
    bridge: str
    vni: int
    local: str
    port: int
    mtu: int
    learns: bool = False


@dataclass(frozen=True)
class AddTaps:
    """Persistent taps of VMs on this node, as ports of ``bridge``; isolated ports are not used: VMs talk.

    ``bandwidth_mbit`` limits what each VM receives; what it sends is limited at the tap (AddPrograms).
    """

    netns: str
    bridge: str
    mtu: int
    names: tuple[str, ...]
    bandwidth_mbit: int | None = None


@dataclass(frozen=True)
class AddPeers:
    """Where a tunnel leads: what is for a group, or for nobody known, goes to each peer.

    ``labelled``: what is for the label of a peer (addresses.label_mac of its place) goes there.
    """

    netns: str
    bridge: str
    vxlan: str
    peers: tuple[Peer, ...]
    labelled: bool


@dataclass(frozen=True)
class Port:
    """A tap and its VM's addresses, which are None on an L2 network."""

    name: str
    mac: str
    address: str | None
    address6: str | None


@dataclass(frozen=True)
class AddPrograms:
    """What taps let in, and where it goes (bpf/port.c); on an L2 network the rate alone.

    ``elsewhere`` are the members that other nodes run, by label. ``limit`` is bytes a second, and bytes at once.
    Without ``tunnel`` all goes to the bridge.
    """

    netns: str
    bridge: str
    tunnel: str | None
    gateway_mac: str
    mtu: int
    numbering: Numbering
    ports: tuple[Port, ...]
    elsewhere: tuple[Ranks, ...]
    limit: tuple[int, int] | None


@dataclass(frozen=True)
class AddSwitchTaps:
    """Persistent taps of VMs in the node's own namespace, for the shared switch; they go as a ``group`` of links."""

    group: int
    mtu: int
    names: tuple[str, ...]
    vnet_header: bool


@dataclass(frozen=True)
class AddGateway:
    """A pair of devices: the gateway of VMs on the shared switch inside a namespace, and the switch's port for it.

    ``offload``: the switch completes checksums and segments, as the kernel's does and OVS' own process does not.
    """

    netns: str
    name: str
    port: str
    group: int
    mac: str
    mtu: int
    addresses: tuple[str, ...]
    offload: bool


@dataclass(frozen=True)
class AddSwitchPorts:
    """Ports of the shared Open vSwitch bridge, which the first job makes and the last one removes.

    ``tunnels`` are (port, UDP port), one for all peers of all jobs; they go with the bridge.
    """

    job_id: int
    bridge: str
    datapath: str
    tunnels: tuple[tuple[str, int], ...]
    ports: tuple[str, ...]


@dataclass(frozen=True)
class LoadFlows:
    """A job's OpenFlow tables and groups on the shared bridge, replaced whole; ``meters`` are (id, kbit/s).

    ``peers`` are (device, own address, other nodes' addresses): where tunnels lead, if the bridge has to learn that.
    """

    bridge: str
    job_id: int
    vnis: tuple[int, ...]
    text: str
    meters: tuple[tuple[int, int], ...]
    peers: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Lead:
    """A VM's tap in a namespace, and the pair of devices from there to a port in the node's own."""

    tap: str
    end: str
    port: str


@dataclass(frozen=True)
class AddLeads:
    """Taps of VMs in a namespace, each beside the end of a pair whose other end is in the node's own.

    Who holds a tap's descriptor may set the device's MAC, and the bridge that it is a port of takes that for one of the
    node's own: so a tap is no port of the site's. Rules carry frames from the one to the other (plan.bridged).
    """

    netns: str
    mtu: int
    vnet_header: bool
    leads: tuple[Lead, ...]


@dataclass(frozen=True)
class JoinBridge:
    """Devices in the node's own namespace as ports of a bridge of the site's; ``mtu`` is that bridge's.

    ``kind`` and ``datapath`` are those of ``model.host.HostBridge``; ``vlans`` are (number, how).
    """

    bridge: str
    kind: str
    datapath: str
    mtu: int
    names: tuple[str, ...]
    vlans: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class BindDevice:
    """A PCI device at vfio-pci, its IOMMU group the job's owner's; ``driver`` is what it goes back to."""

    address: str
    group: int
    driver: str
    uid: int
    gid: int


@dataclass(frozen=True)
class AddUplink:
    """A pair of devices between the node and a cluster's namespace, with the default route through it.

    ``addresses6`` are (node's, cluster's); ``routes6`` are the VMs' own addresses where these are routed.
    """

    netns: str
    host_device: str
    host_address: str
    netns_address: str
    prefix_length: int
    addresses6: tuple[str, str] | None = None
    routes6: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadRules:
    """nftables tables (family, name), in the node's namespace when ``netns`` is None; replaced and deleted whole."""

    netns: str | None
    tables: tuple[tuple[str, str], ...]
    text: str


@dataclass(frozen=True)
class SetSysctl:
    """A setting that several jobs share: the value before the first of them comes back after the last."""

    key: str
    value: str
    job_id: int


@dataclass(frozen=True)
class ForwardIpv6:
    """IPv6 forwarding of the node while jobs need it. A host that takes router advertisements goes on doing so."""

    job_id: int


@dataclass(frozen=True)
class Zone:
    """A domain, and the VMs that have a name in it."""

    domain: str
    numbering: Numbering
    ranks: Ranks


@dataclass(frozen=True)
class StartDnsmasq:
    """The DHCP and DNS server of this node's VMs, with files in ``directory``; ``zones`` name all of the cluster's."""

    netns: str
    directory: str
    config: str
    zones: tuple[Zone, ...]


@dataclass(frozen=True)
class ClaimMembership:
    """This node's membership of the cluster in the state store; the last one to leave frees the VNIs."""

    job_id: int
    node: str


Action = (
    MakeRunDir
    | MakeCacheDir
    | AddNetns
    | AddBridge
    | AddVxlan
    | AddTaps
    | AddPeers
    | AddPrograms
    | AddSwitchTaps
    | AddGateway
    | AddSwitchPorts
    | LoadFlows
    | AddLeads
    | JoinBridge
    | BindDevice
    | AddUplink
    | LoadRules
    | SetSysctl
    | ForwardIpv6
    | StartDnsmasq
    | ClaimMembership
)
