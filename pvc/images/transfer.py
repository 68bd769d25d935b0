# SPDX-License-Identifier: Apache-2.0
"""Bringing files into a repository: checked, hashed, copied, then named all at once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pvc.errors import CommandError, HostError, UsageError
from pvc.files import open_own
from pvc.host import qemuimg
from pvc.images import header
from pvc.images.chain import walk_layers
from pvc.images.foreign import convert, convert_hollow, unpacked
from pvc.images.image import Blob, Format, Image
from pvc.images.store import Session, Store
from pvc.images.streams import Progress, check_space, copy_stream, hash_file, open_source, read_exactly, sync_file
from pvc.parse import parse_name

LOG = logging.getLogger(__name__)

_MAX_BOOT_FILE = 1 << 30
# Kernel command lines: COMMAND_LINE_SIZE is 2048 on x86.
_MAX_APPEND = 2047
_MAX_TEXT = 1000


@dataclass(frozen=True)
class Incoming:
    """What to import: ``source`` is a disk, read as ``format``, or ``foreign`` (see FORMATS), or as its header says."""

    source: Path
    name: str
    format: Format | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    description: str = ""
    owner: str = ""
    hints: dict[str, str] = field(default_factory=dict)
    foreign: str | None = None
    update: bool = False  # of what names itself: also an image that is there already

    @property
    def needs_more(self) -> bool:
        """Whether more is said of the image than its name and owner."""
        said = (self.format, self.foreign, self.kernel, self.initrd, self.append, self.description, self.hints)
        return any(each for each in said)


def import_files(store: Store, incoming: Incoming, progress: Progress, *, reuse: bool = False) -> Image:
    """Copy a disk, and a kernel and an initrd if given, into ``store`` as the next revision of an image.

    A compressed disk is unpacked, one of another hypervisor becomes qcow2. A raw disk stays raw and gets holes
    where it is zero: its checksum stays the one its publisher gives. But one that has gigabytes of holes becomes qcow2.
    ``reuse``: if the newest revision is the same in all that matters, that one is returned.

    :raise UsageError: a source cannot be read or is not what it should be.
    :raise HostError: the repository cannot be written, or is full; it is as before then.
    """
    check_request(incoming)
    with store.session() as session:
        return _import(store, session, incoming, None, progress, reuse=reuse)


def import_own(store: Store, session: Session, incoming: Incoming, disk: Path, progress: Progress) -> Image:
    """The same, of a ``disk`` that is a file of the session; ``incoming.source`` is only what messages call it."""
    check_request(incoming)
    return _import(store, session, incoming, disk, progress, reuse=False)


def _import(
    store: Store, session: Session, incoming: Incoming, own: Path | None, progress: Progress, *, reuse: bool
) -> Image:
    with ExitStack() as opened:
        extra = {
            kind: (path, opened.enter_context(open_source(path)))
            for kind, path in (("kernel", incoming.kernel), ("initrd", incoming.initrd))
            if path is not None
        }
        for kind, (path, stream) in extra.items():
            check_boot_file(kind, path, stream)
        check_space(store, [stream for _, stream in extra.values()])
        facts, blob = _bring_disk(store, session, incoming, own, progress)
        blobs: dict[str, Blob] = {}
        for kind, (source, stream) in extra.items():
            with store.temporary() as (copy, path):
                blobs[kind] = copy_stream(stream, source, copy, False, progress)
                session.add(blobs[kind], path)
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
        return session.commit(image, reuse=reuse)


def _bring_disk(
    store: Store, session: Session, incoming: Incoming, own: Path | None, progress: Progress
) -> tuple[header.HeaderFacts, Blob]:
    """Unpack, convert or copy, whatever is needed, and check the result."""
    source = incoming.source
    with unpacked(store, session, source, progress) if own is None else nullcontext(own) as plain:
        expected = incoming.foreign or incoming.format
        converted = convert(store, session, source, plain, expected, progress) or convert_hollow(
            store, session, source, plain, expected, progress
        )
        ours = converted or (plain if plain != source else None)
        kind = Format.QCOW2 if converted else incoming.format
        with open_source(ours or source) as disk:
            facts = _probe(disk, source, kind)
            if ours is None:
                check_space(store, [disk])
                with store.temporary() as (copy, path):
                    blob = copy_stream(disk, source, copy, facts.format is Format.RAW, progress)
                    check_disk(path, source, facts.format, facts.size)
                    session.add(blob, path)
                return facts, blob
        if facts.format is Format.RAW:
            # QEMU sees whole sectors.
            with os.fdopen(open_own(ours, os.O_RDWR), "r+b") as stream:
                stream.truncate(facts.size)
        blob = hash_file(ours, source.name, progress)
        check_disk(ours, source, facts.format, facts.size)
        sync_file(ours)
        session.add(blob, ours)
        return facts, blob


def check_disk(path: Path, source: Path, kind: Format, size: int, backing: header.Backing | None = None) -> None:
    """Look at the copy of ``source`` that nobody else can change: its header, and the tables of a qcow2.

    ``backing``: what its header must name.

    :raise UsageError: it is not the disk that it was, or damaged.
    """
    with open_source(path) as stream:
        if _probe(stream, source, kind, backing) != header.HeaderFacts(kind, size):
            raise UsageError(f"{source} changed while it was read, or is not what it should be")
        _check_inside(stream.fileno(), source, kind)


def check_request(incoming: Incoming) -> None:
    """Look at what the user said of the image.

    :raise UsageError: something cannot be.
    """
    try:
        parse_name(incoming.name)
    except ValueError as err:
        raise UsageError(str(err)) from None
    if incoming.kernel is None and (incoming.initrd is not None or incoming.append):
        raise UsageError("an initrd and a kernel command line need a kernel (--kernel)")
    try:
        check_texts(incoming.append, incoming.description, incoming.hints)
    except ValueError as err:
        raise UsageError(str(err)) from None


def check_texts(append: str, description: str, hints: dict[str, str]) -> None:
    """What people and kernels will read.

    :raise ValueError: something is too long, or would do something to a terminal.
    """
    if len(append) > _MAX_APPEND or not append.isprintable():
        raise ValueError(f"a kernel command line is one printable line of at most {_MAX_APPEND} characters")
    for text in (description, *hints, *hints.values()):
        if len(text) > _MAX_TEXT or not text.isprintable():
            raise ValueError(f"a description is one printable line of at most {_MAX_TEXT} characters")


def _probe(
    stream: IO[bytes], path: Path, expected: Format | None, backing: header.Backing | None = None
) -> header.HeaderFacts:
    try:
        stream.seek(0)
        head = read_exactly(stream, header.PROBE_SIZE)
        return header.parse_header(head, os.fstat(stream.fileno()).st_size, expected, backing=backing)
    except OSError as err:
        raise UsageError(f"cannot read {path}") from err
    except header.HeaderError as err:
        raise UsageError(f"cannot import {path}: {err}", hint=err.hint) from None


def check_described(image: Image) -> None:
    """Look at a description that came from elsewhere.

    :raise ValueError: what it says could not come from pvc.
    """
    parse_name(image.name)
    check_texts(image.append, image.description, image.hints)
    if image.kernel is None and (image.initrd or image.append):
        raise ValueError(f"{image.name} has an initrd or a command line, but no kernel")


def check_new(store: Store, images: Iterable[Image], source: str) -> None:
    """Whoever made ``source`` chose these names: none of them may become the next revision of what is there.

    :raise UsageError: one would.
    """
    known = store.list_revisions()
    taken = [image.name for image in images if image.name in known]
    if taken:
        raise UsageError(
            f"{source} calls its image {taken[0]}, and {store.name}:{taken[0]} is there",
            hint="templates would boot the new one; if that is meant, say NAME or --update, else another NAME",
        )


def check_layers(session: Session, image: Image, source: Path) -> None:
    """Look at all layers of a disk that were added to a session: each may rest on the next one below, on nothing else.

    :raise UsageError: one is not what the description says, or names other files.
    """
    for layer, backing in walk_layers(image):
        check_disk(session.path_of(layer.blob), source, layer.format, layer.size, backing)


def check_boot_files(session: Session, image: Image, source: Path) -> None:
    """Look at kernel and initrd of an image that were added to a session.

    :raise UsageError: one is something else.
    """
    for kind, blob in (("kernel", image.kernel), ("initrd", image.initrd)):
        if blob is not None:
            with session.path_of(blob).open("rb", buffering=0) as stream:
                check_boot_file(kind, source, stream)


def check_boot_file(kind: str, path: Path, stream: IO[bytes]) -> None:
    """Look at what shall be a kernel or an initrd.

    :raise UsageError: it is something else.
    """
    size = os.fstat(stream.fileno()).st_size
    if not 0 < size <= _MAX_BOOT_FILE:
        raise UsageError(f"{path}: {size} bytes is no {kind}")
    head = read_exactly(stream, 0x206)
    # bzImage (Documentation/arch/x86/boot.rst), an EFI stub, or an ELF kernel for PVH.
    if kind == "kernel" and not (head[0x202:] == b"HdrS" or head[:2] == b"MZ" or head[:4] == b"\x7fELF"):
        raise UsageError(f"{path} is not a Linux kernel (bzImage, EFI stub or ELF)")


def _check_inside(fd: int, source: Path, kind: Format) -> None:
    """Have qemu-img walk the tables of a qcow2 copy whose header was found harmless.

    Not of a file that was in the repository before: it is another user's, who can change its header again.
    """
    if kind is not Format.QCOW2 or not qemuimg.is_own(fd):
        return
    try:
        problem = qemuimg.find_damage(fd, kind)
    except CommandError:
        raise
    except HostError as err:
        LOG.warning("%s was imported by its header alone: %s", source, err)
        return
    if problem:
        raise UsageError(f"cannot import {source}: {problem}", hint="fetch it again, or: qemu-img check -r all SRC")
