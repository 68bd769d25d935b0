# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import lzma
import os
import subprocess
from pathlib import Path

import pytest

from pvc.errors import HostError
from pvc.images import bootfiles
from tests.unit.images.disks import bz_image

KERNEL = b"\x7fELF" + os.urandom(3000) + bootfiles._PVH_NOTE + bytes(8)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, lambda data: lzma.compress(data, lzma.FORMAT_ALONE)])
def test_the_kernel_inside_is_found(pack: object) -> None:
    assert bootfiles.unpack_kernel(bz_image(pack(KERNEL) + b"size")) == KERNEL  # type: ignore[operator]


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\x7fELF" + bytes(2000),
        bz_image(b"unknown packing"),
        bz_image(lzma.compress(KERNEL)[:-200]),
        bz_image(lzma.compress(b"no kernel")),
        bz_image(lzma.compress(b"\x7fELF without the entry that QEMU needs")),
    ],
)
def test_what_cannot_be_unpacked_stays_as_it_is(image: bytes) -> None:
    assert bootfiles.unpack_kernel(image) == image


@pytest.mark.allow_run  # zstd and cpio are the other side
def test_zstd_kernels_and_archives(tmp_path: Path) -> None:
    packed = subprocess.run(["zstd", "-q", "-c"], input=KERNEL, stdout=subprocess.PIPE, check=True).stdout
    assert bootfiles.unpack_kernel(bz_image(packed + b"size")) == KERNEL


def fake_guest(base: Path) -> Path:
    modules = base / "lib" / "modules" / "6.1"
    (base / "bin").mkdir(parents=True)
    (base / "bin" / "busybox").write_bytes(b"busybox")
    for name in ("a.ko", "b-c.ko.xz", "d.ko"):
        modules.mkdir(parents=True, exist_ok=True)
        (modules / name).write_bytes(lzma.compress(name.encode()) if name.endswith("xz") else name.encode())
    (modules / "modules.dep").write_text("a.ko:\nb-c.ko.xz: d.ko a.ko\nd.ko: a.ko\n")
    (modules / "modules.builtin").write_text("kernel/fs/ext4.ko\n")
    return base


def test_modules_come_in_the_order_of_their_needs(tmp_path: Path) -> None:
    root = fake_guest(tmp_path)
    assert bootfiles.find_modules(root, "6.1", ["b_c", "a", "ext4"]) == ["a.ko", "d.ko", "b-c.ko.xz"]
    with pytest.raises(HostError, match="no module 'nope'"):
        bootfiles.find_modules(root, "6.1", ["nope"])


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes]]:
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + -(-(110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], data[start : start + fields[6]])
        at = start + -(-fields[6] // 4) * 4


def test_the_initrd_holds_what_its_init_uses(tmp_path: Path) -> None:
    members = read_cpio(bootfiles.make_initrd(fake_guest(tmp_path), "6.1", ["b_c"]))
    assert members["modules"][1] == b"a.ko\nd.ko\nb-c.ko\n"
    assert members["lib/b-c.ko"] == (0o100644, b"b-c.ko.xz")
    assert members["bin/sh"] == (0o120777, b"busybox")
    assert members["init"][0] == 0o100755
    assert members["others"][1] == b"\n"
    more = read_cpio(bootfiles.make_initrd(tmp_path, "6.1", ["a"], ["b_c"], "2"))
    # What is loaded already is not loaded again.
    assert [more[name][1] for name in ("modules", "others")] == [b"a.ko\n", b"d.ko\nb-c.ko\n"]
    assert b"for disk in /dev/vda2 /dev/sda2; do" in more["init"][1]
    (tmp_path / "bin" / "busybox").unlink()
    with pytest.raises(HostError, match="busybox-static"):
        bootfiles.make_initrd(tmp_path, "6.1", ["a"])
