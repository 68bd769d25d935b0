# SPDX-License-Identifier: Apache-2.0
"""Copies of images on a node's own disk, in a directory of one user: whoever starts next reads those.

    SHA256            a whole copy; who uses it holds a shared flock(2) on it
    .SHA256.part      being filled; its filler holds the lock

A name is a checksum and the content was compared with it, and nobody but its user can write to the directory. A filler
that dies leaves a part without a lock, which the next one begins anew. What was used longest ago goes first when room
is needed; what is in use stays.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from pvc.images.scratch import is_sha256
from pvc.images.streams import write_sparse

LOG = logging.getLogger(__name__)

_CHUNK = 4 << 20
# What else is on the file system keeps this part of it.
_FREE_PART = 20


class Outcome(StrEnum):
    """What became of an attempt to fill."""

    FILLED = "filled"
    THERE = "there"  # somebody else has filled it
    BUSY = "busy"  # somebody else is filling it
    NO_ROOM = "no room"
    DAMAGED = "damaged"  # the repository's file has not the content that its name says
    STOPPED = "stopped"


class NodeCache:
    """The copies in ``directory``, which take at most ``size`` bytes. Methods raise OSError where the disk fails."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        self._size = size

    def path_of(self, sha256: str) -> Path:
        """Where a copy is, or will be."""
        return self.directory / sha256

    def hold(self, sha256: str, size: int) -> int | None:
        """A descriptor that keeps a copy of ``size`` bytes there, and marks it as used now; None: there is none."""
        path = self.path_of(sha256)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            facts = os.fstat(fd)
            if facts.st_nlink and facts.st_size == size:
                os.utime(fd)
                return fd
        except BlockingIOError:
            pass  # it is on its way out
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def fill(self, source: Path, sha256: str, stopped: Callable[[], bool]) -> Outcome:
        """Copy a file of a repository; ``stopped`` is asked now and then."""
        with self._part(sha256) as part:
            if part is None:
                return Outcome.BUSY
            if self.path_of(sha256).exists():
                return Outcome.THERE
            with source.open("rb", buffering=0) as stream:
                facts = os.fstat(stream.fileno())
                if not self._make_room(min(facts.st_size, facts.st_blocks * 512)):
                    return Outcome.NO_ROOM
                os.ftruncate(part, 0)
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                try:
                    digest = self._copy(stream.read, part, stopped)
                except OSError as err:
                    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
                        return Outcome.NO_ROOM
                    raise
            if digest is None:
                return Outcome.STOPPED
            if digest != sha256:
                LOG.error("%s is damaged: its SHA-256 is %s", source, digest)
                return Outcome.DAMAGED
            os.fchmod(part, 0o400)
            os.fsync(part)
            os.rename(self._part_path(sha256), self.path_of(sha256))
            return Outcome.FILLED

    def _copy(self, read: Callable[[int], bytes], part: int, stopped: Callable[[], bool]) -> str | None:
        digest = hashlib.sha256()
        with open(part, "wb", buffering=0, closefd=False) as target:
            while chunk := read(_CHUNK):
                if stopped():
                    return None
                digest.update(chunk)
                write_sparse(target, chunk)
            target.truncate(target.tell())
        return digest.hexdigest()

    def _part_path(self, sha256: str) -> Path:
        return self.directory / f".{sha256}.part"

    @contextmanager
    def _part(self, sha256: str) -> Iterator[int | None]:
        """The file to fill, while it is ours; None: somebody else fills it. It goes unless it got its name."""
        path = self._part_path(sha256)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if not _take(fd, path):
                yield None
                return
            try:
                yield fd
            finally:
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), path.lstat()):
                        path.unlink()
        finally:
            os.close(fd)

    def _make_room(self, needed: int) -> bool:
        """Remove what was used longest ago, and what killed fillers left, until ``needed`` bytes fit."""
        self._sweep()
        if needed > self._size:
            return False
        kept: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.directory):
            if is_sha256(entry.name):
                facts = entry.stat(follow_symlinks=False)
                kept.append((facts.st_mtime, facts.st_blocks * 512, Path(entry.path)))
        used = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if used + needed <= self._size and self._has_free(needed):
                return True
            if self._evict(path):
                used -= size
        return used + needed <= self._size and self._has_free(needed)

    def _has_free(self, needed: int) -> bool:
        facts = os.statvfs(self.directory)
        return facts.f_bavail * facts.f_frsize >= needed + facts.f_blocks * facts.f_frsize // _FREE_PART

    def _evict(self, path: Path) -> bool:
        """Remove a copy unless it is in use."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            if not _take(fd, path):
                return False
            path.unlink()
            LOG.info("removed %s from the node's cache of images", path.name)
            return True
        finally:
            os.close(fd)

    def _sweep(self) -> None:
        for path in self.directory.glob(".*.part"):
            fd = -1
            with suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                if _take(fd, path):
                    path.unlink()
            if fd >= 0:
                os.close(fd)


def _take(fd: int, path: Path) -> bool:
    """Whether the whole lock is ours now, and the name still this file's."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False
