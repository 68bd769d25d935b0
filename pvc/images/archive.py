# SPDX-License-Identifier: Apache-2.0
"""Images as one file: a tar archive of ``pvc-image.json`` and then each file as ``data/SHA256``, maybe in zstd.

tar(1) and zstd(1) can look inside. Reading takes nothing but that, in that order: the archive may be hostile.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pvc import codec, run
from pvc.errors import GuestError, HostError, PvcError, UsageError
from pvc.host.exitcodes import Outcome, explain, judge
from pvc.images import header
from pvc.images.appear import appearing
from pvc.images.foreign import find_unpacker, reading_command
from pvc.images.image import Blob, Image
from pvc.images.store import Session, Store
from pvc.images.streams import Progress, open_source, read_exactly, write_sparse
from pvc.images.transfer import check_boot_files, check_described, check_layers, check_new

VERSION = 1
_MANIFEST = "pvc-image.json"
_MAX_MANIFEST = 1 << 20
_BLOCK = 512
# tar(1) fills up with zeros, usually to 10 KiB.
_MAX_REST = 1 << 20
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Manifest:
    """What an archive begins with."""

    version: int
    images: tuple[Image, ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All files, in the order in which they follow."""
        return tuple(dict.fromkeys(blob for image in self.images for blob in image.blobs))


# --- writing


def export_images(
    found: Sequence[tuple[Store, Image]], target: Path, progress: Progress, *, force: bool = False
) -> None:
    """Write images to ``target``, compressed if its name ends in ".zst"; it appears when it is complete.

    ``force``: another file of that name goes then.

    :raise UsageError: ``target`` exists, or cannot be written there.
    :raise GuestError: an image is damaged.
    :raise HostError: the disk is full.
    """
    if target.exists() and not (force and target.is_file()):
        raise UsageError(f"{target} exists", hint="remove it first, choose another name, or say --force for a file")
    with appearing(target, replace=force) as stream:
        with _compressing(stream, target) as output:
            _write_images(found, output, progress)
        stream.flush()
        os.fsync(stream.fileno())


def write_images(found: Sequence[tuple[Store, Image]], output: IO[bytes], progress: Progress) -> None:
    """Write images into a stream, one that need not be a file.

    :raise GuestError: an image is damaged.
    :raise HostError: it takes no more.
    :raise BrokenPipeError: its reader has gone.
    """
    try:
        _write_images(found, output, progress)
        output.flush()
    except BrokenPipeError:
        raise
    except OSError as err:
        raise HostError("cannot write the archive") from err


