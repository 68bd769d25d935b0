# SPDX-License-Identifier: Apache-2.0
"""The disk of an image as one file in a format of qemu-img's, for other hypervisors and sites."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pvc.errors import CommandError, GuestError, HostError, UsageError
from pvc.host import qemuimg
from pvc.images.image import Image
from pvc.images.opened import private_layers
from pvc.images.repository import FoundImage, Repositories
from pvc.images.resolve import name_files
from pvc.images.store import Store
from pvc.images.streams import Progress
from pvc.images.workdir import work_directory

_CHUNK = 4 << 20
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
# In the target's directory, as they belong onto its file system: the next export there finds those of the dead.
_WORK = ".pvc-export-"
_FULL = ("No space left", "File too large", "quota", "Disk quota")


def export_disk(
    repositories: Repositories, found: FoundImage, target: Path, kind: str, progress: Progress, *, force: bool = False
) -> None:
    """Write the disk of an image, all its layers as one, to ``target`` in the format ``kind``; it appears complete.

    ``force``: another file of that name goes when the new one is there.

    :raise UsageError: ``target`` exists, or cannot be written there; the format has no room for such a disk.
    :raise GuestError: the image is damaged, or names files that are not its own.
    :raise HostError: the disk is full, or there is no qemu-img.
    """
    check_target(target, force=force)
    repositories.verify(found)
    store = repositories.store(found.repository)
    with ExitStack() as exits:
        work = exits.enter_context(_working_beside(target))
        directory = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        exits.callback(os.close, directory)
        with _explained(target, found, kind):
            layers = private_layers(name_files(store, found.image), work, exits)
            _check_content(store, found.image, [fd for fd, _ in layers], progress)
            name = target.name if _PLAIN.fullmatch(target.name) else f"disk.{kind}"
            size = found.image.size
            qemuimg.export(
                layers, directory, name, kind, lambda percent: progress(str(found.image), size * percent // 100, size)
            )
            _appear(directory, name, target, force=force)


def check_target(target: Path, *, force: bool) -> None:
    """:raise UsageError: nothing can or may be written there."""
    if not target.absolute().parent.is_dir():
        raise UsageError(f"cannot write {target}: there is no directory {target.absolute().parent}")
    if not os.path.lexists(target):
        return
    if not stat.S_ISREG(os.lstat(target).st_mode):
        raise UsageError(f"{target} exists, and is no file", hint="choose another name")
    if not force:
        raise UsageError(f"{target} exists", hint="remove it first, choose another name, or say --force")


@contextmanager
def _working_beside(target: Path) -> Iterator[Path]:
    try:
        with work_directory(_WORK, target.absolute().parent) as work:
            yield work
    except HostError as err:
        if isinstance(err.__cause__, PermissionError):
            raise UsageError(f"cannot write {target}: {err.__cause__.strerror}") from None
        raise


@contextmanager
def _explained(target: Path, found: FoundImage, kind: str) -> Iterator[None]:
    try:
        yield
    except CommandError as err:
        if any(words in err.stderr for words in _FULL):
            raise _no_room(target) from err
        said = err.stderr.strip().splitlines()[-1:] or ["no message"]
        # qemu-img knows files by names that mean nothing to anybody else.
        words = re.sub(r"'?(?:json:\{.*\}|/proc/self/fd/\d+)'?", "it", said[0])
        raise UsageError(f"cannot write {found.uri} as {kind}: qemu-img says: {words}") from None
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(target) from err
        raise HostError(f"cannot write {target}") from err


def _no_room(target: Path) -> HostError:
    return HostError(f"there is too little space for {target}", hint="free space there, or write elsewhere")


def _check_content(store: Store, image: Image, fds: Sequence[int], progress: Progress) -> None:
    """A damaged disk would be one in any format, and nobody could tell any more.

    :raise GuestError: a file is not what its name says.
    """
    for layer, fd in zip(image.layers, fds, strict=True):
        digest, done = hashlib.sha256(), 0
        progress(f"check of {image}", 0, layer.blob.size)
        while chunk := os.pread(fd, _CHUNK, done):
            digest.update(chunk)
            done += len(chunk)
            progress(f"check of {image}", min(done, layer.blob.size), layer.blob.size)
        if (digest.hexdigest(), done) != (layer.blob.sha256, layer.blob.size):
            raise GuestError(
                f"image {store.name}:{image} is damaged: {store.blob_path(layer.blob)} is not what its name says",
                hint=f"see pvc image verify {store.name}:{image}",
            )


def _appear(directory: int, name: str, target: Path, *, force: bool) -> None:
    """Give the file of the open ``directory`` its own name, once it is on the disk.

    :raise UsageError: there is one of that name by now.
    :raise OSError: it cannot be written.
    """
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    if force:
        os.rename(name, target, src_dir_fd=directory)
        return
    try:
        os.link(name, target, src_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        raise UsageError(f"{target} exists", hint="another command has made it meanwhile") from None
    except OSError:
        # A file system without hard links.
        if os.path.lexists(target):
            raise UsageError(f"{target} exists", hint="another command has made it meanwhile") from None
        os.rename(name, target, src_dir_fd=directory)
    else:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
