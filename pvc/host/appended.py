# SPDX-License-Identifier: Apache-2.0
"""Hearing of what is appended to a file, as soon as it is: inotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pvc.errors import HostError

_LIBC = ctypes.CDLL(None, use_errno=True)
_IN_MODIFY = 2
_EVENTS = 64 * struct.calcsize("iIII")


@contextmanager
def watch_file(path: Path) -> Iterator[int]:
    """A descriptor that is readable after the file at ``path`` was written to, by this machine, until ``drain``.

    :raise HostError: the file is not there, or the machine has no watch to spare.
    """
    fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if fd < 0 or _LIBC.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
            number = ctypes.get_errno()
            raise HostError(f"cannot watch {path}: {os.strerror(number)}")
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def drain(fd: int) -> None:
    """Forget what was written so far."""
    try:
        while os.read(fd, _EVENTS):
            pass
    except BlockingIOError:
        return
