"""Bringing files into a repository: checked, hashed, copied, then named all at once."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pvc.errors import CommandError, HostError, UsageError
from pvc.host import qemuimg
from pvc.images import header
from pvc.images.image import Blob, Format, Image
from pvc.images.store import Store
from pvc.parse import parse_name

LOG = logging.getLogger(__name__)

_CHUNK = 4 << 20
_HOLE = 64 << 10
_ZEROS = bytes(_HOLE)
_MAX_BOOT_FILE = 1 << 30
# Kernel command lines: COMMAND_LINE_SIZE is 2048 on x86.
_MAX_APPEND = 2047

# Called with what is being done, bytes done and bytes in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Incoming:
    """What to import: ``source`` is a disk, read as ``format`` or, when None, as its header says."""

    source: Path
    name: str
    format: Format | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    description: str = ""
    owner: str = ""
    hints: dict[str, str] = field(default_factory=dict)


def import_files(store: Store, incoming: Incoming, progress: Progress, *, reuse: bool = False) -> Image:
    """Copy a disk, and a kernel and an initrd if given, into ``store`` as the next revision of an image.

    A raw disk stays raw and gets holes where it is zero: its checksum stays the one its publisher gives.
    ``reuse``: if the newest revision is the same in all that matters, that one is returned.

    :raise UsageError: a source cannot be read or is not what it should be.
    :raise HostError: the repository cannot be written, or is full; it is as before then.
    """
    _check_request(incoming)
    with ExitStack() as opened:
        disk = opened.enter_context(_open_source(incoming.source))
        facts = _probe(disk, incoming.source, incoming.format)
        extra = {
            kind: (path, opened.enter_context(_open_source(path)))
            for kind, path in (("kernel", incoming.kernel), ("initrd", incoming.initrd))
            if path is not None
        }
        for kind, (path, stream) in extra.items():
            _check_boot_file(kind, path, stream)
        _check_space(store, [disk, *(stream for _, stream in extra.values())])
        contents: dict[str, Path] = {}
        copy, path = opened.enter_context(store.temporary())
        blob = _copy(disk, incoming.source, copy, facts.format is Format.RAW, progress)
        contents[blob.sha256] = path
        if _probe(copy, incoming.source, facts.format) != facts:
            raise UsageError(f"{incoming.source} changed while it was read")
        _check_inside(path, incoming.source, facts.format)
        blobs: dict[str, Blob] = {}
        for kind, (source, stream) in extra.items():
            copy, path = opened.enter_context(store.temporary())
            blobs[kind] = _copy(stream, source, copy, False, progress)
            contents[blobs[kind].sha256] = path
        image = Image(
            name=incoming.name,
            revision=1,
            created=time.time(),
            owner=incoming.owner,
            format=facts.format,
            size=facts.size,
            disk=blob,
            kernel=blobs.get("kernel"),
            initrd=blobs.get("initrd"),
            append=incoming.append,
            description=incoming.description,
            hints=incoming.hints,
        )
        return store.publish(image, contents, reuse=reuse)


def _check_request(incoming: Incoming) -> None:
    try:
        parse_name(incoming.name)
    except ValueError as err:
        raise UsageError(str(err)) from None
    if incoming.kernel is None and (incoming.initrd is not None or incoming.append):
        raise UsageError("an initrd and a kernel command line need a kernel (--kernel)")
    if len(incoming.append) > _MAX_APPEND or not incoming.append.isprintable():
        raise UsageError(f"a kernel command line is one printable line of at most {_MAX_APPEND} characters")


@contextmanager
def _open_source(path: Path) -> Iterator[IO[bytes]]:
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


def _probe(stream: IO[bytes], path: Path, expected: Format | None) -> header.HeaderFacts:
    try:
        stream.seek(0)
        head = _read_exactly(stream, header.PROBE_SIZE)
        return header.parse_header(head, os.fstat(stream.fileno()).st_size, expected)
    except OSError as err:
        raise UsageError(f"cannot read {path}") from err
    except header.HeaderError as err:
        raise UsageError(f"cannot import {path}: {err}", hint=err.hint) from None


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    """``size`` bytes, or all up to the end of the file."""
    parts: list[bytes] = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _check_boot_file(kind: str, path: Path, stream: IO[bytes]) -> None:
    size = os.fstat(stream.fileno()).st_size
    if not 0 < size <= _MAX_BOOT_FILE:
        raise UsageError(f"{path}: {size} bytes is no {kind}")
    head = _read_exactly(stream, 0x206)
    # bzImage (Documentation/arch/x86/boot.rst), an EFI stub, or an ELF kernel for PVH.
    if kind == "kernel" and not (head[0x202:] == b"HdrS" or head[:2] == b"MZ" or head[:4] == b"\x7fELF"):
        raise UsageError(f"{path} is not a Linux kernel (bzImage, EFI stub or ELF)")


def _check_space(store: Store, streams: list[IO[bytes]]) -> None:
    """Say it before copying for minutes; the copy itself finds it again if others fill the disk meanwhile."""
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


def _copy(source: IO[bytes], path: Path, target: IO[bytes], sparse: bool, progress: Progress) -> Blob:
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
        _write(target, chunk, sparse)
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


def _write(target: IO[bytes], chunk: bytes, sparse: bool) -> None:
    if not sparse:
        _write_all(target, chunk)
        return
    for at in range(0, len(chunk), _HOLE):
        piece = chunk[at : at + _HOLE]
        if piece == _ZEROS[: len(piece)]:
            target.seek(len(piece), os.SEEK_CUR)
        else:
            _write_all(target, piece)


def _write_all(target: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = target.write(view)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = view[written:]


def _check_inside(path: Path, source: Path, kind: Format) -> None:
    """Have qemu-img walk the tables of a qcow2 copy whose header was found harmless."""
    if kind is not Format.QCOW2:
        return
    try:
        problem = qemuimg.find_damage(path, kind)
    except CommandError:
        raise
    except HostError as err:
        LOG.warning("%s was imported by its header alone: %s", source, err)
        return
    if problem:
        raise UsageError(f"cannot import {source}: {problem}", hint="fetch it again, or: qemu-img check -r all SRC")
