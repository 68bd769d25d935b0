# SPDX-License-Identifier: Apache-2.0
"""Images made of images: under another name, in another repository, with a larger disk."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path

from pvc.errors import GuestError, HostError, UsageError
from pvc.files import open_own
from pvc.host import qemuimg
from pvc.images import header
from pvc.images.chain import find_wrong_header
from pvc.images.image import Blob, Format, Image
from pvc.images.store import Session, Store
from pvc.images.streams import Progress, check_space, copy_stream, hash_file


def copy_image(source: Store, image: Image, target: Store, name: str, owner: str, progress: Progress) -> Image:
    """Make ``image`` the next revision of ``name`` in ``target``; files that it has already are not copied.

    :raise GuestError: a file of the image is missing or damaged.
    :raise HostError: a repository cannot be read or written; the target is as before then.
    """
    with target.session() as session, ExitStack() as opened:
        missing = [blob for blob in dict.fromkeys(image.blobs) if not session.claim(blob)]
        check_space(target, [opened.enter_context(open_blob(source, image, blob)) for blob in missing])
        for blob in missing:
            copy_blob(source, image, blob, target, session, progress)
        return session.commit(replace(image, name=name, revision=1, created=time.time(), owner=owner))


def open_blob(store: Store, image: Image, blob: Blob) -> FileIO:
    """A file of an image, to read.

    :raise GuestError: it cannot be opened.
    """
    try:
        return FileIO(store.blob_path(blob))
    except OSError as err:
        raise GuestError(f"image {store.name}:{image} cannot be read") from err


def copy_blob(source: Store, image: Image, blob: Blob, target: Store, session: Session, progress: Progress) -> None:
    """Add a file of ``image`` to a session of another repository.

    :raise GuestError: it cannot be read, or is damaged.
    :raise OSError: it cannot be written.
    """
    sparse = image.is_raw(blob)
    with target.temporary() as (stream, path), open_blob(source, image, blob) as content:
        try:
            copied = copy_stream(content, source.blob_path(blob), stream, sparse, _labelled(progress, image))
        except UsageError as err:
            raise GuestError(f"image {source.name}:{image} cannot be read") from err
        if copied != blob:
            raise GuestError(
                f"image {source.name}:{image} is damaged: {source.blob_path(blob)} is not what its name says",
                hint=f"see pvc image verify {source.name}:{image}",
            )
        session.add(blob, path)


def _labelled(progress: Progress, image: Image) -> Progress:
    return lambda _, done, total: progress(str(image), done, total)


def resize_image(store: Store, image: Image, size: int, owner: str, progress: Progress) -> Image:
    """Make ``image`` with a disk of ``size`` bytes (rounded up to a sector) its next revision.

    :raise UsageError: ``size`` is not larger, or absurd.
    :raise GuestError: the disk is missing or damaged.
    :raise HostError: the repository cannot be written; it is as before then.
    """
    size = -(-size // header.SECTOR) * header.SECTOR
    if size <= image.size:
        raise UsageError(
            f"image {store.name}:{image} has a disk of {image.size} bytes already: it can only grow",
            hint="a smaller disk would cut off the end of its file systems; "
            "copy what they hold to a new, smaller image instead",
        )
    if size > header.MAX_DISK:
        raise UsageError(f"a disk of {size} bytes is absurd (at most {header.MAX_DISK >> 40} TiB)")
    with store.session() as session:
        path = session.work_path("resize")
        with open_blob(store, image, image.disk) as content:
            check_space(store, [content])
            _copy_whole(store, image, content, path, progress)
        _grow(path, image.format, size)
        blob = hash_file(path, str(image), progress)
        larger = replace(image, revision=1, created=time.time(), owner=owner, size=size, disk=blob)
        problem = find_wrong_header(larger, lambda each: path if each == blob else store.blob_path(each))
        if problem:
            raise HostError(f"the disk is not what it should be after it was resized: {problem}")
        session.add(blob, path)
        for other in image.blobs:
            if not session.has(other) and other != image.disk and not session.claim(other):
                raise GuestError(f"image {store.name}:{image} is damaged: {store.blob_path(other)} is missing")
        return session.commit(larger)


def _copy_whole(store: Store, image: Image, content: FileIO, path: Path, progress: Progress) -> None:
    with path.open("xb", buffering=0) as stream:
        try:
            sparse = image.format is Format.RAW
            copied = copy_stream(content, path, stream, sparse, _labelled(progress, image))
        except UsageError as err:
            raise GuestError(f"image {store.name}:{image} cannot be read") from err
    if copied != image.disk:
        raise GuestError(
            f"image {store.name}:{image} is damaged: {store.blob_path(image.disk)} is not what its name says",
            hint=f"see pvc image verify {store.name}:{image}",
        )


def _grow(path: Path, kind: Format, size: int) -> None:
    fd = open_own(path, os.O_RDWR)
    try:
        if kind is Format.RAW:
            os.ftruncate(fd, size)
        else:
            qemuimg.resize(fd, kind, size)
        os.fsync(fd)
    finally:
        os.close(fd)
