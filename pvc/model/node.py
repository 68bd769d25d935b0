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


@dataclass(frozen=True)
class VmGrant:
    """What one VM was given on this node."""

    rank: int
    nics: tuple[Nic, ...]
    ports: dict[str, int]  # VM's TCP port -> port of the node


@dataclass(frozen=True)
class NodeGrant:
    """The answer to ``attach``: run_dir is the job's private scratch directory on this node."""

    job_id: int
    node: str
    node_address: str
    run_dir: str
    vms: tuple[VmGrant, ...]