@contextmanager
def _compressing(stream: IO[bytes], target: Path) -> Iterator[IO[bytes]]:
    if target.suffix != ".zst":
        yield stream
        return
    process = run.spawn(["zstd", "-q", "-c", "-T0"], stdin=run.PIPE, stdout=stream, stderr=run.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        failed: OSError | None = None
        try:
            yield process.stdin
            process.stdin.close()
        except BrokenPipeError as err:
            failed = err
        said = process.stderr.read(4096).decode(errors="replace").strip()
        if judge("zstd", process.wait()) is Outcome.FAILED or failed:
            last = said.splitlines()[-1] if said else explain("zstd", process.returncode)
            raise HostError(f"cannot write {target}: {last}", hint="free space there, or write elsewhere")
    finally:
        with suppress(OSError):
            process.stdin.close()
        process.stderr.close()
        process.kill()
        process.wait()


def _write_images(found: Sequence[tuple[Store, Image]], output: IO[bytes], progress: Progress) -> None:
    owners = {blob: (store, image) for store, image in found for blob in image.blobs}
    _write_archive(output, Manifest(VERSION, tuple(image for _, image in found)), owners, progress)


def _write_archive(
    output: IO[bytes], manifest: Manifest, owners: dict[Blob, tuple[Store, Image]], progress: Progress
) -> None:
    content = codec.dumps(manifest).encode() + b"\n"
    _write_member(output, _MANIFEST, len(content))
    _write_padded(output, content)
    for blob in manifest.blobs:
        store, image = owners[blob]
        _write_member(output, f"data/{blob.sha256}", blob.size)
        _write_blob(output, store, image, blob, progress)
    output.write(bytes(2 * _BLOCK))


def _write_member(output: IO[bytes], name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    output.write(info.tobuf(tarfile.GNU_FORMAT))


def _write_padded(output: IO[bytes], content: bytes) -> None:
    output.write(content + bytes(-len(content) % _BLOCK))


def _write_blob(output: IO[bytes], store: Store, image: Image, blob: Blob, progress: Progress) -> None:
    path, digest, done = store.blob_path(blob), hashlib.sha256(), 0
    try:
        stream = io.FileIO(path)
    except OSError as err:
        raise GuestError(f"image {store.name}:{image} cannot be read") from err
    with stream:
        progress(str(image), 0, blob.size)
        while done < blob.size and (chunk := stream.read(min(_CHUNK, blob.size - done))):
            digest.update(chunk)
            output.write(chunk)
            done += len(chunk)
            progress(str(image), done, blob.size)
    if Blob(digest.hexdigest(), done) != blob:
        raise GuestError(
            f"image {store.name}:{image} is damaged: {path} is not what its name says",
            hint=f"see pvc image verify {store.name}:{image}",
        )
    output.write(bytes(-done % _BLOCK))


# --- reading


def is_archive(path: Path) -> bool:
    """Whether a file that was found to be a tar archive, or compressed, begins as ``export_images`` writes it.

    :raise UsageError: it cannot be read or unpacked.
    """
    with open_source(path) as stream:
        head = read_exactly(stream, _BLOCK)
        argv = find_unpacker(head)
        if argv is None:
            return _is_first(head)
        stream.seek(0)
        # Stopped in the middle, the command complains.
        with suppress(PvcError), reading_command(argv, stream) as pipe:
            head = pipe.read(_BLOCK)
    return _is_first(head)


def _is_first(head: bytes) -> bool:
    return head[:100].rstrip(b"\0") == _MANIFEST.encode() and head[257:262] == b"ustar"


def import_archive(
    store: Store, source: Path, name: str | None, owner: str, progress: Progress, *, update: bool = False
) -> list[Image]:
    """Make the images of an archive images of their names (new ones without ``update``), or revisions of ``name``.

    :raise UsageError: the archive is damaged, or not one of ours.
    :raise HostError: the repository cannot be written; what was named before stays.
    """
    try:
        with open_source(source) as stream, _decompressing(stream) as pipe, store.session() as session:
            manifest = _read_manifest(pipe)
            _check_manifest(manifest, name)
            if name is None and not update:
                check_new(store, manifest.images, str(source))
            for blob in manifest.blobs:
                _read_blob(pipe, blob, store, session, progress)
            rest = read_exactly(pipe, _MAX_REST)
            if len(rest) in (0, _MAX_REST) or any(rest):
                raise ValueError("it does not end after its last file")
            for image in manifest.images:
                check_layers(session, image, source)
                check_boot_files(session, image, source)
            return [
                session.commit(
                    replace(image, name=name or image.name, revision=1, created=time.time(), owner=owner)
                )
                for image in manifest.images
            ]  # fmt: skip
    except ValueError as err:
        raise UsageError(f"cannot import {source}: {err}", hint="fetch it again, or export it again") from None


@contextmanager
def _decompressing(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    argv = find_unpacker(stream.read(16))
    stream.seek(0)
    if argv is None:
        yield stream
    else:
        with reading_command(argv, stream) as pipe:
            yield pipe


def _read_manifest(pipe: IO[bytes]) -> Manifest:
    name, size = _read_member(pipe)
    if name != _MANIFEST or not 0 < size <= _MAX_MANIFEST:
        raise ValueError(f"it does not begin with {_MANIFEST}")
    content = read_exactly(pipe, size + -size % _BLOCK)
    if len(content) < size:
        raise ValueError("it is cut off")
    return codec.loads(Manifest, content[:size])


def _check_manifest(manifest: Manifest, name: str | None) -> None:
    """:raise ValueError: it is of a later version, or what it says could not come from pvc."""
    if manifest.version != VERSION:
        raise ValueError(f"it has version {manifest.version}; this pvc knows {VERSION}")
    if not manifest.images:
        raise ValueError("it has no image")
    if name is not None and len(manifest.images) > 1:
        raise ValueError(f"it has {len(manifest.images)} images: leave NAME away")
    for image in manifest.images:
        check_described(image)


def _read_block(pipe: IO[bytes]) -> bytes:
    block = read_exactly(pipe, _BLOCK)
    if len(block) < _BLOCK:
        raise ValueError("it is cut off")
    return block


def _read_member(pipe: IO[bytes]) -> tuple[str, int]:
    """Name and size of a plain file. tarfile reads extended headers of any size into memory; these are not ours."""
    block = _read_block(pipe)
    if block[156:157] not in (b"0", b"\0") or block[257:262] != b"ustar":
        raise ValueError("it has a member that is no plain file")
    field = block[124:136]
    size = int.from_bytes(field[4:], "big") if field[0] & 0x80 else int(field.rstrip(b"\0 ") or b"0", 8)
    checksum = int(block[148:156].rstrip(b"\0 ") or b"0", 8)
    if checksum != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        raise ValueError("it is damaged")
    return block[:100].rstrip(b"\0").decode("ascii", "replace"), size


def _read_blob(pipe: IO[bytes], blob: Blob, store: Store, session: Session, progress: Progress) -> None:
    if _read_member(pipe) != (f"data/{blob.sha256}", blob.size) or blob.size > header.MAX_DISK:
        raise ValueError(f"it lacks the file {blob.sha256}, or has another there")
    digest, label = hashlib.sha256(), blob.sha256[:12]
    with store.temporary() as (stream, path):
        progress(label, 0, blob.size)
        left = blob.size
        while left and (chunk := read_exactly(pipe, min(_CHUNK, left))):
            digest.update(chunk)
            write_sparse(stream, chunk)
            left -= len(chunk)
            progress(label, blob.size - left, blob.size)
        if left or digest.hexdigest() != blob.sha256:
            raise ValueError("it is cut off" if left else f"its file {blob.sha256} is damaged")
        stream.truncate(blob.size)
        os.fsync(stream.fileno())
        session.add(blob, path)
    read_exactly(pipe, -blob.size % _BLOCK)
