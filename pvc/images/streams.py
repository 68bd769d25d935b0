# SPDX-License-Identifier: Apache-2.0
"""Copying and hashing, with progress."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pvc.errors import HostError, UsageError
from pvc.images import header
from pvc.images.image import Blob
from pvc.images.store import Store

_CHUNK = 4 << 20
_HOLE = 64 << 10
_ZEROS = bytes(_HOLE)

# Called with what is being done, bytes done and bytes in all: 0 begins, all ends.
Progress = Callable[[str, int, int], None]


@contextmanager
def open_source(path: Path) -> Iterator[IO[bytes]]:
    """A file to import.

    :raise UsageError: it cannot be read, or is none.
    """
    try:
        # A FIFO must not hold us up; O_NONBLOCK does nothing to a file.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise UsageError(f"cannot read {path}") from err
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is not a file")
    with os.fdopen(fd, "rb", buffering=0) as stream:
        yield stream


def read_exactly(stream: IO[bytes], size: int) -> bytes:
    """``size`` bytes, or all up to the end of the file."""
    parts: list[bytes] = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def check_space(store: Store, streams: Sequence[IO[bytes]]) -> None:
    """Say it before copying for minutes; the copy itself finds it again if others fill the disk meanwhile.

    :raise HostError: what is free is too little for all ``streams``.
    """
    try:
        facts = os.statvfs(store.path)
    except OSError as err:
        raise HostError(f"cannot write to the image repository {store.name!r}") from err
    needed = sum(min(info.st_size, info.st_blocks * 512) for info in (os.fstat(s.fileno()) for s in streams))
    free = facts.f_bavail * facts.f_frsize
    if needed > free:
        raise HostError(
            f"{store.path} has {free >> 20} MiB free; the image needs {needed >> 20} MiB",
            hint=f"free space below {store.path}, or delete images: pvc image delete",
        )


def copy_stream(source: IO[bytes], path: Path, target: IO[bytes], sparse: bool, progress: Progress) -> Blob:
    """Copy to the end, hash what is copied, and bring it to the disk; ``sparse`` leaves holes for zeros.

    :raise UsageError: the source cannot be read, or changes its size meanwhile.
    :raise OSError: the target cannot be written.
    """
    digest = hashlib.sha256()
    total = os.fstat(source.fileno()).st_size
    done = 0
    _rewind(source, path)
    progress(path.name, 0, total)
    while chunk := _read_source(source, path):
        digest.update(chunk)
        write_sparse(target, chunk) if sparse else write_all(target, chunk)
        done += len(chunk)
        progress(path.name, done, total)
    if done != total:
        raise UsageError(f"{path} changed while it was read ({total} bytes, then {done})")
    if sparse and done % header.SECTOR:
        # QEMU sees whole sectors.
        padding = bytes(-done % header.SECTOR)
        digest.update(padding)
        done += len(padding)
    target.truncate(done)
    os.fsync(target.fileno())
    return Blob(digest.hexdigest(), done)


def hash_file(path: Path, label: str, progress: Progress) -> Blob:
    """What a file of ours contains.

    :raise OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        total, done = os.fstat(stream.fileno()).st_size, 0
        progress(label, 0, total)
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            # A file that grows meanwhile is not whole either.
            progress(label, min(done, total), total)
    return Blob(digest.hexdigest(), done)


def sync_file(path: Path) -> None:
    """Bring a file that another program wrote to the disk.

    :raise OSError: it cannot be.
    """
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _rewind(source: IO[bytes], path: Path) -> None:
    try:
        source.seek(0)
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    except OSError as err:
        raise UsageError(f"cannot read {path}") from err


def _read_source(source: IO[bytes], path: Path) -> bytes:
    try:
        return source.read(_CHUNK)
    except OSError as err:
        raise UsageError(f"cannot read {path}") from err


def write_sparse(target: IO[bytes], chunk: bytes) -> None:
    """Write ``chunk`` with holes where it is zero; at the end the file must be given its size."""
    for at in range(0, len(chunk), _HOLE):
        piece = chunk[at : at + _HOLE]
        if piece == _ZEROS[: len(piece)]:
            target.seek(len(piece), os.SEEK_CUR)
        else:
            write_all(target, piece)


def write_all(target: IO[bytes], data: bytes) -> None:
    """Write all of ``data``; an unbuffered write may take less.

    :raise OSError: the disk is full.
    """
    view = memoryview(data)
    while view:
        written = target.write(view)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = view[written:]
