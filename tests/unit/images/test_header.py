# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.images.header import MAX_DISK, PROBE_SIZE, HeaderError, parse_header
from pvc.images.image import Format
from tests.unit.images.disks import CLUSTER, Qcow2, raw_disk


def facts(content: bytes, expected: Format | None = None) -> tuple[Format, int]:
    found = parse_header(content[:PROBE_SIZE], len(content), expected)
    return found.format, found.size


def test_formats_are_detected() -> None:
    assert facts(Qcow2().encode()) == (Format.QCOW2, 1 << 30)
    assert facts(Qcow2(version=2).encode()) == (Format.QCOW2, 1 << 30)
    assert facts(raw_disk(1 << 20)) == (Format.RAW, 1 << 20)
    ext4 = bytearray(1 << 20)
    ext4[1080:1082] = b"\x53\xef"
    assert facts(bytes(ext4)) == (Format.RAW, 1 << 20)


def test_a_raw_disk_has_whole_sectors() -> None:
    assert facts(raw_disk(1000)) == (Format.RAW, 1024)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"backing_offset": 512, "backing_size": 10}, "backing file"),
        ({"backing_size": 10}, "backing file"),
        ({"incompatible": 4}, "another file"),
        ({"extensions": struct.pack(">II", 0x44415441, 8) + b"/etc/pwd"}, "another file"),
        ({"extensions": struct.pack(">II", 1, 3) + b"abc\0\0\0\0\0" + struct.pack(">II", 0x44415441, 8)}, "another"),
        ({"crypt": 1}, "encrypted"),
        ({"crypt": 2}, "encrypted"),
        ({"extensions": struct.pack(">II", 0x0537BE77, 16)}, "encrypted"),
        ({"incompatible": 1}, "damaged or still open"),
        ({"incompatible": 2}, "damaged or still open"),
        ({"incompatible": 1 << 40}, "features"),
        ({"version": 1}, "version 1"),
        ({"version": 4}, "version 4"),
        ({"cluster_bits": 8}, "not qcow2"),
        ({"cluster_bits": 64}, "not qcow2"),
        ({"size": 0}, "absurd"),
        ({"size": MAX_DISK + 512}, "absurd"),
        ({"size": 1 << 63}, "absurd"),
        ({"l1_entries": 1}, "does not fit"),
        ({"l1_entries": (1 << 32) - 1}, "does not fit"),
        ({"l1_offset": 40 * CLUSTER}, "beyond the end"),
        ({"l1_offset": 3 * CLUSTER + 8}, "cluster's start"),
        ({"refcount_offset": 1 << 60}, "beyond the end"),
        ({"refcount_clusters": (1 << 32) - 1}, "reference counts"),
        ({"header_length": 8}, "contradicts"),
        ({"header_length": 1 << 31}, "contradicts"),
    ],
)
def test_dangerous_headers_are_refused(change: dict[str, int], text: str) -> None:
    with pytest.raises(HeaderError, match=text):
        facts(replace(Qcow2(), **change).encode())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"KDMV" + bytes(2000), "VMDK"),
        (b"\x1f\x8b" + bytes(2000), "gzip"),
        (b"\xfd7zXZ\x00" + bytes(2000), "xz file"),
        (b"LUKS\xba\xbe" + bytes(2000), "LUKS"),
        (b"hello\n" * 100, "neither"),
        (Qcow2().encode()[:90], "cut off"),
        (Qcow2().encode()[: 2 * CLUSTER], "cut off|beyond"),
    ],
)
def test_what_is_no_disk_is_named(content: bytes, text: str) -> None:
    with pytest.raises(HeaderError, match=text):
        facts(content)


def test_the_format_said_must_be_the_format_found() -> None:
    with pytest.raises(HeaderError, match="qcow2, not raw"):
        facts(Qcow2().encode(), Format.RAW)
    with pytest.raises(HeaderError, match="no qcow2 header"):
        facts(raw_disk(), Format.QCOW2)
    # Whoever says raw gets raw, whatever is in it.
    assert facts(b"hello\n" * 100, Format.RAW) == (Format.RAW, 1024)


@given(st.binary(max_size=300), st.integers(0, 1 << 40))
def test_any_bytes_after_the_magic_are_facts_or_a_refusal(rest: bytes, size: int) -> None:
    try:
        found = parse_header(b"QFI\xfb" + rest, size)
    except HeaderError:
        return
    assert 512 <= found.size <= MAX_DISK


@given(st.integers(4, 150), st.integers(0, 255))
def test_one_wrong_byte_never_leads_to_another_file(at: int, value: int) -> None:
    content = bytearray(Qcow2().encode())
    content[at] = value
    try:
        found = facts(bytes(content))
    except HeaderError:
        return
    assert found[0] is Format.QCOW2
    assert content[8:20] == bytes(12)  # no backing file
    assert content[32:36] == bytes(4)  # no encryption
    assert not content[79] & 4  # no external data file
