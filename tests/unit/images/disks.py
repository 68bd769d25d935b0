# SPDX-License-Identifier: Apache-2.0
"""Disks for tests: made by hand, byte for byte, so that no tool is needed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from pvc.images.repository import Repositories
from pvc.images.transfer import Incoming
from pvc.model.site import Repository

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS


@dataclass(frozen=True)
class Qcow2:
    """An empty qcow2 of version 3: header, reference counts, and a first table of nothing; change what is tested."""

    size: int = 1 << 30
    version: int = 3
    backing_offset: int = 0
    backing_size: int = 0
    cluster_bits: int = CLUSTER_BITS
    crypt: int = 0
    l1_entries: int = 2
    l1_offset: int = 3 * CLUSTER
    refcount_offset: int = CLUSTER
    refcount_clusters: int = 1
    incompatible: int = 0
    header_length: int = 104
    extensions: bytes = b""

    def encode(self) -> bytes:
        """The file."""
        head = struct.pack(
            ">4sIQIIQIIQQIIQ",
            b"QFI\xfb", self.version, self.backing_offset, self.backing_size, self.cluster_bits, self.size,
            self.crypt, self.l1_entries, self.l1_offset, self.refcount_offset, self.refcount_clusters, 0, 0,
        )  # fmt: skip
        head += struct.pack(">QQQII", self.incompatible, 0, 0, 4, self.header_length) + self.extensions
        table = struct.pack(">Q", 2 * CLUSTER)
        counts = struct.pack(">4H", 1, 1, 1, 1)
        return b"".join(part.ljust(CLUSTER, b"\0") for part in (head, table, counts, b""))


def raw_disk(size: int = 1 << 20, mark: bytes = b"") -> bytes:
    """A raw disk that has nothing but a boot sector's signature, and ``mark``."""
    return mark.ljust(510, b"\0") + b"\x55\xaa" + bytes(size - 512)


def bz_image(payload: bytes = b"payload") -> bytes:
    """A bzImage whose compressed kernel is ``payload``."""
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload


def repositories(base: Path, *names: str) -> Repositories:
    """Repositories below ``base``, one called "user" unless named."""
    return Repositories([Repository(name, str(base / name)) for name in names or ("user",)], home=base)


def quiet(_what: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


def import_raw(where: Repositories, base: Path, name: str, mark: bytes = b"", repository: str | None = None) -> str:
    """Import a small raw disk; the uri of its revision."""
    source = base / f"{name}.src"
    source.write_bytes(raw_disk(mark=mark))
    return where.import_file(Incoming(source, name), quiet, repository=repository).uri
