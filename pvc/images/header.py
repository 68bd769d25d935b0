# SPDX-License-Identifier: Apache-2.0
"""Disk image headers, read by ourselves before any tool opens the file.

A hostile image can name other files of the host (backing file, external data file) or sizes that make
tools allocate gigabytes; what is refused here never reaches QEMU. Layout of qcow2: docs/interop/qcow2.txt
of QEMU. Pure: bytes in, facts or ValueError out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pvc.images.image import Format

# Enough for the signatures below; the farthest is btrfs' at 64 KiB + 64.
PROBE_SIZE = 0x10048
MAX_DISK = 1 << 46  # 64 TiB
SECTOR = 512

_QCOW2 = b"QFI\xfb"
_QCOW2_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_V3 = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE = 1, 2, 4
_KNOWN_INCOMPATIBLE = 0x1F
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_CRYPTO = 0x0537BE77
_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_MAX_L1 = 32 << 20  # bytes; QEMU's own limit
_MAX_NAME = 1023

# Formats that QEMU or a person could mean, which pvc does not store: (offset, magic, name, how to get further).
_CONVERT = "convert it: qemu-img convert -O qcow2 SRC DEST"
_UNPACK = "unpack it first"
_OTHERS = (
    (0, b"KDMV", "a VMDK image", _CONVERT),
    (0, b"COWD", "a VMDK image", _CONVERT),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor", _CONVERT),
    (64, b"\x7f\x10\xda\xbe", "a VDI image", _CONVERT),
    (0, b"vhdxfile", "a VHDX image", _CONVERT),
    (0, b"conectix", "a VHD image", _CONVERT),
    (0, b"QED\x00", "a QED image", _CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels image", _CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels image", _CONVERT),
    (0, b"LUKS\xba\xbe", "an encrypted (LUKS) volume", "decrypt it first"),
    (0, b"\x1f\x8b", "a gzip file", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (0, b"BZh", "a bzip2 file", _UNPACK),
    (0, b"PK\x03\x04", "a zip file", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x7fELF", "a program", None),
)
# What the start of a disk looks like: a partition table or boot sector, or a bare file system.
_RAW_SIGNS = (
    (510, b"\x55\xaa"),
    (512, b"EFI PART"),
    (1080, b"\x53\xef"),  # ext2/3/4
    (0, b"XFSB"),
    (0x10040, b"_BHRfS_M"),  # btrfs
    (32769, b"CD001"),  # ISO 9660
    (0, b"hsqs"),  # squashfs
    (1024, b"\xe2\xe1\xf5\xe0"),  # erofs
    (512, b"LABELONE"),  # LVM
)


class HeaderError(ValueError):
    """The file is refused; ``hint`` is what could be done with it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class HeaderFacts:
    """Format and the size in bytes that a guest would see."""

    format: Format
    size: int


@dataclass(frozen=True)
class Backing:
    """The file that a qcow2 reads from where it holds nothing, as its header names it.

    ``format`` None: whatever it says of that, or nothing, as old ones do.
    """

    name: str
    format: Format | None


