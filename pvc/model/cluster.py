# SPDX-License-Identifier: Apache-2.0
"""A cluster: where its VMs run, and what a launcher tells the supervisors."""

from __future__ import annotations

from dataclasses import dataclass

from pvc.codec import Format
from pvc.model.request import Size
from pvc.model.vm import Accel, VmTemplate

# What starts a cluster: from pvc alloc to the launcher, which may run days later, and from there to the supervisors
LAUNCH = Format(1, 0)
# What a running cluster keeps in its owner's directory for commands that come later
CLUSTER = Format(1, 0)


@dataclass(frozen=True)
class NodeShare:
    """The contiguous ranks [first_rank, first_rank + count) that one node runs.

    ``component``: the part of a heterogeneous job that the node is of, which has a job id of its own.
    """

    node: str
    first_rank: int
    count: int
    component: int = 0


@dataclass(frozen=True)
class Placement:
    """Every node of the job in Slurm's order, and the VMs' cores: all of ``sizes`` are known."""

    sizes: tuple[Size, ...]
    shares: tuple[NodeShare, ...]

    @property
    def count(self) -> int:
        """VMs in all."""
        return sum(share.count for share in self.shares)

    def find_size(self, rank: int) -> int:
        """The index in ``sizes`` of VM ``rank``.

        :raise IndexError: there is no such VM.
        """
        end = 0
        for index, size in enumerate(self.sizes):
            end += size.count
            if rank < end:
                return index
        raise IndexError(f"no VM has rank {rank}")

    def cpus_of(self, rank: int) -> int:
        """Cores of VM ``rank``."""
        return self.sizes[self.find_size(rank)].cpus or 1


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
    # Of the allocation, for one VM of each of the placement's sizes; the guest gets this less QEMU's overhead
    memory_mib: tuple[int, ...]
    accel: Accel
    authorized_keys: tuple[str, ...]
    keys: ClusterKeys
    libvirt_hook: str | None = None  # the site's program that may change the XML of libvirt's domains
    ends_job: bool = False  # the job was made for this cluster: it ends when its launcher is lost
    jobs: tuple[int, ...] = ()  # ids of a heterogeneous job's components; ``job_id`` is the first

    def job_of(self, share: NodeShare) -> int:
        """The id under which a node knows its part of the job."""
        return self.jobs[share.component] if self.jobs else self.job_id


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
    jobs: tuple[int, ...] = ()  # ids of a heterogeneous job's components; ``job_id`` is the first
