# SPDX-License-Identifier: Apache-2.0
"""Files behind persistent drives: opened, locked, made where that is wanted, with a lease beside them that says whose.

A lease is a file .NAME.pvc-lease.TOKEN beside the drive, published with its content and its lock. Whoever wants a drive
publishes a lease of its own first and looks for others then, so of two that want it at once, none overlooks the other.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pvc.codec import OtherVersionError
from pvc.host.locks import is_locked, try_lock
from pvc.model.drive import LEASE, Lease
from pvc.plan.disks import plan_empty
from pvc.plan.drives import is_plain

_TOKEN = re.compile(r"[0-9a-f]{16}")
_MAX_LEASE = 1 << 14
_ABANDONED_S = 24 * 3600.0
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS}


def open_drive(path: Path) -> int:
    """Open a drive for reading and writing; nothing is waited for, whatever is there.

    :raise OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    os.set_blocking(fd, True)
    return fd


def make_drive(path: Path, form: str, size: int) -> None:
    """Make a drive of ``size`` bytes, sparse and its owner's alone; it appears complete or not at all.

    One that another node makes at the same time is as good.

    :raise OSError: it cannot be made.
    """
    fd, unnamed = _open_unnamed(path.parent, f".{path.name}.pvc-new.")
    try:
        if form == "qcow2":
            plan = plan_empty(size)
            for extent in plan.extents:
                if os.pwrite(fd, extent.data, extent.offset) != len(extent.data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
            size = plan.length
        os.ftruncate(fd, size)
        os.fsync(fd)
        with suppress(FileExistsError):
            _name(fd, unnamed, path)
    finally:
        if unnamed is not None:
            unnamed.unlink(missing_ok=True)
        os.close(fd)


def _open_unnamed(directory: Path, prefix: str) -> tuple[int, Path | None]:
    """A new file without a name, where the file system has such; elsewhere with a name that nobody looks for."""
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600), None
    except OSError as err:
        if err.errno not in _NO_TMPFILE or not directory.is_dir():
            raise
    path = directory / f"{prefix}{secrets.token_hex(8)}.tmp"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path


def _name(fd: int, unnamed: Path | None, path: Path) -> None:
    """Give the file its name.

    :raise FileExistsError: the name is taken.
    """
    if unnamed is None:
        # open(2), O_TMPFILE. Without a directory's descriptor Python calls link(2), which follows no link.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    else:
        os.link(unnamed, path)


@dataclass(frozen=True)
class OwnLease:
    """A lease that was published: hold ``fd`` as long as anything may write to the drive.

    ``locks``: others see its lock. There are file systems without locks, and some that give one lock to all.
    """

    fd: int
    path: Path
    locks: bool = True

    def withdraw(self) -> None:
        """Remove it; the drive must be closed.

        :raise OSError: it stays.
        """
        try:
            self.path.unlink(missing_ok=True)
        finally:
            os.close(self.fd)


@dataclass(frozen=True)
class FoundLease:
    """Somebody's lease; ``lease`` None: it is damaged. ``locked`` as of ``is_locked``.

    ``foreign``: it is of another major version, in words.
    """

    path: Path
    lease: Lease | None
    locked: bool | None
    foreign: str = ""

    def remove(self) -> None:
        """Forget a dead holder.

        :raise OSError: it stays.
        """
        self.path.unlink(missing_ok=True)


def publish_lease(drive: Path, lease: Lease) -> OwnLease:
    """Tell everybody that this drive is wanted; nothing of it stays after a kill that the next one does not clear.

    :raise OSError: the drive's directory cannot be written.
    """
    prefix = f".{drive.name}.pvc-lease."
    path = drive.parent / f"{prefix}{secrets.token_hex(8)}"
    fd, unnamed = _open_unnamed(drive.parent, prefix)
    try:
        try_lock(fd)
        data = LEASE.dumps(lease).encode()
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        os.fchmod(fd, 0o644)
        os.fsync(fd)
        _name(fd, unnamed, path)
    except BaseException:
        os.close(fd)
        raise
    finally:
        if unnamed is not None:
            unnamed.unlink(missing_ok=True)
    own = OwnLease(fd, path)
    try:
        return replace(own, locks=_read_lease(path).locked is True)
    except BaseException:
        own.withdraw()
        raise


def find_leases(drive: Path, own: OwnLease) -> Iterator[FoundLease]:
    """All other leases of a drive.

    :raise OSError: they cannot be read.
    """
    prefix = f".{drive.name}.pvc-lease."
    for name in sorted(os.listdir(drive.parent)):
        path = drive.parent / name
        if not name.startswith(prefix) or path == own.path:
            continue
        if _TOKEN.fullmatch(name.removeprefix(prefix)) is None:
            _sweep(path)
            continue
        # Gone meanwhile: its holder has ended well.
        with suppress(FileNotFoundError):
            found = _read_lease(path)
            yield found if own.locks else replace(found, locked=None)


def _read_lease(path: Path) -> FoundLease:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return FoundLease(path, None, None)
        locked = is_locked(fd)
        try:
            lease = LEASE.loads(Lease, os.read(fd, _MAX_LEASE))
        except OtherVersionError as err:
            return FoundLease(path, None, locked, str(err))
        except ValueError:
            return FoundLease(path, None, locked)
        return FoundLease(path, lease if is_plain(lease) else None, locked)
    finally:
        os.close(fd)


def _sweep(path: Path) -> None:
    """Remove what a killed process has left where files cannot be without a name."""
    with suppress(OSError):
        if path.name.endswith(".tmp") and time.time() - path.stat().st_mtime > _ABANDONED_S:
            path.unlink()
