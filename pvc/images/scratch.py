# SPDX-License-Identifier: Apache-2.0
"""What is unfinished in a repository: temporary files, sessions of writers, and files on their way out.

    .tmp/HEX               a file being written, or a session; its writer holds it by flock(2)
    .tmp/WHAT.HEX.keep     a file or directory of the session HEX; where WHAT is a SHA-256, the session claims that
                           content
    .tmp/SHA256.HEX.gone   what a collector took out of data/ and has not looked at again

A dead writer's file is known by its free lock: process ids mean nothing on another node or in another PID
namespace. Where locks do not work, or a server keeps those of a dead node, it is known by its age.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pvc import files

LOG = logging.getLogger(__name__)

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
_ABANDONED_S = 24 * 3600.0
# Files that say nothing; their making brings a node's view of a directory up to date.
_PROBE = ".probe-"


def is_sha256(name: str) -> bool:
    """Whether a file's name is a checksum."""
    return _SHA256.fullmatch(name) is not None


def open_temporary(directory: Path) -> tuple[int, Path]:
    """A new, empty, locked file.

    :raise OSError: it cannot be made.
    """
    while True:
        path = directory / secrets.token_hex(8)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _try_lock(fd, wait=True)
            # A sweep may have taken it between the two calls.
            if os.fstat(fd).st_nlink:
                return fd, path
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        os.close(fd)


def sweep(directory: Path) -> Iterator[int]:
    """Remove what belongs to no living writer; the bytes that each file took.

    :raise OSError: something cannot be removed.
    """
    entries = sorted(Path(entry.path) for entry in os.scandir(directory))
    # Files of a session have dots in their names: they come after it in this order.
    for path in sorted(entries, key=lambda path: path.name.count(".")):
        if path.name.endswith(".gone"):
            continue
        with suppress(FileNotFoundError):
            if _is_abandoned(path):
                LOG.debug("removing the unfinished %s", path)
                size = stored_size(path)
                remove(path)
                yield size


def remove(path: Path) -> None:
    """Remove a file or a directory of a session.

    :raise FileNotFoundError: it is gone.
    :raise OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        files.remove_tree(path)
    else:
        path.unlink()


def _is_abandoned(path: Path) -> bool:
    parts = path.name.split(".")
    if len(parts) == 3 and parts[2] == "keep":
        return not path.with_name(parts[1]).exists()
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return False
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return False
        return _try_lock(fd, wait=False) or time.time() - facts.st_mtime > _ABANDONED_S
    finally:
        os.close(fd)


def find_claimed(directory: Path) -> set[str]:
    """Checksums that sessions claim."""
    parts = [name.split(".") for name in os.listdir(directory)]
    return {each[0] for each in parts if len(each) == 3 and each[2] == "keep" and is_sha256(each[0])}


def find_gone(directory: Path) -> list[Path]:
    """What collectors took out of data/."""
    return [directory / name for name in os.listdir(directory) if name.endswith(".gone") and is_sha256(name[:64])]


def refresh_dir(path: Path) -> None:
    """Make this node look at a directory anew (NFS caches names for up to a minute): change it."""
    probe = path / f"{_PROBE}{secrets.token_hex(8)}"
    with suppress(OSError):
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        probe.unlink()


def remove_probes(directory: Path) -> None:
    """Remove what killed processes left of ``refresh_dir``, in ``directory`` and one level below."""
    for path in [*directory.glob(f"{_PROBE}*"), *directory.glob(f"*/{_PROBE}*")]:
        path.unlink(missing_ok=True)


def link(source: Path, target: Path, *, keep: bool = False) -> None:
    """Give a file a second name unless the name is taken; another user's file loses the first, unless ``keep``.

    :raise OSError: it cannot be done.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except PermissionError:
        # Another user's file (fs.protected_hardlinks).
        if keep:
            raise
        os.rename(source, target)


def stored_size(path: Path) -> int:
    """Bytes that go when this name goes."""
    facts = path.stat(follow_symlinks=False)
    return facts.st_blocks * 512 if facts.st_nlink == 1 else 0


def has_size(path: Path, size: int) -> bool:
    """Whether a file is there and has ``size`` bytes."""
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def make_dir(path: Path, mode: int) -> None:
    """Make a directory unless it is there, with this very mode whatever the umask."""
    with suppress(FileExistsError):
        path.mkdir()
        files.set_mode(path, mode)


def sync_dir(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _try_lock(fd: int, *, wait: bool) -> bool:
    """Whether the lock is ours now; where there are no locks it is nobody's, and the answer is False."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno not in _NO_LOCKS and not isinstance(err, BlockingIOError):
            raise
        return False
    return True
