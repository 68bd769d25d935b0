# SPDX-License-Identifier: Apache-2.0
"""A VM's persistent drives, from before QEMU opens them until nothing can write to them any more.

Three things keep a second writer away, each where the others cannot: the lock on the drive's own file, which QEMU
inherits with the descriptor; the leases beside it (pvc.host.drives), which name their holders; and, where locks may not
reach other nodes, Slurm's word about the holder's job and node.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pwd
import random
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pvc.errors import GuestError, JobError, PvcError
from pvc.files import read_text
from pvc.host import drives, locks
from pvc.host.mounts import find_mount
from pvc.images import header
from pvc.images.image import Format
from pvc.model.cluster import ClusterSpec
from pvc.model.drive import Lease, Life, Mmp, PersistentDrive, Reach
from pvc.plan.drives import find_reach, judge, judge_by_slurm, may_share
from pvc.plan.qemudrives import DriveFd
from pvc.slurm.witness import read_witness
from pvc.supervisor.share import VmShare

LOG = logging.getLogger(__name__)

# Two that want one drive at the same moment both give way, and come back after pauses of chance.
_TRIES = 4
_PAUSES_S = (0.02, 0.3)


@dataclass
class HeldDrives:
    """Drives that are open and this VM's. QEMU inherits ``fds`` and ``lease_fds``: with it, the locks end."""

    opened: list[tuple[int, drives.OwnLease | None]] = field(default_factory=list)
    fds: tuple[DriveFd, ...] = ()

    @property
    def inherited(self) -> tuple[int, ...]:
        """All descriptors that QEMU must get."""
        return tuple(fd for drive, lease in self.opened for fd in (drive, lease.fd if lease else -1) if fd >= 0)

    def release(self) -> None:
        """Bring everything to the disk and let others have the drives; QEMU has ended."""
        while self.opened:
            fd, lease = self.opened.pop()
            try:
                os.fsync(fd)
            except OSError as err:
                LOG.error("a persistent drive may have lost data: %s", err)
            os.close(fd)
            if lease is not None:
                try:
                    lease.withdraw()
                except OSError as err:
                    LOG.warning("%s stays; the next user of the drive removes it: %s", lease.path, err)
        self.fds = ()


def hold_drives(vm: VmShare, spec: ClusterSpec) -> HeldDrives:
    """Open all persistent drives of a VM, making what shall be made.

    :raise GuestError: one cannot be had; says who has it, or what is wrong with it.
    """
    held = HeldDrives()
    fds = []
    try:
        for drive in vm.template.drives:
            try:
                fd, lease, locked = _hold(drive, _describe(vm, spec, drive.mmp))
            except OSError as err:
                raise _explain(drive, err) from err
            held.opened.append((fd, lease))
            fds.append(DriveFd(fd, locks=locked is not None))
    except BaseException:
        held.release()
        raise
    held.fds = tuple(fds)
    return held


def _describe(vm: VmShare, spec: ClusterSpec, mmp: Mmp) -> Lease:
    return Lease(
        user=pwd.getpwuid(os.getuid()).pw_name,
        slurm=os.environ.get("SLURM_CLUSTER_NAME", ""),
        job_id=spec.job_id,
        cluster=hashlib.sha256(spec.keys.tls_cert.encode()).hexdigest()[:16],
        node=vm.node,
        boot=read_text(Path("/proc/sys/kernel/random/boot_id"), "unknown"),
        vm=vm.name,
        since=time.time(),
        mmp=mmp,
    )


def _hold(drive: PersistentDrive, mine: Lease) -> tuple[int, drives.OwnLease | None, bool | None]:
    path = Path(os.path.realpath(drive.path))
    fd = _open(drive, path)
    lease: drives.OwnLease | None = None
    try:
        _check_kind(drive, fd)
        locked: bool | None = True
        if drive.mmp is not Mmp.NO:
            lease, locked = _claim(path, fd, mine)
        _check_content(drive, fd)
    except BaseException:
        os.close(fd)
        if lease is not None:
            lease.withdraw()
        raise
    return fd, lease, locked


def _open(drive: PersistentDrive, path: Path) -> int:
    try:
        return drives.open_drive(path)
    except FileNotFoundError:
        if drive.size is None:
            raise
    drives.make_drive(path, drive.format, drive.size)
    return drives.open_drive(path)


def _check_kind(drive: PersistentDrive, fd: int) -> None:
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        raise GuestError(f"persistent drive {drive.path} is no file")
    if drive.format == "qcow2" and (facts.st_uid not in {0, os.getuid()} or facts.st_mode & 0o022):
        # Its header says which files QEMU opens: who can change that between our look and QEMU's reads your files.
        raise GuestError(
            f"persistent drive {drive.path}: others can write to this qcow2 file, and could let QEMU open your files",
            hint=f"chmod go-w {drive.path}, or use a raw file: qemu-img convert -O raw",
        )


