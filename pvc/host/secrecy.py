# SPDX-License-Identifier: Apache-2.0
"""Memory that holds a cluster's keys or etcd's password stays in memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pvc import run

_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """Let nobody but root have a core dump of this process or attach to it.

    RLIMIT_CORE would do less: a kernel that pipes dumps to a program (core_pattern(5)) does not look at it; and more:
    the user's own programs inherit it. What is executed is dumpable again by itself.
    """
    ctypes.CDLL(None).prctl(ctypes.c_int(_PR_SET_DUMPABLE), ctypes.c_ulong(0), 0, 0, 0)


@contextmanager
def openable(fd: int) -> Iterator[str]:
    """A path by which other processes of this user open a file of ours, to whom /proc hides this process now.

    A program without secrets has the file meanwhile; it ends with its standard input, and so with this process.

    :raise HostError: it cannot be started.
    """
    lifeline, ours = os.pipe()
    try:
        holder = run.spawn(["cat"], stdin=lifeline, stdout=run.DEVNULL, pass_fds=(fd,))
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(lifeline)
    try:
        yield f"/proc/{holder.pid}/fd/{fd}"
    finally:
        os.close(ours)
        holder.wait()
