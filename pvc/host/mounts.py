# SPDX-License-Identifier: Apache-2.0
"""Which file system a file is on, and with which options (proc_pid_mountinfo(5)); taking mounts away."""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class MountFacts:
    """A mounted file system: its type, and the options of the mount and of the file system."""

    fstype: str
    options: tuple[str, ...]


def parse_mountinfo(text: str, mount_id: str) -> MountFacts | None:
    """The mount of that number; None: it is not there."""
    for line in text.split("\n"):
        left, _, right = line.partition(" - ")
        fields, more = left.split(" "), right.split(" ")
        if len(fields) >= 6 and len(more) >= 3 and fields[0] == mount_id:
            return MountFacts(more[0], (*fields[5].split(","), *more[2].split(",")))
    return None


def find_mount(fd: int) -> MountFacts | None:
    """The mount that an open file is on; None where the kernel does not say it.

    :raise OSError: there is no /proc.
    """
    with open(f"/proc/self/fdinfo/{fd}") as stream:
        facts = dict(line.split(":", 1) for line in stream if ":" in line)
    with open("/proc/self/mountinfo", errors="surrogateescape") as stream:
        return parse_mountinfo(stream.read(), facts.get("mnt_id", "").strip())


def detach_users(directory: int, name: str) -> None:
    """Take away the file systems that users have mounted (fusermount(1)) at ``name`` in a directory, and no others.

    :raise OSError: the kernel refused.
    """
    while True:
        try:
            # O_PATH asks nothing of the file system that is opened.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return
        try:
            mount = find_mount(fd)
        finally:
            os.close(fd)
        if mount is None or not is_users(mount) or not detach(directory, name):
            return


def is_users(mount: MountFacts) -> bool:
    """Whether somebody who is not root has mounted it and serves it: it may answer, or not, as that user likes."""
    owners = [option.partition("=")[2] for option in mount.options if option.startswith("user_id=")]
    return mount.fstype.partition(".")[0] in {"fuse", "fuseblk"} and owners != ["0"]


def detach(directory: int, name: str) -> bool:
    """Take away what is mounted at ``name`` in a directory, with all that is mounted on it; whether anything was.

    Whoever serves that file system (FUSE) is asked nothing and waited for in nothing.

    :raise OSError: the kernel refused.
    """
    where = os.fsencode(f"/proc/self/fd/{directory}/{name}")
    if _LIBC.umount2(where, _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOENT}:
        return False
    raise OSError(number, os.strerror(number), name)
