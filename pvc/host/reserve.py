# SPDX-License-Identifier: Apache-2.0
"""Room on a file system, taken before it is needed: fallocate(2)."""

from __future__ import annotations

import ctypes
import errno
import os

_LIBC = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE = 1  # linux/falloc.h; Python's posix_fallocate makes the file longer instead
_UNKNOWN = {errno.EOPNOTSUPP, errno.ENOSYS}


def reserve_space(fd: int, size: int) -> None:
    """Take ``size`` bytes for a file, whose length stays; without effect where the file system cannot.

    :raise OSError: there is not so much room, or the user may not have it.
    """
    if _LIBC.fallocate(fd, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)):
        number = ctypes.get_errno()
        if number not in _UNKNOWN:
            raise OSError(number, os.strerror(number))


def release_space(fd: int) -> None:
    """Give back what was taken beyond the file's end.

    :raise OSError: the file system refuses.
    """
    os.ftruncate(fd, os.fstat(fd).st_size)
