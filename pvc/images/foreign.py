# SPDX-License-Identifier: Apache-2.0
"""Files that pvc does not store as they are: compressed ones, and disks of other hypervisors.

What is unpacked or converted is a file of the session, so it goes with it. Headers are read here first: a VMDK
can name other files of the host, as a qcow2 can, and qemu-img would copy their content into the image.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pvc import run
from pvc.errors import CommandError, HostError, UsageError
from pvc.files import open_own
from pvc.host import qemuimg
from pvc.host.exitcodes import Outcome, explain, judge
from pvc.images import header
from pvc.images.image import Format
from pvc.images.store import Session, Store
from pvc.images.streams import Progress, check_space, copy_stream, open_source, read_exactly, write_sparse
from pvc.texts import clean_text

LOG = logging.getLogger(__name__)

FORMATS = ("vmdk", "vdi", "vhdx", "vpc")
_CHUNK = 4 << 20
# The most that a decompressor may take for its window.
_UNPACKERS: tuple[tuple[bytes, tuple[str, ...]], ...] = (
    (b"\x28\xb5\x2f\xfd", ("zstd", "-q", "-dc", "--memory=512MB")),
    (b"\xfd7zXZ\x00", ("xz", "-dc", "--memlimit=512MiB")),
    (b"\x1f\x8b", ("gzip", "-dc")),
)
# QEMU looks for a descriptor here, and in 20 sectors from here for a parent (block/vmdk.c).
_VMDK_SCAN = 512 + 40 * 512
_VHD_FOOTER = struct.Struct(">8sIIQI4sI4sQQIIII")
_VHD_FIXED, _VHD_DYNAMIC = 2, 3
_VDI_DYNAMIC, _VDI_FIXED = 1, 2
_MAKE_ONE = "qemu-img convert -O qcow2 SRC DEST"
# Zeros of a raw disk that are worth reading, for a checksum like its publisher's: some seconds' work.
_MOST_ZEROS = 4 << 30


def find_unpacker(head: bytes) -> tuple[str, ...] | None:
    """The command that decompresses a file that begins so."""
    return next((argv for magic, argv in _UNPACKERS if head.startswith(magic)), None)


def parse_foreign(head: bytes, tail: bytes) -> str | None:
    """The format of a disk that can be converted; None when it is none of FORMATS. Pure.

    ``head``: the first header.PROBE_SIZE bytes of the file, ``tail``: its last 512.

    :raise HeaderError: it needs other files, or is absurd.
    """
    if head.startswith(b"KDMV"):
        _check_vmdk(head)
        return "vmdk"
    if head.startswith((b"COWD", b"# Disk DescriptorFile")):
        raise header.HeaderError("it is a VMDK in several files", "make it one: qemu-img convert -O qcow2 SRC DEST")
    if head[64:68] == b"\x7f\x10\xda\xbe":
        _check_vdi(head)
        return "vdi"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head.startswith(b"conectix") or tail.startswith(b"conectix"):
        _check_vhd(tail if tail.startswith(b"conectix") else head)
        return "vpc"
    return None


def _check_vmdk(head: bytes) -> None:
    if len(head) < 1024:
        raise header.HeaderError("its VMDK header is cut off")
    capacity = struct.unpack_from("<Q", head, 12)[0]
    if capacity == 0:
        # QEMU then takes the embedded text for a list of other files.
        raise header.HeaderError("it is a VMDK in several files", "make it one: qemu-img convert -O qcow2 SRC DEST")
    text = struct.unpack_from("<Q", head, 28)[0] * header.SECTOR
    if not text or head[text : text + 1] == b"\0":
        # Without a description of itself it is an extent, of which a descriptor elsewhere speaks.
        raise header.HeaderError(
            "it is a part of a VMDK in several files", "make all of it one, by its small .vmdk: " + _MAKE_ONE
        )
    if b"parentfilenamehint" in head[:_VMDK_SCAN].lower():
        raise header.HeaderError("it needs a parent image", "flatten it: qemu-img convert -O qcow2 SRC DEST")
    header.check_size(capacity * header.SECTOR)


def _check_vdi(head: bytes) -> None:
    if len(head) < 512:
        raise header.HeaderError("its VDI header is cut off")
    kind = struct.unpack_from("<I", head, 76)[0]
    if kind not in (_VDI_DYNAMIC, _VDI_FIXED) or any(head[424:456]):
        raise header.HeaderError("it needs a parent image", "flatten it: qemu-img convert -O qcow2 SRC DEST")
    header.check_size(struct.unpack_from("<Q", head, 368)[0])


def _check_vhd(footer: bytes) -> None:
    fields = _VHD_FOOTER.unpack_from(footer.ljust(_VHD_FOOTER.size, b"\0"))
    if fields[11] not in (_VHD_FIXED, _VHD_DYNAMIC):
        raise header.HeaderError("it needs a parent image", "flatten it: qemu-img convert -O qcow2 SRC DEST")
    header.check_size(fields[9])


_OWN_NAMES = re.compile(r"'?(?:json:\{.*\}|/proc/self/fd/\d+)'?")


@contextmanager
def unpacked(store: Store, session: Session, source: Path, progress: Progress) -> Iterator[Path]:
    """``source``, or what it is when it is decompressed.

    :raise UsageError: it cannot be read, or is damaged.
    :raise HostError: it does not fit into the repository, or the command is missing.
    """
    with open_source(source) as stream:
        argv = find_unpacker(stream.read(16))
        if argv is None:
            yield source
            return
        target = session.work_path("unpacked")
        with target.open("xb", buffering=0) as output, store.explained("write to"):
            _unpack(argv, stream, source, output, progress)
    yield target


def _unpack(argv: tuple[str, ...], stream: IO[bytes], source: Path, target: IO[bytes], progress: Progress) -> None:
    stream.seek(0)
    total = os.fstat(stream.fileno()).st_size
    progress(source.name, 0, total)
    with reading_command(argv, stream) as pipe:
        size = 0
        while chunk := pipe.read(_CHUNK):
            size += len(chunk)
            if size > header.MAX_DISK:
                raise UsageError(f"{source} unpacks to more than {header.MAX_DISK >> 40} TiB")
            write_sparse(target, chunk)
            # The command reads through the descriptor that we have.
            progress(source.name, min(os.lseek(stream.fileno(), 0, os.SEEK_CUR), total - 1), total)
        target.truncate(size)
    progress(source.name, total, total)


@contextmanager
def reading_command(argv: tuple[str, ...], stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The output of a command that reads ``stream``; it must end well when all was read, and its warnings are told.

    :raise UsageError: it said that its input is damaged.
    :raise HostError: there is no such command.
    """
    process = run.spawn(argv, stdin=stream, stdout=run.PIPE, stderr=run.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield process.stdout
        process.stdout.close()
        said = clean_text(process.stderr.read(4096).decode(errors="replace").strip().rpartition("\n")[2])
        outcome = judge(argv[0], process.wait())
        if outcome is Outcome.FAILED:
            raise UsageError(f"cannot unpack it with {argv[0]}: {said or explain(argv[0], process.returncode)}")
        if outcome is Outcome.WARNED:
            LOG.warning("%s, which unpacked it, warns: %s", argv[0], said or explain(argv[0], process.returncode))
    finally:
        process.stdout.close()
        process.stderr.close()
        process.kill()
        process.wait()


def convert(
    store: Store, session: Session, source: Path, path: Path, expected: str | None, progress: Progress
) -> Path | None:
    """``path`` as a qcow2 file of the session; None where it is no disk of another hypervisor.

    ``source`` is what the user has named. qemu-img gets a copy that nobody else can change after the check.

    :raise UsageError: it is not in the ``expected`` format, needs other files, or is damaged.
    :raise HostError: the repository is full, or there is no qemu-img.
    """
    kind = _probe(path, source, expected)
    if kind is None:
        return None
    target = session.work_path("converted")
    with store.explained("write to"):
        if path == source:
            path = session.work_path("copied")
            with open_source(source) as stream, path.open("xb", buffering=0) as output:
                check_space(store, [stream])
                copy_stream(stream, source, output, False, progress)
        facts, label = os.statvfs(store.path), f"{source.name} to qcow2"
        try:
            with os.fdopen(open_own(path), "rb") as stream:
                # The owner of the repository can exchange files in it: what qemu-img reads is looked at.
                if _probe_open(stream, source, expected) != kind:
                    raise UsageError(f"{source} changed while it was read")
                size = os.fstat(stream.fileno()).st_size
                qemuimg.convert_foreign(
                    stream.fileno(), kind, target, most=facts.f_bavail * facts.f_frsize,
                    progress=lambda percent: progress(label, size * percent // 100, size),
                )  # fmt: skip
        except CommandError as err:
            if "No space left" in err.stderr or "File too large" in err.stderr or "quota" in err.stderr:
                raise HostError(
                    f"{store.path} has too little space for {source} as qcow2",
                    hint=f"free space below {store.path}, or delete images: pvc image delete",
                ) from err
            last = err.stderr.strip().splitlines()[-1:] or ["no message"]
            # It knows the file by a name that means nothing to anybody else.
            said = _OWN_NAMES.sub("it", last[0])
            raise UsageError(f"cannot import {source}: qemu-img says: {said}") from None
    return target


def convert_hollow(
    store: Store, session: Session, source: Path, path: Path, expected: str | None, progress: Progress
) -> Path | None:
    """``path`` as a qcow2 file of the session, where it is a raw disk that is mostly holes; None where it is not.

    As raw it would have to be read to its end for its checksum: an empty disk of terabytes for hours.

    :raise UsageError: it is no disk.
    :raise HostError: the repository is full.
    """
    with open_source(path) as stream:
        facts = os.fstat(stream.fileno())
        zeros = facts.st_size - facts.st_blocks * 512
        if zeros < max(_MOST_ZEROS, facts.st_size // 2) or expected not in (None, "raw"):
            return None
        kind = Format.RAW if expected else None
        try:
            found = header.parse_header(read_exactly(stream, header.PROBE_SIZE), facts.st_size, kind)
        except header.HeaderError as err:
            raise UsageError(f"cannot import {source}: {err}", hint=err.hint) from None
        if found.format is not Format.RAW or shutil.which("qemu-img") is None:
            return None
        check_space(store, [stream])
        target, size = session.work_path("converted"), facts.st_blocks * 512
        with store.explained("write to"):
            room, label = os.statvfs(store.path), f"{source.name} to qcow2"
            try:
                # No header of it is read, so nobody can put one there meanwhile.
                qemuimg.convert_foreign(
                    stream.fileno(), "raw", target, most=room.f_bavail * room.f_frsize,
                    progress=lambda percent: progress(label, max(1, size) * percent // 100, max(1, size)),
                )  # fmt: skip
            except CommandError as err:
                raise HostError(f"cannot import {source} into {store.path}: qemu-img failed") from err
    return target


def _probe(path: Path, source: Path, expected: str | None) -> str | None:
    with open_source(path) as stream:
        return _probe_open(stream, source, expected)


def _probe_open(stream: IO[bytes], source: Path, expected: str | None) -> str | None:
    head = read_exactly(stream, header.PROBE_SIZE)
    stream.seek(max(0, os.fstat(stream.fileno()).st_size - 512))
    tail = read_exactly(stream, 512)
    if expected not in (None, *FORMATS):
        return None
    try:
        kind = parse_foreign(head, tail)
    except header.HeaderError as err:
        raise UsageError(f"cannot import {source}: {err}", hint=err.hint) from None
    if expected is not None and kind != expected:
        raise UsageError(f"cannot import {source}: it has no {expected} header", hint="leave -t away")
    return kind
