# SPDX-License-Identifier: Apache-2.0
"""Disks that UEFI firmware boots: a GPT with an EFI system partition and the root's, made without root's rights.

    shim (signed by Microsoft) -> GRUB (signed by Debian) -> kernel (signed by Debian) -> initrd, root

The system partition has the kernel and the initrd, too, so GRUB reads nothing but FAT. The same parts make the same
bytes. Facts: UEFI specification 2.10, 3.5.1.1 (EFI/BOOT/BOOTX64.EFI on a disk that no boot entry names) and 5 (GPT);
Debian's GRUB looks for its configuration in EFI/debian.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from pvc import run
from pvc.errors import HostError
from pvc.images.recipefiles import EPOCH

TOOLS = {"mformat": "mtools", "sfdisk": "fdisk"}
SHIM, GRUB = "usr/lib/shim/shimx64.efi.signed", "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
_MIB = 1 << 20
_SYSTEM_AT, _SYSTEM_SIZE = _MIB, 128 * _MIB
ROOT_AT = _SYSTEM_AT + _SYSTEM_SIZE
# The second table, at the end: 33 sectors.
OVERHEAD = ROOT_AT + _MIB
_SECTOR = 512


@dataclass(frozen=True)
class UefiParts:
    """Files of a disk: ``root`` holds a file system of whole MiB, None: there is none."""

    shim: Path
    grub: Path
    kernel: Path
    initrd: Path
    append: str
    root: Path | None


def find_loaders(root: Path) -> tuple[Path, Path]:
    """The signed boot loaders that packages have brought to ``root``.

    :raise HostError: there are none.
    """
    found = root / SHIM, root / GRUB
    names = "shim-signed", "grub-efi-amd64-signed"
    missing = [name for name, path in zip(names, found, strict=True) if not path.is_file()]
    if missing:
        packages = " and ".join(missing)
        raise HostError("the recipe boots by UEFI and installs no boot loader", hint=f"add {packages} to its packages")
    return found


def make_uefi_disk(disk: Path, parts: UefiParts, identity: uuid.UUID, work: Path) -> None:
    """Write the raw image ``disk``; ``identity`` is what its names of disk and partitions follow from.

    :raise HostError: a tool is missing or fails, or kernel and initrd are too large.
    """
    system = work / "system.fat"
    _make_system(system, parts, identity)
    root_size = 0 if parts.root is None else parts.root.stat().st_size
    with disk.open("wb") as stream:
        stream.truncate(OVERHEAD + root_size)
    run.run(["sfdisk", "--quiet", disk], stdin=plan_table(identity, root_size))
    _copy_into(disk, system, _SYSTEM_AT)
    system.unlink()
    if parts.root is not None:
        _copy_into(disk, parts.root, ROOT_AT)


def plan_table(identity: uuid.UUID, root_size: int) -> str:
    """The partitions, in the words of sfdisk(8)."""
    lines = ["label: gpt", f"label-id: {identity}", "first-lba: 2048"]
    parts = [("uefi", _SYSTEM_AT, _SYSTEM_SIZE, "esp"), ("linux-root-x86-64", ROOT_AT, root_size, "root")]
    for kind, start, size, name in parts:
        if size:
            place = f"start={start // _SECTOR}, size={size // _SECTOR}"
            lines.append(f'{place}, type={kind}, uuid={uuid.uuid5(identity, name)}, name="{name}"')
    return "\n".join(lines) + "\n"


def plan_menu(append: str) -> str:
    """GRUB's configuration: no menu, one kernel."""
    # GRUB's shell quotes as sh does.
    words = " ".join("'" + word.replace("'", "'\\''") + "'" for word in append.split())
    return f"set timeout=0\nlinux /vmlinuz {words}\ninitrd /initrd.img\nboot\n"


def _make_system(path: Path, parts: UefiParts, identity: uuid.UUID) -> None:
    size = sum(each.stat().st_size for each in (parts.shim, parts.grub, parts.kernel, parts.initrd))
    if size > _SYSTEM_SIZE - 8 * _MIB:
        raise HostError(f"kernel, initrd and boot loaders have {size >> 20} MiB, the system partition has 128")
    with path.open("wb") as stream:
        stream.truncate(_SYSTEM_SIZE)
    menu = path.with_suffix(".cfg")
    menu.write_text(plan_menu(parts.append))
    # What mtools writes has this time.
    env = {**run.BASE_ENV, "SOURCE_DATE_EPOCH": str(EPOCH), "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    serial = f"{identity.int & 0xFFFFFFFF:08x}"
    sectors = str(_SYSTEM_SIZE // _SECTOR)
    shape = ["-F", "-v", "ESP", "-N", serial, "-T", sectors, "-h", "64", "-s", "32"]
    run.run(["mformat", "-i", path, *shape, "::"], env=env)
    run.run(["mmd", "-i", path, "::EFI", "::EFI/BOOT", "::EFI/debian"], env=env)
    for source, target in (
        (parts.shim, "EFI/BOOT/BOOTX64.EFI"),
        (parts.grub, "EFI/BOOT/grubx64.efi"),
        (menu, "EFI/debian/grub.cfg"),
        (parts.kernel, "vmlinuz"),
        (parts.initrd, "initrd.img"),
    ):
        run.run(["mcopy", "-i", path, source, f"::{target}"], env=env)
    menu.unlink()


def _copy_into(disk: Path, source: Path, offset: int) -> None:
    """Copy a file to a place in another, and leave its holes out."""
    with source.open("rb") as reader, disk.open("r+b") as writer:
        end, at = os.fstat(reader.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                return
            stop = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            _copy_bytes(reader.fileno(), writer.fileno(), at, offset + at, stop - at)
            at = stop


def _copy_bytes(source: int, target: int, source_at: int, target_at: int, count: int) -> None:
    while count:
        data = os.pread(source, min(count, _MIB), source_at)
        if not data:
            return
        os.pwrite(target, data, target_at)
        source_at, target_at, count = source_at + len(data), target_at + len(data), count - len(data)
