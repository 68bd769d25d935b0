# SPDX-License-Identifier: Apache-2.0
"""Kernel and initial file system for direct boot, made small and quick.

Under software emulation unpacking costs more than anything else before init: Debian's amd64 kernel is
compressed with xz, which took 5 of the 9 s that a guest needed to reach init. QEMU takes an uncompressed
ELF kernel as well (PVH entry, Xen's HVM direct boot ABI; CONFIG_PVH is in Debian's kernels).
"""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvc import run
from pvc.errors import HostError
from pvc.host.exitcodes import Outcome, judge

_ELF = b"\x7fELF"
_PVH_NOTE = struct.pack("<III", 4, 8, 18) + b"Xen\0"  # XEN_ELFNOTE_PHYS32_ENTRY
_PVH_NOTE_32 = struct.pack("<III", 4, 4, 18) + b"Xen\0"
_MAX_KERNEL = 1 << 30

# "ROOTS" are the root's devices on virtio and on other buses. A module that the kernel has built in is in no list, so a
# failing insmod is told. Modules of other buses are loaded once the first device, which may be the seed, proves to be
# none, or does not come: usually they cost a little memory, and no time.
_INIT = """#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
load() { for module in $($bb cat /$1); do $bb insmod /lib/$module || echo "initrd: no $module"; done; }
load modules
i=0
root=
while [ -z "$root" ] && [ $i -lt 1000 ]; do
    for disk in ROOTS; do
        [ -b $disk ] && $bb mount -t ext4 -o rw,noatime $disk /root 2>/dev/null && root=$disk && break
        [ ! -b $disk ] || [ $i -gt 100 ] || i=100
    done
    [ $i != 100 ] || load others
    [ -n "$root" ] || $bb usleep 10000
    i=$((i + 1))
done
[ -n "$root" ] || { echo "initrd: no root on ROOTS"; $bb poweroff -f; }
$bb mount --move /dev /root/dev
exec $bb switch_root /root /sbin/init
echo "initrd: the root has no /sbin/init"; $bb poweroff -f
"""


def unpack_kernel(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage if QEMU can boot it, else ``image`` as it is.

    The setup header says where the compressed kernel is: Documentation/arch/x86/boot.rst, payload_offset.
    """
    if image[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", image, 0x206)[0] < 0x208:
        return image
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    kernel = _unpack(image[start : start + length])
    if kernel is None or not kernel.startswith(_ELF) or not (_PVH_NOTE in kernel or _PVH_NOTE_32 in kernel):
        return image
    return kernel


def _unpack(payload: bytes) -> bytes | None:
    try:
        if payload.startswith(b"\xfd7zXZ\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload, _MAX_KERNEL)
        if payload.startswith(b"\x5d\x00\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload, _MAX_KERNEL)
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(payload, _MAX_KERNEL)
    except (lzma.LZMAError, zlib.error):
        return None
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _unpack_zstd(payload)
    return None


def _unpack_zstd(payload: bytes) -> bytes | None:
    """By zstd(1): the standard library has no zstd. The last four bytes are the unpacked size."""
    try:
        process = run.spawn(["zstd", "-d", "-q", "-c"], stdin=run.PIPE, stdout=run.PIPE, stderr=run.DEVNULL)
    except HostError:
        return None
    kernel, _ = process.communicate(payload[:-4])
    return kernel if judge("zstd", process.returncode) is not Outcome.FAILED else None


def find_modules(root: Path, version: str, names: Sequence[str]) -> list[str]:
    """Paths below lib/modules/VERSION of modules and what they need, in the order in which they load.

    Modules that are built in are left out.

    :raise HostError: the kernel has no such module.
    """
    directory = root / "lib" / "modules" / version
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[_module_name(path)] = (path, others.split())
    built_in = {_module_name(line) for line in (directory / "modules.builtin").read_text().splitlines()}
    order: list[str] = []

    def add(path: str) -> None:
        # modules.dep lists all that is needed, direct or not, the last to be loaded first.
        for other in reversed(needs[_module_name(path)][1]):
            add(other)
        if path not in order:
            order.append(path)

    for name in names:
        if name.replace("-", "_") in needs:
            add(needs[name.replace("-", "_")][0])
        elif name.replace("-", "_") not in built_in:
            raise HostError(f"the kernel {version} has no module {name!r}")
    return order


def _module_name(path: str) -> str:
    return os.path.basename(path).split(".", 1)[0].replace("-", "_")


def make_initrd(
    root: Path, version: str, names: Sequence[str], others: Sequence[str] = (), partition: str = ""
) -> bytes:
    """A cpio archive that loads modules of the guest's kernel, mounts the root and starts its init.

    The root is the first disk or its ``partition``; ``others`` are modules for disks that are not virtio's.
    Uncompressed: 5 MB are read faster than unpacked.

    :raise HostError: a module is missing, or the guest has no static busybox.
    """
    busybox = root / "bin" / "busybox"
    if not busybox.is_file():
        raise HostError("a guest whose initrd pvc makes needs the package busybox-static")
    usual = find_modules(root, version, names)
    lists = {"modules": usual, "others": [path for path in find_modules(root, version, others) if path not in usual]}
    directory = root / "lib" / "modules" / version
    members: dict[str, tuple[int, bytes]] = {
        "bin": (0o040755, b""),
        "dev": (0o040755, b""),
        "lib": (0o040755, b""),
        "root": (0o040755, b""),
        "bin/busybox": (0o100755, busybox.read_bytes()),
        "bin/sh": (0o120777, b"busybox"),
    }
    for title, paths in lists.items():
        loaded: list[str] = []
        for path in paths:
            name = os.path.basename(path)
            content = (directory / path).read_bytes()
            if name.endswith(".xz"):
                name, content = name.removesuffix(".xz"), lzma.decompress(content)
            members[f"lib/{name}"] = (0o100644, content)
            loaded.append(name)
        members[title] = (0o100644, ("\n".join(loaded) + "\n").encode())
    devices = f"/dev/vda{partition} /dev/sda{partition}"
    members["init"] = (0o100755, _INIT.replace("ROOTS", devices).encode())
    return pack_cpio(members)


def pack_cpio(members: Mapping[str, tuple[int, bytes]]) -> bytes:
    """An archive in the kernel's format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    parts: list[bytes] = []

    def add(index: int, name: str, mode: int, content: bytes) -> None:
        fields = (index, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
        parts.extend((header, _pad(header), content, _pad(content)))

    for index, (name, (mode, content)) in enumerate(members.items(), 1):
        add(index, name, mode, content)
    add(0, "TRAILER!!!", 0, b"")
    return b"".join(parts)


def _pad(data: bytes) -> bytes:
    return bytes(-len(data) % 4)
