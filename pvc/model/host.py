"""What was observed of a node, and what it granted to a job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JobFacts:
    """What Slurm says of a job in its prolog; nodes and cores are expanded, in Slurm's order."""

    job_id: int
    uid: int
    gid: int
    node: str
    nodes: tuple[str, ...]
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class NodeFacts:
    """This node on the underlay, and the addresses of the job's nodes (this one included)."""

    address: str
    device: str
    device_mtu: int
    peers: dict[str, str]
    dns_servers: tuple[str, ...]


@dataclass(frozen=True)
class Grants:
    """Numbers that were handed out: VNIs are unique in the site, the rest on this node.

    ``ports`` has one host port for each local VM in rank order, empty without reverse NAT.
    """

    vnis: dict[str, int]
    uplink_slot: int
    ports: tuple[int, ...]
