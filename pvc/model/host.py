# SPDX-License-Identifier: Apache-2.0
"""What was observed of a node, and what it granted to a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True)
class Component:
    """A part of a heterogeneous job: a job of its own, with this many of the nodes."""

    job_id: int
    nodes: int


@dataclass(frozen=True)
class GresPart:
    """Generic resources of one name and type ("" without) that Slurm gave to a job on a node.

    ``indices`` are bits among all of that name on the node, whatever their type; None: Slurm only counts them.
    """

    name: str
    kind: str
    indices: tuple[int, ...] | None


@dataclass(frozen=True)
class JobGres:
    """What Slurm gave to a job of a node, and how many of each name the node has."""

    given: tuple[GresPart, ...]
    totals: dict[str, int]


@dataclass(frozen=True)
class JobFacts:
    """What Slurm says of a job in its prolog; nodes and cores are expanded, in Slurm's order.

    Of a heterogeneous job they are those of all its components, one component after the other; ``job_id`` is the
    component's that ``node`` is of, ``het_job_id`` the first one's. Without ``components`` Slurm did not say more.
    ``gres`` is this node's; None: nobody asked, or Slurm did not say.
    """

    job_id: int
    uid: int
    gid: int
    node: str
    nodes: tuple[str, ...]
    cpus: tuple[int, ...]
    het_job_id: int = 0
    components: tuple[Component, ...] = ()
    gres: JobGres | None = None
    cluster: str = ""  # Slurm's name for itself; empty: it did not say

    @property
    def cluster_id(self) -> int:
        """The job that stands for the whole cluster: the first component's."""
        return self.het_job_id or self.job_id

    @property
    def parts(self) -> tuple[int, ...]:
        """How many of the nodes each component has."""
        return tuple(each.nodes for each in self.components)


@dataclass(frozen=True)
class Underlay:
    """A network between nodes: this node's address and device there, and all of the job's nodes' addresses."""

    address: str
    device: str
    device_mtu: int
    peers: dict[str, str]


@dataclass(frozen=True)
class Claim:
    """Addresses (CIDR) that this node itself needs to reach where they are; ``what`` says what they belong to.

    ``direct``: it is in that network, so any address of it may be a neighbour's.
    """

    network: str
    what: str
    direct: bool = False


class BridgeKind(StrEnum):
    """What a bridge of the site's is made of."""

    LINUX = "linux"
    OVS = "ovs"


@dataclass(frozen=True)
class HostBridge:
    """A bridge of the site's on this node. ``datapath`` is Open vSwitch's: "system" or "netdev".

    ``steady``: its MAC stays what it is, whatever ports it is given.
    """

    kind: BridgeKind
    mtu: int
    filters_vlans: bool = False
    datapath: str = "system"
    steady: bool = True


@dataclass(frozen=True)
class PciDevice:
    """A PCI device of this node: its driver, its IOMMU group, and the group's other devices with their drivers."""

    driver: str | None
    group: int | None
    others: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class NodeFacts:
    """This node under its own name, and the addresses of the job's nodes (this one included).

    ``tunnels`` are the networks between nodes under other names, by what is added to a node's name.
    ``ovs_datapath``: where Open vSwitch forwards, "system" (the kernel) or "netdev" (its own process).
    """

    address: str
    device: str
    device_mtu: int
    peers: dict[str, str]
    dns_servers: tuple[str, ...]
    tunnels: dict[str, Underlay] = field(default_factory=dict)
    ovs_datapath: str = "netdev"
    addresses: tuple[str, ...] = ()  # all of this node, IPv4 and IPv6, with prefix lengths
    exits: tuple[str, ...] = ()  # devices with an IPv4 address: where answers and calls from outside come in
    quiet: tuple[str, ...] = ()  # those that forward nothing but for clusters
    quiet6: bool = False  # the node forwards no IPv6 but for clusters
    most_connections: int = 0  # that the kernel keeps track of; 0: it does not say
    ephemeral: str = ""  # ports that the kernel gives to whoever asks for none in particular, as two numbers
    reserved: str = ""  # those that it leaves out but for jobs of ours
    bridges: dict[str, HostBridge] = field(default_factory=dict)  # those that the job needs and that are there
    devices: dict[str, PciDevice] = field(default_factory=dict)  # those of the site's lists that are there

    def underlay(self, suffix: str) -> Underlay:
        """The network between nodes whose names end with ``suffix``."""
        own = Underlay(self.address, self.device, self.device_mtu, self.peers)
        return self.tunnels[suffix] if suffix else own


@dataclass(frozen=True)
class Grants:
    """Numbers that were handed out: VNIs are unique in the site, the rest on this node.

    ``ports`` are this node's forwarded ports in the order of ``plan.forwards``, empty without reverse NAT. ``meters``
    are two for each local interface whose rate the shared switch limits. ``devices`` are addresses of PCI devices by
    network, as many for each local VM, in rank order. ``mark`` is in the names of taps on the shared switch, by chance;
    without one it is the job's id.
    """

    vnis: dict[str, int]
    uplink_slot: int
    ports: tuple[int, ...]
    meters: tuple[int, ...] = ()
    devices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    mark: str = ""
