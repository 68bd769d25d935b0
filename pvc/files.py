"""Files: atomic writes, locks, private directories, safe removal."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pvc.errors import HostError


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644, sync: bool = False) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old or the new content, never a part.

    :raise OSError: the directory is missing or full; the old content stays.
    """
    content = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), mode)
        os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
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
        facts = path.lstat()
        if not stat.S_ISDIR(facts.st_mode):
            raise HostError(f"{path} is not a directory") from None
        if facts.st_uid != owner:
            raise HostError(f"{path} belongs to uid {facts.st_uid}, not to {owner}") from None
        path.chmod(0o700)


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it without following links; absent is fine.

    :raise OSError: something could not be removed.
    """
    if path.is_symlink():
        path.unlink()
        return
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def read_text(path: Path, default: str | None = None) -> str:
    """The stripped content of a small file, as those of /sys and /proc.

    :raise OSError: it cannot be read and no default was given.
    """
    try:
        return path.read_text().strip()
    except OSError:
        if default is None:
            raise
        return default
