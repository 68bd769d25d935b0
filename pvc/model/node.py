# SPDX-License-Identifier: Apache-2.0
"""What pvc-node tells a supervisor about its node's share of a cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Nic:
    """One network interface of a VM. ``tap_index`` counts the descriptors that come with the answer."""

    network: str
    mac: str
    mtu: int
    address: str | None  # IPv4 with prefix length, "10.200.0.1/16"; None on L2
    gateway: str | None
    tap_index: int
    address6: str | None = None  # IPv6 with prefix length
    dhcp: bool = False  # somebody else's DHCP server may know this interface: a bridge of the site's


@dataclass(frozen=True)
class Tap:
    """A tap of a VM: its name, the namespace that it is in (None: the node's own), and whether frames have a
    virtio-net header, by which guests leave checksums and segments to others.
    """

    name: str
    netns: str | None
    vnet_header: bool = True


@dataclass(frozen=True)
class VmGrant:
    """What one VM was given on this node."""

    rank: int
    nics: tuple[Nic, ...]
    ports: dict[str, int]  # VM's port ("22", "53/udp") -> port of the node
    devices: tuple[str, ...] = ()  # addresses of the node's PCI devices that are the VM's
    owner_ports: tuple[str, ...] = ()  # those of ``ports`` that only the job's owner reaches, on the node itself


@dataclass(frozen=True)
class ImageCache:
    """A user's directory for copies of images on a node, which may take ``size`` bytes."""

    directory: str
    size: int


@dataclass(frozen=True)
class NodeGrant:
    """The answer to ``attach``: run_dir is the job's private scratch directory on this node."""

    job_id: int
    node: str
    node_address: str
    run_dir: str
    vms: tuple[VmGrant, ...]
    image_cache: ImageCache | None = None
