"""A cluster: where its VMs run, and what a launcher tells the supervisors."""

from __future__ import annotations

from dataclasses import dataclass

from pvc.model.vm import Accel, VmTemplate


@dataclass(frozen=True)
class NodeShare:
    """The contiguous ranks [first_rank, first_rank + count) that one node runs."""

    node: str
    first_rank: int
    count: int


@dataclass(frozen=True)
class Placement:
    """Every node of the job in Slurm's order, and the cores of each VM."""

    cpus_per_vm: int
    shares: tuple[NodeShare, ...]

    @property
    def count(self) -> int:
        """VMs in all."""
        return sum(share.count for share in self.shares)


@dataclass(frozen=True)
class VmGroup:
    """Contiguous ranks of one template."""

    template: str
    first_rank: int
    count: int


@dataclass(frozen=True)
class ClusterKeys:
    """Secrets of one cluster. ``tls_*`` is one self-signed pair: who holds it belongs to the cluster.

    PEM and OpenSSH texts. ``ssh_key`` is the cluster's own client key, ``host_key`` the guests' host key.
    """

    tls_cert: str
    tls_key: str
    ssh_key: str
    ssh_key_pub: str
    host_key: str
    host_key_pub: str


@dataclass(frozen=True)
class ClusterSpec:
    """What the launcher sends to each supervisor on standard input, as one line of JSON."""

    job_id: int
    name: str
    definition: str
    placement: Placement
    groups: tuple[VmGroup, ...]
    templates: dict[str, VmTemplate]
    memory_mib: int  # of the allocation, for one VM; the guest gets this less QEMU's overhead
    accel: Accel
    authorized_keys: tuple[str, ...]
    keys: ClusterKeys
    libvirt_hook: str | None = None  # the site's program that may change the XML of libvirt's domains
    ends_job: bool = False  # the job was made for this cluster: it ends when its launcher is lost


@dataclass(frozen=True)
class NodeEndpoint:
    """Where a node's supervisor listens (TLS, with the cluster's pair on both sides)."""

    node: str
    host: str
    port: int


@dataclass(frozen=True)
class ClusterRecord:
    """A running cluster in its owner's directory (cluster.json), for the other commands."""

    job_id: int
    name: str
    definition: str
    created: float
    launcher_host: str
    launcher_pid: int
    placement: Placement
    groups: tuple[VmGroup, ...]
    endpoints: tuple[NodeEndpoint, ...]
