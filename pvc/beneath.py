# SPDX-License-Identifier: Apache-2.0
"""Opening what lies below directories that other users write to: the only way of root's into these.

A path means what its owner lets it mean at that moment, so nothing is looked at by path and used by path. All names are
resolved below a descriptor, by openat2(2): through no symbolic link, no magic link of /proc and no "..", and what was
opened is what is looked at. Kernels before 5.6, and containers that hide the call, get a walk with O_NOFOLLOW for each
name, which promises the same.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from pathlib import Path

_OPENAT2 = 437  # the same number on every architecture
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_TRIES = 16
_PATH_DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(
    base: int,
    path: str,
    flags: int = os.O_RDONLY,
    *,
    mode: int = 0,
    owners: Collection[int] | None = None,
    same_mount: bool = False,
) -> int:
    """Open the file or directory ``path`` below the directory ``base`` (a descriptor); nothing is waited for.

    ``owners``: whose it may be; None: anybody's. ``same_mount``: nothing that is mounted below ``base``.

    :raise OSError: it cannot be opened; ELOOP: a symbolic link is in the way; EPERM: it is another user's, or neither a
        file nor a directory; EXDEV: it leads out of ``base``, or onto another mount.
    """
    names = path.split("/")
    if not path or path.startswith("/") or ".." in names or "\0" in path:
        raise OSError(errno.EXDEV, "leads out of its directory", path)
    flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK if not flags & os.O_PATH else os.O_CLOEXEC
    if has_openat2():
        fd = _openat2(base, path, flags, mode, _NO_XDEV if same_mount else 0)
    else:
        fd = _walk(base, [name for name in names if name not in {"", "."}] or ["."], flags, mode, same_mount=same_mount)
    try:
        check_opened(fd, path, owners)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_opened(fd: int, path: str, owners: Collection[int] | None = None) -> os.stat_result:
    """Facts of what was opened as ``path``.

    :raise OSError: EPERM: it is neither a file nor a directory, or another user's.
    """
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
        raise OSError(errno.EPERM, "neither a file nor a directory", path)
    if owners is not None and facts.st_uid not in owners:
        raise OSError(errno.EPERM, f"belongs to uid {facts.st_uid}", path)
    return facts


def open_own_dir(path: Path) -> int:
    """Open a directory to which nobody but root and this user can write, and which nobody else can exchange.

    All directories above it are looked at, too: whoever can write to one of them can put another directory in place of
    what lies below. In a sticky one (/tmp) only entries of others stay what they are. Links in the path are an
    administrator's, for they are in such directories; they are resolved first and not followed later.

    :raise OSError: it cannot be opened; EPERM: somebody else can write to it, or exchange it: ``strerror`` says who,
        ``filename`` where.
    """
    mine = {0, os.geteuid()}
    names = [name for name in os.path.realpath(path).split("/") if name]
    fd = os.open("/", _PATH_DIR)
    try:
        for depth, name in enumerate([*names, "."]):
            why = why_not_own(os.fstat(fd), mine, last=name == ".")
            if why:
                raise OSError(errno.EPERM, why, "/" + "/".join(names[:depth]))
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC if name == "." else _PATH_DIR
            below = os.open(name, flags, dir_fd=fd)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def why_not_own(facts: os.stat_result, owners: Collection[int], *, last: bool) -> str:
    """Why a directory is not of ``owners`` alone, or lets others exchange what is in it; "" when it does neither.

    ``last``: others may make nothing in it, whatever its mode says of removing.
    """
    if facts.st_uid not in owners:
        return f"it belongs to uid {facts.st_uid}"
    if last or not facts.st_mode & stat.S_ISVTX:
        return who_else_writes(facts)
    return ""


def who_else_writes(facts: os.stat_result) -> str:
    """Who but its owner, and root's group, can make things in a directory; "" for nobody."""
    if facts.st_mode & stat.S_IWOTH:
        return "everybody can write to it"
    if facts.st_mode & stat.S_IWGRP and facts.st_gid:
        return f"its group (gid {facts.st_gid}) can write to it"
    return ""


def ensure_dir_of(base: int, name: str, uid: int, gid: int = -1) -> None:
    """Make the directory ``name`` in ``base``, one of ``open_own_dir``, one that only the user ``uid`` may enter.

    :raise OSError: something else is there: a link, a file, or (EPERM) a directory of another user.
    """
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=base)
    # Ours: made just now, or by one that was killed before it handed it over.
    fd = open_beneath(base, name, os.O_RDONLY | os.O_DIRECTORY, owners={uid, os.geteuid()})
    try:
        if os.fstat(fd).st_uid != uid:
            os.fchown(fd, uid, gid)
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


@cache
def has_openat2() -> bool:
    """Whether the kernel has the call, and nothing hides it: seccomp filters of containers answer EPERM or ENOSYS."""
    try:
        os.close(_openat2(-100, "/", os.O_PATH | os.O_CLOEXEC, 0, 0, beneath=False))
    except OSError:
        return False
    return True


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _openat2(base: int, path: str, flags: int, mode: int, resolve: int, *, beneath: bool = True) -> int:
    resolve |= _NO_SYMLINKS | _NO_MAGICLINKS | (_BENEATH if beneath else 0)
    how = _How(flags, mode if flags & os.O_CREAT else 0, resolve)
    for _ in range(_TRIES):
        words = (ctypes.c_int(base), os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
        fd = int(_libc().syscall(ctypes.c_long(_OPENAT2), *words))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        # EAGAIN: something was renamed meanwhile, anywhere; EINTR as ever.
        if number not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(number, os.strerror(number), path)


def _walk(base: int, names: list[str], flags: int, mode: int, *, same_mount: bool) -> int:
    """As openat2(2); a bind mount of the same file system is not told from a directory here."""
    path = "/".join(names)
    device = os.fstat(base).st_dev
    fd = os.open(".", _PATH_DIR, dir_fd=base)
    try:
        for i, name in enumerate(names):
            last = i == len(names) - 1
            below = _step(fd, name, flags | os.O_NOFOLLOW if last else _PATH_DIR, mode, path)
            os.close(fd)
            fd = below
            if same_mount and os.fstat(fd).st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _step(fd: int, name: str, flags: int, mode: int, path: str) -> int:
    try:
        found = os.open(name, flags, mode, dir_fd=fd)
    except NotADirectoryError:
        # Where openat2 says ELOOP
        if not stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            raise
    else:
        # O_PATH opens a link itself.
        if not stat.S_ISLNK(os.fstat(found).st_mode):
            return found
        os.close(found)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
