# SPDX-License-Identifier: Apache-2.0
"""Locks of open file descriptions (fcntl(2), F_OFD_SETLK): they go when the last process with the description is gone.

A child that inherited the descriptor holds the lock too, so the lock says that some process can still write. On NFS,
Lustre and their like these are the server's byte-range locks.
"""

from __future__ import annotations

import errno
import fcntl
import struct

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("hhqqi4x")
# Far behind any file's end, and away from the bytes 100 to 231 that QEMU locks (block/file-posix.c).
_BYTE = 1 << 62
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_TAKEN = {errno.EAGAIN, errno.EACCES}


def try_lock(fd: int, *, shared: bool = False) -> bool | None:
    """Take the lock, or change the kind of one that is held; False: others have it, None: there are no locks here.

    :raise OSError: something else.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, _BYTE, 1, 0))
    except OSError as err:
        if err.errno in _TAKEN:
            return False
        if err.errno in _NO_LOCKS:
            return None
        raise
    return True


def is_locked(fd: int) -> bool | None:
    """Whether another description has the lock, of whichever kind; None: there are no locks here.

    :raise OSError: something else.
    """
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, _BYTE, 1, 0))
    except OSError as err:
        if err.errno in _NO_LOCKS:
            return None
        raise
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def unlock(fd: int) -> None:
    """Give the lock back.

    :raise OSError: it stays.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, _BYTE, 1, 0))
