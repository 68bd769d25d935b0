# SPDX-License-Identifier: Apache-2.0
"""Compressed disks and those of other hypervisors."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.cli.image import describe
from pvc.errors import UsageError
from pvc.images import header
from pvc.images.foreign import FORMATS, parse_foreign
from pvc.images.header import HeaderError
from pvc.images.image import Format
from pvc.images.transfer import Incoming
from tests.unit import filenames
from tests.unit.images.disks import Qcow2, quiet, raw_disk, repositories


def files(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}


def vmdk(capacity: int = 2048, text: bytes = b"") -> bytes:
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, 1, 20)
    return head.ljust(512, b"\0") + (b"# Disk DescriptorFile\n" + text).ljust(20 * 512, b"\0")


def vdi(kind: int = 1, size: int = 1 << 20, parent: bytes = b"") -> bytes:
    head = bytearray(512)
    head[64:68] = b"\x7f\x10\xda\xbe"
    struct.pack_into("<I", head, 76, kind)
    struct.pack_into("<Q", head, 368, size)
    head[424 : 424 + len(parent)] = parent
    return bytes(head)


def vhd(kind: int = 3, size: int = 1 << 20) -> bytes:
    return struct.pack(">8sIIQI4sI4sQQIII", b"conectix", 2, 0x10000, 512, 0, b"", 0, b"", size, size, 0, kind, 0).ljust(
        512, b"\0"
    )


@pytest.mark.parametrize(
    ("head", "tail", "kind"),
    [
        (vmdk(), b"", "vmdk"),
        (vdi(), b"", "vdi"),
        (vhd(), b"", "vpc"),
        (raw_disk(), vhd(2), "vpc"),
        (b"vhdxfile".ljust(512), b"", "vhdx"),
        (raw_disk(), b"", None),
        (Qcow2().encode(), b"", None),
    ],
)
def test_formats_are_known_by_their_headers(head: bytes, tail: bytes, kind: str | None) -> None:
    assert parse_foreign(head, tail) == kind


@pytest.mark.parametrize(
    ("head", "tail", "text"),
    [
        (vmdk(capacity=0, text=b'RW 9 FLAT "/etc/shadow" 0'), b"", "several files"),
        (b'# Disk DescriptorFile\nRW 9 FLAT "/etc/shadow" 0', b"", "several files"),
        (b"COWD".ljust(512), b"", "several files"),
        (vmdk(text=b'parentFileNameHint="/home/other/disk.vmdk"'), b"", "parent"),
        (vmdk(capacity=1 << 60), b"", "absurd"),
        (b"KDMV", b"", "cut off"),
        (vdi(kind=4), b"", "parent"),
        (vdi(parent=b"1"), b"", "parent"),
        (vdi(size=1 << 60), b"", "absurd"),
        (vdi()[:100], b"", "cut off"),
        (vhd(kind=4), b"", "parent"),
        (vhd(size=1 << 62), b"", "absurd"),
        (b"", vhd(kind=4), "parent"),
    ],
)
def test_headers_that_name_other_files_are_refused(head: bytes, tail: bytes, text: str) -> None:
    with pytest.raises(HeaderError, match=text):
        parse_foreign(head, tail)


@given(head=st.binary(max_size=1024), tail=st.binary(max_size=512), magic=st.sampled_from([vmdk(), vdi(), vhd()]))
def test_garbage_is_refused_or_has_a_format(head: bytes, tail: bytes, magic: bytes) -> None:
    for content in (head, magic[:80] + head):
        with suppress(HeaderError):
            assert parse_foreign(content, tail) in (None, *FORMATS)


@pytest.mark.allow_run  # qemu-img
@pytest.mark.parametrize("kind", [*FORMATS, "vpc-fixed", "vmdk-stream"])
def test_a_disk_of_another_hypervisor_becomes_qcow2(tmp_path: Path, kind: str) -> None:
    (tmp_path / "raw").write_bytes(raw_disk(2 << 20, b"mark"))
    form, _, extra = kind.partition("-")
    options = {"fixed": ["-o", "subformat=fixed,force_size=on"], "stream": ["-o", "subformat=streamOptimized"]}
    argv = ["qemu-img", "convert", "-f", "raw", "-O", form, *options.get(extra, []), tmp_path / "raw", tmp_path / "x"]
    subprocess.run(argv, check=True)
    where = repositories(tmp_path)
    said: list[tuple[str, int, int]] = []
    found = where.import_file(Incoming(tmp_path / "x", "a"), lambda *each: said.append(each))
    assert found.image.format is Format.QCOW2
    assert any("to qcow2" in what for what, _, _ in said)
    where.verify(found)
    back = tmp_path / "back"
    disk = where.store().blob_path(found.image.disk)
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, back], check=True)
    assert back.read_bytes()[: 2 << 20] == (tmp_path / "raw").read_bytes()
    with pytest.raises(UsageError, match=r"vdi header|vpc header"):
        where.import_file(Incoming(tmp_path / "x", "a", foreign="vdi" if form != "vdi" else "vpc"), quiet)
    assert list((tmp_path / "user" / ".tmp").iterdir()) == []


@pytest.mark.allow_run  # qemu-img
def test_a_parent_is_never_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", tmp_path / "base", "1M"], check=True)
    argv = ["qemu-img", "create", "-q", "-f", "vmdk", "-b", tmp_path / "base", "-F", "vmdk", tmp_path / "x"]
    subprocess.run(argv, check=True)
    where = repositories(tmp_path)
    with pytest.raises(UsageError, match="needs a parent"):
        where.import_file(Incoming(tmp_path / "x", "a"), quiet)
    (tmp_path / "flat").write_text(f'# Disk DescriptorFile\nversion=1\nRW 11 FLAT "{secret}" 0\n')
    with pytest.raises(UsageError, match="several files"):
        where.import_file(Incoming(tmp_path / "flat", "a"), quiet)
    # A wrong magic does not help either: what -t says must be in the header.
    for kind in FORMATS:
        with pytest.raises(UsageError):
            where.import_file(Incoming(tmp_path / "flat", "a", foreign=kind), quiet)
    assert files(tmp_path / "user") == {".config"}


@pytest.mark.allow_run  # qemu-img
def test_a_damaged_foreign_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(vmdk(capacity=1 << 20) + os.urandom(4096))
    where = repositories(tmp_path)
    with pytest.raises(UsageError, match="qemu-img says"):
        where.import_file(Incoming(tmp_path / "x", "a"), quiet)
    assert files(tmp_path / "user") == {".config"}


@pytest.mark.allow_run  # the decompressors
@pytest.mark.parametrize("how", ["gzip", "xz", "zstd"])
def test_a_compressed_disk_is_unpacked(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    content = raw_disk(3 << 20, b"mark") + b"end"
    source = tmp_path / "x"
    if how == "gzip":
        source.write_bytes(gzip.compress(content))
    elif how == "xz":
        source.write_bytes(lzma.compress(content))
    else:
        subprocess.run(["zstd", "-q", "-o", source], input=content, check=True)
    where = repositories(tmp_path)
    found = where.import_file(Incoming(source, "a"), quiet)
    stored = where.store().blob_path(found.image.disk)
    assert stored.read_bytes() == content + bytes(509)
    assert stored.stat().st_blocks * 512 < 1 << 20
    source.write_bytes(source.read_bytes()[:-10])
    with pytest.raises(UsageError, match=f"cannot unpack it with {how}"):
        where.import_file(Incoming(source, "b"), quiet)
    # gzip tells of bytes behind its own, and has unpacked all the same.
    source.write_bytes(gzip.compress(content) + b"more")
    caplog.clear()
    assert where.import_file(Incoming(source, "a"), quiet).image.disk == found.image.disk
    assert "gzip, which unpacked it, warns: gzip: stdin: decompression OK, trailing garbage ignored" in caplog.text
    # Only one layer is taken off.
    source.write_bytes(gzip.compress(gzip.compress(content)))
    with pytest.raises(UsageError, match="it is a gzip file"):
        where.import_file(Incoming(source, "b"), quiet)
    assert set(where.store().list_revisions()) == {"a"}
    assert list((tmp_path / "user" / ".tmp").iterdir()) == []
    assert list((tmp_path / "user" / "data").rglob("?" * 64)) == [stored]


def test_what_is_stored_of_a_raw_disk_is_without_its_holes(tmp_path: Path) -> None:
    source = tmp_path / "disk"
    source.write_bytes(raw_disk(1 << 20, b"mark") + os.urandom(3 << 20))
    os.truncate(source, 64 << 20)
    where = repositories(tmp_path)
    found = where.import_file(Incoming(source, "a"), quiet)
    assert (found.image.format, found.image.disk.size) == (Format.RAW, 64 << 20)
    assert 3 << 20 <= where.stored_size(found) < 6 << 20
    assert re.fullmatch(r"raw, a disk of 64M, [3-5]\.[0-9]M stored", describe(found, where))
    where.store().blob_path(found.image.disk).unlink()
    assert where.stored_size(found) == 0


@pytest.mark.allow_run("qemu-img")
@pytest.mark.parametrize(("size", "form"), [(5 << 40, "raw"), (60 << 30, None)])
def test_a_raw_disk_that_is_mostly_holes_becomes_qcow2(tmp_path: Path, size: int, form: str | None) -> None:
    """None of the holes is read."""
    source = tmp_path / "disk"
    source.write_bytes(raw_disk(1 << 20, b"mark") if form is None else b"")
    os.truncate(source, size)
    where = repositories(tmp_path)
    found = where.import_file(Incoming(source, "a", format=Format(form) if form else None), quiet)
    assert (found.image.format, found.image.size) == (Format.QCOW2, size)
    assert where.stored_size(found) < 2 << 20
    with where.store().blob_path(found.image.disk).open("rb") as stream:
        assert header.parse_header(stream.read(header.PROBE_SIZE), 1 << 40).size == size
    back = tmp_path / "back"
    blob = where.store().blob_path(found.image.disk)
    subprocess.run(["qemu-img", "dd", "-O", "raw", "bs=1M", "count=1", f"if={blob}", f"of={back}"], check=True)
    with source.open("rb") as stream:
        assert back.read_bytes() == stream.read(1 << 20)
    assert list((where.store().path / ".tmp").iterdir()) == []


def test_a_hole_without_a_disk_is_none(tmp_path: Path) -> None:
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 60 << 30)
    with pytest.raises(UsageError, match="neither a qcow2 header") as caught:
        repositories(tmp_path).import_file(Incoming(tmp_path / "hole", "a"), quiet)
    assert caught.value.hint == "say -t raw if it is a raw disk all the same"


@pytest.mark.allow_run("qemu-img")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("-f qcow", "it is a qcow image of version 1"),
        ("-f parallels", "it is a Parallels image"),
        ("-f vmdk -o subformat=twoGbMaxExtentSparse", "it is a part of a VMDK in several files"),
    ],
)
def test_what_has_to_be_converted_first(tmp_path: Path, options: str, told: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", *options.split(), tmp_path / "x.img", "64M"], check=True)
    source = next(iter(tmp_path.glob("x-s001*")), tmp_path / "x.img")
    with pytest.raises(UsageError, match=told) as caught:
        repositories(tmp_path).import_file(Incoming(source, "a"), quiet)
    assert "qemu-img convert -O qcow2 SRC DEST" in (caught.value.hint or "")
    assert "/proc/" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in filenames.SEEN if len(name) < 200])
def test_every_name_of_a_source(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(raw_disk(1 << 20, b"mark"))
    found = repositories(tmp_path / "r").import_file(Incoming(tmp_path / name, "a"), quiet)
    assert found.image.format is Format.RAW
