# SPDX-License-Identifier: Apache-2.0
"""The disk in a container image: one file below ``disk/``, as KubeVirt's containerDisk has it.

Layers are tar archives that we read by a few lines of our own, front to back, keeping that one file; no path of an
archive is ever a path of ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pvc.errors import UsageError
from pvc.images import header
from pvc.images.foreign import find_unpacker, reading_command
from pvc.images.image import Blob
from pvc.images.ocimanifest import Manifest
from pvc.images.store import Session, Store
from pvc.images.streams import Progress, hash_file, open_source, read_exactly, write_sparse

_BLOCK = 512
_CHUNK = 4 << 20
# Names longer than a header holds, and times: whoever writes more hides something.
_MAX_EXTENDED = 64 << 10
_DISK = re.compile(r"^(?:\./|/)?disk/([^/]+)$")


@dataclass(frozen=True)
class _Member:
    """A member of a tar archive; ``plain``: a file with content."""

    name: str
    size: int
    plain: bool


def extract_disk(
    store: Store, session: Session, manifest: Manifest, path_of: Callable[[Blob], Path], label: Path, progress: Progress
) -> Path:
    """The disk as a file of the session, from the layers of a container image, lowest first.

    :raise ValueError: there is none, or several; a layer is damaged.
    :raise UsageError: a layer cannot be read or unpacked.
    :raise HostError: it does not fit into the repository.
    """
    disks: dict[str, Path] = {}
    for number, layer in enumerate(manifest.layers):
        path = path_of(layer.blob)
        if hash_file(path, f"check of {layer.blob.sha256[:12]}", progress) != layer.blob:
            raise ValueError(f"its file {layer.blob.sha256} is damaged")
        with store.explained("write to"):
            _read_layer(path, label, number, session, disks, progress)
    if len(disks) != 1:
        names = ", ".join(ascii(name)[1:-1][:60] for name in sorted(disks)) or "nothing"
        raise ValueError(f"a container image for VMs has one file below /disk; this one has {names}")
    return next(iter(disks.values()))


def _read_layer(
    path: Path, label: Path, number: int, session: Session, disks: dict[str, Path], progress: Progress
) -> None:
    with open_source(path) as stream, _unpacking(stream) as pipe:
        total = os.fstat(stream.fileno()).st_size
        progress(label.name, 0, total)
        for member in _walk(pipe):
            match = _DISK.fullmatch(member.name)
            name = match[1] if match else ""
            # A file that lower layers have and this one has not (image-spec: layer.md, "Whiteouts").
            if name == ".wh..wh..opq":
                disks.clear()
            elif name.startswith(".wh."):
                disks.pop(name.removeprefix(".wh."), None)
            elif match and member.plain:
                target = session.work_path(f"disk-{number}-{len(disks)}")
                _write(pipe, member, target, lambda: progress(label.name, _position(stream, total), total))
                disks[name] = target
                continue
            _skip(pipe, member.size)
        # To the end: the unpacker checks its sum there.
        while pipe.read(_CHUNK):
            pass
        progress(label.name, total, total)


def _position(stream: IO[bytes], total: int) -> int:
    return max(1, min(os.lseek(stream.fileno(), 0, os.SEEK_CUR), total - 1))


@contextmanager
def _unpacking(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    argv = find_unpacker(stream.read(16))
    stream.seek(0)
    if argv is None:
        yield stream
    else:
        with reading_command(argv, stream) as pipe:
            yield pipe


def _walk(pipe: IO[bytes]) -> Iterator[_Member]:
    """The members of an archive; whoever takes one reads its content, padding too, before the next.

    :raise ValueError: it is cut off, or no archive of plain parts.
    """
    said: dict[str, str] = {}
    while True:
        block = read_exactly(pipe, _BLOCK)
        if not block.strip(b"\0"):
            return
        name, size, kind = _parse_header(block)
        if kind in b"xgLK":
            if not 0 <= size <= _MAX_EXTENDED:
                raise ValueError(f"an extended header of {size} bytes in its layer is absurd")
            content = read_exactly(pipe, size + -size % _BLOCK)[:size]
            if kind in b"x":
                said |= _parse_pax(content)
            elif kind in b"L":
                said["path"] = content.rstrip(b"\0").decode(errors="replace")
            continue
        if "GNU.sparse.major" in said or kind == b"S":
            raise ValueError("its layer has a sparse file, which no container image should")
        try:
            size = int(said.get("size", size))
        except ValueError:
            raise ValueError("its layer is damaged") from None
        if not 0 <= size <= header.MAX_DISK:
            raise ValueError(f"a file of {size} bytes in its layer is absurd")
        # Links and devices have no content, whatever their header says of a size.
        plain = kind in b"0\0"
        yield _Member(said.get("path", name), size if plain else 0, plain)
        said = {}


def _parse_header(block: bytes) -> tuple[str, int, bytes]:
    if len(block) < _BLOCK:
        raise ValueError("its layer is cut off")
    field = block[124:136]
    try:
        size = int.from_bytes(field[4:], "big") if field[0] & 0x80 else int(field.strip(b"\0 ") or b"0", 8)
        checksum = int(block[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise ValueError("its layer is no tar archive") from None
    if checksum != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        raise ValueError("its layer is no tar archive")
    name = block[:100].rstrip(b"\0")
    prefix = block[345:500].rstrip(b"\0") if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="replace"), size, block[156:157]


def _parse_pax(content: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE" (pax(1))."""
    found: dict[str, str] = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(content):
            raise ValueError("its layer is damaged")
        record = content[len(length) + 1 : int(length)]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        found[key.decode(errors="replace")] = value.decode(errors="replace")
        content = content[int(length) :]
    return found


def _write(pipe: IO[bytes], member: _Member, target: Path, tell: Callable[[], None]) -> None:
    left = member.size
    with target.open("xb", buffering=0) as output:
        while left and (chunk := read_exactly(pipe, min(_CHUNK, left))):
            write_sparse(output, chunk)
            left -= len(chunk)
            tell()
        output.truncate(member.size)
    if left:
        raise UsageError("a layer of the container image is cut off", hint="fetch it again")
    read_exactly(pipe, -member.size % _BLOCK)


def _skip(pipe: IO[bytes], size: int) -> None:
    left = size + -size % _BLOCK
    while left and (chunk := pipe.read(min(_CHUNK, left))):
        left -= len(chunk)
    if left:
        raise ValueError("its layer is cut off")