def parse_header(
    head: bytes, file_size: int, expected: Format | None = None, *, backing: Backing | None = None
) -> HeaderFacts:
    """What the first PROBE_SIZE bytes of a file of ``file_size`` bytes say.

    ``backing``: the file that it must need, by exactly this name; None: it may need none.

    :raise HeaderError: not a disk image that pvc takes, not of the ``expected`` format, or a dangerous one.
    """
    if file_size == 0:
        raise HeaderError("the file is empty")
    if head[:4] == _QCOW2:
        if expected is Format.RAW:
            raise HeaderError("its header says qcow2, not raw", "leave -t away, or say -t qcow2")
        return HeaderFacts(Format.QCOW2, _parse_qcow2(head, file_size, backing))
    if backing is not None:
        raise HeaderError(f"it is no qcow2 that rests on {backing.name}")
    if expected is Format.QCOW2:
        raise HeaderError("it has no qcow2 header", "leave -t away, or say -t raw if it is a raw disk")
    if expected is None:
        _refuse_others(head)
        if not any(head[at : at + len(magic)] == magic for at, magic in _RAW_SIGNS):
            raise HeaderError(
                "neither a qcow2 header, nor a partition table, nor a known file system",
                "say -t raw if it is a raw disk all the same",
            )
    size = -(-file_size // SECTOR) * SECTOR
    check_size(size)
    return HeaderFacts(Format.RAW, size)


def _refuse_others(head: bytes) -> None:
    for at, magic, name, hint in _OTHERS:
        if head[at : at + len(magic)] == magic:
            raise HeaderError(f"it is {name}", hint)


def check_size(size: int) -> None:
    """:raise HeaderError: no disk has so many bytes."""
    if not SECTOR <= size <= MAX_DISK:
        raise HeaderError(f"a disk of {size} bytes is absurd (at most {MAX_DISK >> 40} TiB)")


def _parse_qcow2(head: bytes, file_size: int, backing: Backing | None) -> int:
    if len(head) < 104 or file_size < 104:
        raise HeaderError("its qcow2 header is cut off")
    fields = _QCOW2_FIXED.unpack_from(head)
    _, version, backing_offset, backing_size, cluster_bits, size, crypt, l1_entries, l1_offset = fields[:9]
    refcount_offset, refcount_clusters = fields[9:11]
    if version == 1:
        raise HeaderError("it is a qcow image of version 1", _CONVERT)
    if version not in (2, 3):
        raise HeaderError(f"qcow2 of version {version} is unknown")
    if backing is not None:
        _check_backing(head, version, backing_offset, backing_size, backing)
    elif backing_offset or backing_size:
        raise HeaderError("it needs a backing file", "flatten it: qemu-img convert -O qcow2 SRC DEST")
    if crypt:
        raise HeaderError("it is encrypted", "decrypt it with qemu-img convert")
    if not 9 <= cluster_bits <= 21:
        raise HeaderError(f"clusters of 2^{cluster_bits} bytes are not qcow2")
    check_size(size)
    extended_l2 = _check_version_3(head, cluster_bits) if version == 3 else False
    cluster = 1 << cluster_bits
    covered = cluster * (cluster // (16 if extended_l2 else 8))
    if l1_entries * 8 > _MAX_L1 or l1_entries * covered < size:
        raise HeaderError(f"its first table of {l1_entries} entries does not fit a disk of {size} bytes")
    _check_inside("first table", l1_offset, l1_entries * 8, cluster, file_size)
    if refcount_clusters > _MAX_L1 // cluster + 1:
        raise HeaderError(f"its table of reference counts has {refcount_clusters} clusters")
    _check_inside("table of reference counts", refcount_offset, refcount_clusters * cluster, cluster, file_size)
    return int(size)


def _check_backing(head: bytes, version: int, offset: int, size: int, backing: Backing) -> None:
    """Compare the bytes; what a name means (a protocol, a JSON object) is not even asked."""
    old = version != 3 and backing.format is not None
    if old or not offset or head[offset : offset + size] != backing.name.encode():
        said = head[offset : offset + min(size, 200)].decode(errors="backslashreplace") if offset else ""
        raise HeaderError(f"it names {said!r} as its backing file, not {backing.name}")
    if backing.format is None:
        return
    formats = [data for kind, data in _walk_extensions(head[:offset]) if kind == _EXTENSION_BACKING_FORMAT]
    if formats != [backing.format.value.encode()]:
        raise HeaderError(f"it does not say that {backing.name} is {backing.format}")


def find_backing_name(head: bytes) -> str:
    """The file that a qcow2 names as the one below it; "": none. Nothing is said of whether that can be."""
    if head[:4] != _QCOW2 or len(head) < _QCOW2_FIXED.size:
        return ""
    offset, size = _QCOW2_FIXED.unpack_from(head)[2:4]
    return head[offset : offset + min(size, _MAX_NAME)].decode(errors="backslashreplace") if offset else ""


def _walk_extensions(head: bytes) -> Iterator[tuple[int, bytes]]:
    at = _QCOW2_V3.unpack_from(head, 72)[4] if len(head) >= 104 else len(head)
    while at + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, at)
        if kind == 0:
            return
        yield kind, head[at + 8 : at + 8 + length]
        at += 8 + -(-length // 8) * 8


def _check_inside(what: str, offset: int, length: int, cluster: int, file_size: int) -> None:
    if offset % cluster:
        raise HeaderError(f"its {what} is not at a cluster's start")
    # The last cluster of a file may be shorter than a cluster.
    if offset + length > -(-file_size // cluster) * cluster:
        raise HeaderError(
            f"its {what} lies beyond the end of the file", "the file may have been cut off: fetch it again"
        )


def _check_version_3(head: bytes, cluster_bits: int) -> bool:
    """Whether L2 entries are extended (16 bytes)."""
    incompatible, _, _, refcount_order, header_length = _QCOW2_V3.unpack_from(head, 72)
    if incompatible & _DATA_FILE:
        raise HeaderError("its data is in another file", "make it one file: qemu-img convert -O qcow2 SRC DEST")
    if incompatible & (_DIRTY | _CORRUPT):
        raise HeaderError("it is marked as damaged or still open", "repair it: qemu-img check -r all SRC")
    if incompatible & ~_KNOWN_INCOMPATIBLE:
        raise HeaderError(f"it has features that pvc does not know ({incompatible:#x})")
    if refcount_order > 6 or header_length < 104 or header_length % 8 or header_length > 1 << cluster_bits:
        raise HeaderError("its qcow2 header contradicts itself")
    _check_extensions(head[: 1 << cluster_bits])
    return bool(incompatible & 16)


def _check_extensions(head: bytes) -> None:
    for kind, _ in _walk_extensions(head):
        if kind == _EXTENSION_DATA_FILE:
            raise HeaderError("its data is in another file", "make it one file: qemu-img convert -O qcow2 SRC DEST")
        if kind == _EXTENSION_CRYPTO:
            raise HeaderError("it is encrypted", "decrypt it with qemu-img convert")
