# SPDX-License-Identifier: Apache-2.0
"""Persistent drives: files of the host that a VM writes to and that stay, and who has one in use."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pvc.codec import Format

LEASE = Format(1, 0)  # files beside drives, for supervisors of all nodes that reach them


class Mmp(StrEnum):
    """Multi-mount protection: who may have a drive at the same time."""

    YES = "yes"  # one VM
    CLUSTER = "cluster"  # the VMs of one cluster, whose guests know how to share a disk
    NO = "no"  # nobody looks


@dataclass(frozen=True)
class PersistentDrive:
    """A file of the host as a VM's disk. ``size``: it is made with so many bytes where it is not there; None: never."""

    path: str
    format: str = "raw"  # raw | qcow2; never guessed, for a raw disk's first bytes are its guest's
    mmp: Mmp = Mmp.YES
    cache: str = "writeback"
    size: int | None = None
    bus: str = "virtio"  # virtio | scsi
    discard: bool = True
    iothread: bool = False
    aio: str = "threads"


@dataclass(frozen=True)
class Lease:
    """Who has a drive in use, in a file beside it. ``since``: seconds since the epoch, by the clock of ``node``.

    ``boot`` names the boot of that node's kernel, ``slurm`` the Slurm cluster, ``cluster`` one start of a virtual one.
    """

    user: str
    slurm: str
    job_id: int
    cluster: str
    node: str
    boot: str
    vm: str
    since: float
    mmp: Mmp


class Reach(StrEnum):
    """Whom a lock on a file keeps away."""

    ALL = "all"  # everybody who can open the file
    NODE = "node"  # processes of this node; perhaps nobody else


class Life(StrEnum):
    """What is known of a lease's holder."""

    ALIVE = "alive"
    DEAD = "dead"  # none of its processes can write any more: certain
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Witness:
    """What Slurm says of a lease's job and node; times are seconds since the epoch, by that node's clock.

    ``job_state`` None: Slurm has forgotten the job. ``node_answers``: it is in service, and its slurmd answers.
    """

    job_state: str | None
    node_answers: bool
    node_boot: float | None