def _check_content(drive: PersistentDrive, fd: int) -> None:
    """Look at the drive once it is ours: nobody changes it any more."""
    size = os.fstat(fd).st_size
    if drive.format == "qcow2":
        try:
            header.parse_header(os.pread(fd, header.PROBE_SIZE, 0), size, Format.QCOW2)
        except header.HeaderError as err:
            raise GuestError(f"persistent drive {drive.path} is refused: {err}", hint=err.hint) from None
    elif size == 0 or size % header.SECTOR:
        raise GuestError(
            f"persistent drive {drive.path} is no raw disk: its {size} bytes are no whole sectors",
            hint=f"give it a size: truncate -s 10G {drive.path}",
        )


def _claim(path: Path, fd: int, mine: Lease) -> tuple[drives.OwnLease, bool | None]:
    """Have a lease while nobody else has one, and the lock; whether there are locks at all.

    :raise GuestError: somebody else has the drive, or may have it.
    """
    facts = find_mount(fd)
    reach = find_reach(facts.fstype, facts.options) if facts else Reach.NODE
    for tries_left in range(_TRIES - 1, -1, -1):
        lease = drives.publish_lease(path, mine)
        try:
            locked = locks.try_lock(fd, shared=mine.mmp is Mmp.CLUSTER) if lease.locks else None
            others = [each for each in drives.find_leases(path, lease) if not _is_shared(each, mine)]
            # Whoever has the whole lock, where it reaches everybody, meets only leases of the dead and of those who
            # are just finding out that they come too late.
            sole = locked is True and reach is Reach.ALL and mine.mmp is Mmp.YES
            obstacle = None if sole else _find_obstacle(path, others, mine, reach)
            if obstacle is None and locked is False:
                obstacle = GuestError(
                    f"persistent drive {path} is in use by a program that left no word who it is",
                    hint=f"look for it on the nodes: lsof {path}",
                )
            if obstacle is None:
                _bury(others, sole=sole)
                return lease, locked
        except BaseException:
            lease.withdraw()
            raise
        lease.withdraw()
        if not tries_left:
            raise obstacle
        if locked:
            locks.unlock(fd)
        time.sleep(random.uniform(*_PAUSES_S))
    raise AssertionError("not reached")


def _is_shared(found: drives.FoundLease, mine: Lease) -> bool:
    return found.lease is not None and may_share(mine, found.lease)


def _bury(others: Sequence[drives.FoundLease], *, sole: bool) -> None:
    """Remove leases whose holders are dead; others' files in a sticky directory may have to stay."""
    for each in others:
        if not sole or each.locked is False:
            with suppress(OSError):
                each.remove()


def _find_obstacle(path: Path, others: Sequence[drives.FoundLease], mine: Lease, reach: Reach) -> GuestError | None:
    """Who else has the drive, or may have it; None: all are dead."""
    for each in others:
        if each.foreign:
            # Whether its holder lives is told in words that this version does not know.
            return GuestError(
                f"persistent drive {path} has a lease of another version of pvc, {each.path}: {each.foreign}",
                hint="use that version for this drive too, or remove the lease when no VM uses the drive",
            )
        if each.lease is None:
            if each.locked is False and reach is Reach.ALL:
                continue
            return GuestError(
                f"persistent drive {path} has a lease that cannot be read: {each.path}",
                hint="find out whose it is (ls -l), and remove it when no VM uses the drive",
            )
        life = judge(each.lease, mine, reach, locked=each.locked)
        doubt = ""
        if life is Life.UNKNOWN:
            life, doubt = _ask_slurm(each.lease, mine)
        if life is not Life.DEAD:
            return _refuse(path, each, life, doubt)
    return None


def _ask_slurm(lease: Lease, mine: Lease) -> tuple[Life, str]:
    if lease.slurm != mine.slurm:
        return Life.UNKNOWN, f"its job is of another Slurm cluster, {lease.slurm or 'without a name'}"
    try:
        life = judge_by_slurm(lease, read_witness(lease.job_id, lease.node))
    except JobError as err:
        return Life.UNKNOWN, str(err)
    return life, "its job has ended, but nobody saw its node end it" if life is Life.UNKNOWN else ""


def _refuse(path: Path, found: drives.FoundLease, life: Life, doubt: str) -> GuestError:
    lease = found.lease
    assert lease is not None
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(lease.since))
    holder = f"{lease.vm} of {lease.user}'s job {lease.job_id} on node {lease.node}, since {since}"
    if life is Life.ALIVE:
        return GuestError(
            f"persistent drive {path} is in use by {holder}",
            hint=f"end that cluster (pvc stop -j {lease.job_id}); drives for each VM have %{{vm_rank}} in their path",
        )
    return GuestError(
        f"persistent drive {path} may be in use by {holder}: {doubt}",
        hint=f"make sure that node {lease.node} is off or has booted since, then: rm {found.path}",
    )


def _explain(drive: PersistentDrive, err: OSError) -> PvcError:
    hint = None
    if err.errno == errno.ENOENT:
        hint = "make the file, or give the drive a size in the template"
    elif err.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        hint = "you must be able to write to the file and to its directory, on every node of the job"
    elif err.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = f"free space below {os.path.dirname(drive.path)}"
    return GuestError(f"cannot use persistent drive {drive.path}", hint=hint)
