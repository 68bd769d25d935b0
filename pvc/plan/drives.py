# SPDX-License-Identifier: Apache-2.0
"""Whether a persistent drive may be used: what file systems' locks are worth, and whether a lease's holder is dead.

Taking a drive that is in use destroys what is on it, so a holder counts as dead only where that is certain. Time
alone never proves it: a node that was cut off from the network may still write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pvc.model.drive import Lease, Life, Reach, Witness

# File systems of one kernel: whoever can open the file meets its locks.
_LOCAL = re.compile(r"ext[234]|xfs|btrfs|f2fs|tmpfs|ramfs|overlay|zfs|bcachefs|jfs|reiserfs|nilfs2|hugetlbfs")
# Their servers keep locks for all clients (fcntl(2), nfs(5), mount.cifs(8), mount.lustre(8), gfs2's kernel docs), with
# the mount option that gives that up. What is in neither (FUSE, 9p…) may keep locks in its own kernel only.
_SHARED = {
    "nfs": r"nolock|local_lock=(all|posix)",
    "nfs4": r"nolock|local_lock=(all|posix)",
    "ceph": "",
    "gpfs": "",
    "ocfs2": "localflocks",
    "gfs2": "localflocks",
    "cifs": "nobrl",
    "smb3": "nobrl",
}
# squeue(1); of the states in which a job has ended, NODE_FAIL is left out: Slurm gave the node up, nobody saw it end.
_ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)


def find_reach(fstype: str, options: Sequence[str]) -> Reach:
    """Whom locks on a file system keep away, by its type and mount options (proc_pid_mountinfo(5))."""
    if _LOCAL.fullmatch(fstype):
        return Reach.ALL
    if fstype == "lustre":
        return Reach.ALL if "flock" in options else Reach.NODE
    given_up = _SHARED.get(fstype)
    if given_up is None:
        return Reach.NODE
    return Reach.NODE if any(re.fullmatch(given_up, each) for each in options) else Reach.ALL


def is_plain(lease: Lease) -> bool:
    """Whether a lease, which anybody may have written, is safe on a terminal and as a word for Slurm."""
    words = (lease.user, lease.slurm, lease.cluster, lease.node, lease.boot, lease.vm)
    return (
        all(len(word) <= 255 and word.isprintable() for word in words)
        and not lease.node.startswith("-")
        and 0 <= lease.since < 1e11
        and 0 <= lease.job_id < 1 << 32
    )


def judge(lease: Lease, mine: Lease, reach: Reach, *, locked: bool | None) -> Life:
    """What locks and boots say of a lease's holder, seen from where ``mine`` is.

    ``locked``: whether somebody holds the lock on the lease's file, None: the file system has no locks. The holder's
    QEMU has it too, so it is free when the last of them has gone.
    """
    if locked:
        return Life.ALIVE
    if locked is False and (reach is Reach.ALL or lease.boot == mine.boot):
        return Life.DEAD
    if (lease.slurm, lease.node) == (mine.slurm, mine.node) and lease.boot != mine.boot:
        return Life.DEAD  # this very node has booted since
    return Life.UNKNOWN


def judge_by_slurm(lease: Lease, witness: Witness) -> Life:
    """The same where only Slurm can tell: a job that is over on a node that answers, or a node that booted since."""
    if witness.node_boot is not None and witness.node_boot > lease.since:
        return Life.DEAD
    if witness.job_state is not None and witness.job_state not in _ENDED and witness.job_state != "NODE_FAIL":
        return Life.ALIVE
    if witness.node_answers and witness.job_state != "NODE_FAIL":
        return Life.DEAD
    return Life.UNKNOWN


def may_share(mine: Lease, other: Lease) -> bool:
    """Whether both may have the drive at the same time."""
    return mine.mmp == other.mmp == "cluster" and (mine.slurm, mine.job_id, mine.cluster) == (
        other.slurm,
        other.job_id,
        other.cluster,
    )
