# SPDX-License-Identifier: Apache-2.0
"""System calls that Python 3.11 has no name for: namespaces, mounts, the host's name."""

from __future__ import annotations

import ctypes
import os

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_RELATIME = 1 << 21

MNT_DETACH = 2

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

PR_SET_PDEATHSIG = 1

_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """Mount, or change a mount, as the system call of this name.

    :raise OSError: as mount(2) says; the file name is the target.
    """
    words = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _check(_LIBC.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), target)


def umount(target: str) -> None:
    """Detach a mount; what still uses it keeps it.

    :raise OSError: as umount2(2) says.
    """
    _check(_LIBC.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), target)


def pivot_root(root: str, old: str) -> None:
    """Make a mount the root of this namespace; the former root is at ``old``, which is below the new one.

    :raise OSError: as pivot_root(2) says.
    """
    _check(_LIBC.pivot_root(os.fsencode(root), os.fsencode(old)), root)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones, as the system call of this name.

    :raise OSError: the kernel lacks such a namespace, or forbids it.
    """
    _check(_LIBC.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    """Join the namespace behind a descriptor, as the system call of this name.

    :raise OSError: as setns(2) says.
    """
    _check(_LIBC.setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns")


def sethostname(name: str) -> None:
    """Name the host of the caller's UTS namespace.

    :raise OSError: as sethostname(2) says.
    """
    text = os.fsencode(name)
    _check(_LIBC.sethostname(text, ctypes.c_size_t(len(text))), "hostname")


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send this signal to the caller when its parent ends: prctl(2), PR_SET_PDEATHSIG.

    :raise OSError: not a signal.
    """
    _check(_LIBC.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0), "prctl")
