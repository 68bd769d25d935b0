# SPDX-License-Identifier: Apache-2.0
"""What a node tells of the networks of one cluster: its members there, what they carried, and what is broken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """Frames and bytes of one interface since it was made: ``rx`` is what came in to whom the line is about."""

    rx_packets: int
    rx_bytes: int
    rx_dropped: int
    tx_packets: int
    tx_bytes: int
    tx_dropped: int

    def mirrored(self) -> Counters:
        """The same seen from the other end: a tap receives what its VM sends."""
        return Counters(
            self.tx_packets, self.tx_bytes, self.tx_dropped, self.rx_packets, self.rx_bytes, self.rx_dropped
        )


@dataclass(frozen=True)
class Member:
    """A VM's interface on a network; ``counters`` None: the interface is not there, or the VM's alone.

    Of a PCI device, the address on the node's bus is the only thing that is known.
    """

    rank: int
    mac: str
    addresses: tuple[str, ...]  # with prefix length; empty where pvc gives none
    ports: dict[str, int]  # the VM's port -> the node's
    counters: Counters | None


@dataclass(frozen=True)
class NetworkShare:
    """A node's share of one network: its VMs on it, and the end of the tunnel to the other nodes."""

    network: str
    data_path: str
    vni: int | None
    mtu: int  # of the VMs' interfaces
    members: tuple[Member, ...]
    tunnel: Counters | None


@dataclass(frozen=True)
class NetworkReport:
    """All networks of a cluster on one node."""

    node: str
    address: str
    networks: tuple[NetworkShare, ...]


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was set up, and the next step."""

    text: str
    fix: str | None = None


@dataclass(frozen=True)
class Mended:
    """What somebody else undid and pvc-node put back: when (seconds since the epoch), and what was not as set up."""

    at: float
    text: str


@dataclass(frozen=True)
class Upkeep:
    """What a node's last look at a cluster's networks found: faults that stand, and what was put back lately."""

    standing: tuple[Fault, ...] = ()
    mended: tuple[Mended, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What one node found by comparing itself with the plan; ``checked`` counts what was compared."""

    node: str
    faults: tuple[Fault, ...]
    checked: int
    mended: tuple[Mended, ...] = ()


@dataclass(frozen=True)
class ProbeShare:
    """Probe frames of one network on one node: which sizes came from which of the nodes that were to send some.

    Sizes are bytes in the frame, as a guest's MTU counts them.
    """

    network: str
    sizes: tuple[int, ...]
    peers: tuple[str, ...]
    heard: dict[str, tuple[int, ...]]
    carrier: str  # what the frames travel in: "UDP 4789"
    underlay_mtu: int  # that the network needs
    error: str | None = None  # why nothing could be sent
    remedy: str | None = None  # where nothing came in: what lets it in on this node, for root


@dataclass(frozen=True)
class ProbeReport:
    """The probes of all networks of a cluster on one node."""

    node: str
    networks: tuple[ProbeShare, ...]
