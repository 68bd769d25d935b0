# SPDX-License-Identifier: Apache-2.0
"""Files: atomic writes, locks, private directories, safe removal."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pvc import removal
from pvc.errors import HostError


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644, sync: bool = False) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old or the new content, never a part.

    A text is UTF-8; what is in it of names that are no text are their bytes.

    :raise OSError: the directory is missing or full; the old content stays.
    """
    content = os.fsencode(data)
    # The longest names leave no room for more.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), mode)
        os.rename(temporary, path)
    except BaseException as err:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(err, OSError) and err.filename in {None, temporary}:
            err.filename = os.fspath(path)  # what is written says nothing of where
        raise


@contextmanager
def locked(path: Path, *, timeout_s: float = 60.0) -> Iterator[None]:
    """Hold an exclusive flock(2) on ``path``, created when absent; the kernel frees it when the holder dies.

    :raise HostError: another process held it for longer than ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _flock(fd, path, deadline, timeout_s)
            # The last holder may have removed the file while we waited: then the lock is worth nothing.
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                yield
                return
        finally:
            os.close(fd)


def _flock(fd: int, path: Path, deadline: float, timeout_s: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise HostError(f"cannot lock {path}: held by another process for {timeout_s:g} s") from None
            time.sleep(0.01)


def ensure_private_dir(path: Path, *, uid: int | None = None, gid: int = -1) -> None:
    """Make ``path`` a directory that only its owner may enter; parents are made as usual.

    :raise HostError: something else is there: a link, a file, or a directory of another user.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = os.geteuid() if uid is None else uid
    try:
        path.mkdir(mode=0o700)
        if owner != os.geteuid():
            os.chown(path, owner, gid, follow_symlinks=False)
    except FileExistsError:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError:
            raise HostError(f"{path} is not a directory") from None
        try:
            facts = os.fstat(fd)
            if facts.st_uid != owner:
                raise HostError(f"{path} belongs to uid {facts.st_uid}, not to {owner}") from None
            os.fchmod(fd, 0o700)
        finally:
            os.close(fd)


def ensure_own_dir(path: Path) -> None:
    """As ``ensure_private_dir``, but a link of this user's is followed, as to a file system with more room.

    What it leads to has to be the user's, too; it is made where only the last part of it is missing.

    :raise HostError: something else is there: a file, or a directory or a link of another user.
    :raise OSError: it cannot be made.
    """
    if not path.is_symlink():
        ensure_private_dir(path)
        return
    owner = path.lstat().st_uid
    if owner != os.geteuid():
        raise HostError(f"{path} is a link of uid {owner}, not of {os.geteuid()}")
    target = path.resolve()
    if not target.parent.is_dir():
        raise HostError(f"{path} is a link to {os.readlink(path)}, and there is no {target.parent}")
    ensure_private_dir(target)


def open_own(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file or a directory of this user's, in a directory whose owner may exchange it: no link, nobody else's.

    :raise OSError: it cannot be opened; EPERM: it is another user's, or neither a file nor a directory.
    """
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    facts = os.fstat(fd)
    if facts.st_uid != os.geteuid() or not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
        os.close(fd)
        raise PermissionError(errno.EPERM, "not a file of yours", os.fspath(path))
    return fd


def set_mode(path: Path, mode: int) -> None:
    """Change the mode of a file or a directory, and of nothing that a link leads to.

    :raise OSError: it is a link, or another user's.
    """
    fd = open_own(path)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it, or a link, without following links or entering mounts; absent is fine.

    :raise OSError: something could not be removed.
    """
    removal.remove(path)


def read_text(path: Path, default: str | None = None) -> str:
    """The stripped content of a small file, as those of /sys and /proc.

    :raise OSError: it cannot be read and no default was given.
    """
    try:
        # What a process calls itself, and the names of mounts, are any bytes.
        return path.read_text(errors="replace").strip()
    except OSError:
        if default is None:
            raise
        return default
