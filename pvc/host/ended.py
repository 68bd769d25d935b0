# SPDX-License-Identifier: Apache-2.0
"""What users' jobs leave in their directories: put aside at once, removed later, and nobody waits for it.

    RUN_DIR/.ended/JOB-TIME      root's alone; on the same file system, so a rename is all that it takes

How many files there are, how deep, what is mounted there and who still writes is up to the user, so none of it may hold
anything up or count as a fault of the node.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pvc.beneath import who_else_writes
from pvc.errors import HostError, JobError
from pvc.host import mounts
from pvc.removal import Removal, open_closed

LOG = logging.getLogger(__name__)

NAME = ".ended"
# Users may have as many mounts on top of one another (fusermount(1): mount_max).
_TRIES = 4096
_OF_THE_DISK = {errno.EIO, errno.EROFS, errno.EUCLEAN}


@dataclass(frozen=True)
class Swept:
    """Whether nothing is left, and why something is."""

    clean: bool
    error: OSError | None = None


def put_aside(parent: int, name: str) -> None:
    """Move a job's directory out of the way, within the directory ``parent`` of all jobs' directories.

    What is mounted on it is taken away. Absent is fine.

    :raise JobError: it cannot be moved now.
    :raise HostError: the disk is broken.
    """
    try:
        _move(parent, name)
    except OSError as err:
        kind = HostError if err.errno in _OF_THE_DISK else JobError
        raise kind(f"cannot put the directory of job {name} aside") from err


def evict(path: Path) -> None:
    """Give another name to what somebody who is not root has made as ``path``, where anybody may (/var/tmp).

    It stays its owner's. Elsewhere only root can have made it, for somebody, so it stays as it is. Absent is fine.

    :raise HostError: it cannot be renamed.
    """
    try:
        above = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.detach_users(above, path.name)
            facts = os.stat(path.name, dir_fd=above, follow_symlinks=False)
            if facts.st_uid != os.geteuid() and is_open_to_all(above):
                target = f"{path.name}.of-uid-{facts.st_uid}-{time.time_ns()}"
                os.rename(path.name, target, src_dir_fd=above, dst_dir_fd=above)
                LOG.warning("%s was a thing of uid %d, and is now called %s", path, facts.st_uid, target)
        finally:
            os.close(above)
    except FileNotFoundError:
        return
    except OSError as err:
        raise HostError(f"cannot rename {path}, which belongs to somebody else") from err


def is_open_to_all(directory: int | Path) -> bool:
    """Whether others than its owner can make things in a directory."""
    return bool(who_else_writes(os.stat(directory)))


def is_there(directory: int | Path, name: str) -> bool:
    """Whether a directory has an entry, without a look at the thing itself: a user's file system may stand for it."""
    with os.scandir(directory) as entries:
        return any(entry.name == name for entry in entries)


def ensure_place(parent: Path) -> None:
    """Make the place in the directory of all jobs' directories.

    :raise HostError: it cannot be made.
    """
    try:
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.close(_open_place(fd))
        finally:
            os.close(fd)
    except OSError as err:
        raise HostError(f"cannot make {parent / NAME}") from err


def sweep(parent: Path, stopped: Callable[[], bool] = lambda: False) -> Swept:
    """Remove what was put aside there; ``stopped`` is asked before each step."""
    try:
        fd = os.open(parent / NAME, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return Swept(True)
    except OSError as err:
        return Swept(False, err)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Swept(False)  # another process is about it
        removal = Removal(fd, stopped, mounts.detach)
        return Swept(removal.run(), removal.error)
    finally:
        os.close(fd)


def is_swept(parent: Path) -> bool:
    """Whether nothing is left there."""
    try:
        with os.scandir(parent / NAME) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True


def _move(parent: int, name: str) -> None:
    place = -1
    try:
        for _ in range(_TRIES):
            # Not before there is something to move
            if place < 0 and not is_there(parent, name):
                return
            with suppress(OSError):
                os.rmdir(name, dir_fd=parent)  # what is empty needs no sweep
                return
            place = place if place >= 0 else _open_place(parent)
            target = f"{name}-{time.time_ns()}"
            try:
                os.rename(name, target, src_dir_fd=parent, dst_dir_fd=place)
            except FileNotFoundError:
                return
            except OSError as err:
                if err.errno != errno.EBUSY or not mounts.detach(parent, name):
                    raise
                continue
            # Who is still in it makes nothing more; what cannot be done now, the sweep does.
            with suppress(OSError):
                os.close(open_closed(place, target))
            return
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
    finally:
        if place >= 0:
            os.close(place)


def _open_place(parent: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(NAME, 0o700, dir_fd=parent)
    fd = os.open(NAME, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    facts = os.fstat(fd)
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        os.close(fd)
        raise OSError(errno.EPERM, "is not root's alone", NAME)
    return fd
