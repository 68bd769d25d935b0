# SPDX-License-Identifier: Apache-2.0
"""The disks and directories of a VM's hardware on QEMU's command line, with the files that are behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pvc.model.drive import PersistentDrive
from pvc.model.hardware import DiskDevice, Hardware, ShareDevice
from pvc.model.vm import Disk, Firmware, Mount, VmTemplate
from pvc.plan.hardware import CACHE_MODES, SCSI_SLOT
from pvc.plan.qemuwords import device, options, to_json

# What QEMU keeps of a qcow2 file's tables: 1 MiB for 8 GiB of the disk (docs/qcow2-cache.txt). Its default is up to 32
# for each file of a chain, which the job's memory is not asked for; beyond it a table is read again.
TABLES = {"l2-cache-size": 8 << 20}
_TABLES_BELOW = {"l2-cache-size": 2 << 20}
_FIRST_FDSET, _FIRST_IMAGE = 100, 200
# Nodes of files that others may write to; libvirt names its own.
_WATCHED = re.compile(r".*-below\d+|save-[0-9a-f]+|libvirt-.*|firmware|variables")
# QEMU's default pauses the guest for ENOSPC alone, and tells it of an exceeded quota (EDQUOT) as of a broken disk.
_ERRORS = {"werror": "stop", "rerror": "report"}


@dataclass(frozen=True)
class DriveFd:
    """A persistent drive that is open for QEMU; ``locks``: the file system has locks, so QEMU shall take its own."""

    fd: int
    locks: bool = True


@dataclass(frozen=True)
class VmPaths:
    """A VM's files on its node; None: the VM has no such file. ``disks`` in the order of the template's."""

    overlay: str | None
    seed: str | None
    disks: tuple[str, ...] = ()
    firmware: Firmware | None = None


def plan_mounts(hardware: Hardware, mounts: Sequence[Mount], sockets: Sequence[int]) -> list[str]:
    """Directories of the host, over 9p or virtio-fs; ``sockets`` lead to the virtiofsd of each over virtio-fs.

    9p is served by QEMU itself with its own rights: those of the job's owner. ``security_model=none`` creates files as
    that user and lets a chown fail: what is right for homes. QEMU never follows a symbolic link of the guest's out of
    the directory.
    """
    argv: list[str] = []
    left = iter(sockets)
    for share in hardware.shares:
        if share.type == "virtiofs":
            argv += _share(hardware, share, next(left))
            continue
        name = f"fs{share.number}"
        source = mounts[share.number].source
        facts = {"id": name, "path": source, "security_model": "none", "multidevs": "remap"}
        if share.read_only:
            facts["readonly"] = "on"
        properties = {"fsdev": name, "mount_tag": share.tag, "id": f"mount{share.number}"}
        argv += [
            "-fsdev",
            options("local", **facts),
            "-device",
            device(hardware, "virtio-9p", share.slot, **properties),
        ]
    return argv


def plan_shares(hardware: Hardware, sockets: Sequence[int]) -> list[str]:
    """The directories over virtio-fs alone."""
    shares = [each for each in hardware.shares if each.type == "virtiofs"]
    return [word for each, fd in zip(shares, sockets, strict=True) for word in _share(hardware, each, fd)]


def _share(hardware: Hardware, share: ShareDevice, fd: int) -> list[str]:
    name = f"fs{share.number}"
    words = device(hardware, "vhost-user-fs", share.slot, chardev=name, tag=share.tag, id=f"mount{share.number}")
    return ["-chardev", f"socket,id={name},fd={fd}", "-device", words]


def name_images(opened: Mapping[str, int]) -> dict[str, str]:
    """What QEMU calls files that it inherits, by their paths. QEMU opens nothing of these by a name of the file's."""
    return {path: f"/dev/fdset/{i}" for i, path in enumerate(opened, start=_FIRST_IMAGE)}


def plan_images(opened: Mapping[str, int]) -> list[str]:
    """Arguments that give QEMU the files of ``name_images``."""
    sets = enumerate(opened.values(), start=_FIRST_IMAGE)
    return [word for i, fd in sets for word in ("-add-fd", f"fd={fd},set={i}")]


def find_moved(nodes: Sequence[Mapping[str, Any]]) -> str | None:
    """What QEMU calls the image whose header made it open another file for its data; None: there is none.

    ``nodes``: QEMU's answer to query-named-block-nodes, once it has read all headers.
    """
    for node in nodes:
        name, image = str(node["node-name"]), node["image"]
        specific = image.get("format-specific", {})
        if _WATCHED.fullmatch(name) and specific.get("type") == "qcow2" and "data-file" in specific["data"]:
            return str(image["filename"])
    return None


def plan_drives(
    hardware: Hardware,
    template: VmTemplate,
    paths: VmPaths,
    drives: Sequence[DriveFd] = (),
    images: Mapping[str, str] | None = None,
) -> list[str]:
    """Arguments for all disks and the seed; ``drives`` in the template's order, ``images`` of ``name_images``."""
    argv = []
    images = images or {}
    if hardware.scsi:
        argv += ["-object", "iothread,id=iothread-scsi"]
        argv += ["-device", device(hardware, "virtio-scsi", SCSI_SLOT, iothread="iothread-scsi", id="scsi0")]
    for disk in hardware.disks:
        kind, number = find_kind(disk)
        if kind == "seed" and paths.seed is not None:
            argv += _seed(hardware, disk, paths.seed)
        elif kind == "disk":
            path = paths.overlay if number == 0 else paths.disks[number - 1]
            base = template.disk if number == 0 else template.disks[number - 1].base
            assert path is not None
            argv += _disk(hardware, disk, path, base, images)
    return argv + plan_persistent(hardware, template.drives, drives)


def find_kind(disk: DiskDevice) -> tuple[str, int]:
    """What a disk is and which of these: ("disk", 0), ("seed", 0), ("drive", 2)."""
    kind = disk.name.rstrip("0123456789")
    return kind, int(disk.name[len(kind) :])


def plan_persistent(
    hardware: Hardware,
    drives: Sequence[PersistentDrive],
    opened: Sequence[DriveFd],
    threads: Mapping[str, str] | None = None,
) -> list[str]:
    """Arguments for the persistent drives, which are the last on the bus.

    ``threads``: iothreads that are there already, by the names of disks; None: they are made here.
    """
    devices = [each for each in hardware.disks if find_kind(each)[0] == "drive"]
    argv: list[str] = []
    for disk, drive, file in zip(devices, drives, opened, strict=True):
        argv += _drive(hardware, disk, drive, file, threads)
    return argv


def plan_firmware(firmware: Firmware, images: Mapping[str, str]) -> list[str]:
    """Two flash chips: the code, which all share, and the VM's variables."""
    code = {"driver": "file", "filename": images[firmware.code], "read-only": True, "locking": "off"}
    variables = {"driver": "file", "filename": firmware.variables}
    below = {"backing": None} if firmware.format == "qcow2" else {}
    chip: dict[str, Any] = {"driver": firmware.format, "node-name": "firmware", "read-only": True, "file": code}
    argv = ["-blockdev", to_json(chip | below)]
    chip = {"driver": firmware.format, "node-name": "variables", "file": variables}
    argv += ["-blockdev", to_json(chip | below)]
    if firmware.smm:
        # Only code in system management mode may write variables: what Secure Boot rests on.
        argv += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return argv


def _disk(hardware: Hardware, disk: DiskDevice, path: str, base: Disk | None, images: Mapping[str, str]) -> list[str]:
    """A qcow2 file of the VM's own, which reads from ``base``."""
    _, number = find_kind(disk)
    name = f"extra{number}" if number else "disk"
    file = {"driver": "file", "filename": path, **_aio(disk.aio)}
    node: dict[str, Any] = {"driver": "qcow2", "node-name": name, "file": file, **TABLES}
    node["backing"] = plan_backing(base, images, name) if base is not None else None
    return _block(disk, node) + _attach(hardware, disk, {"drive": name}, thread=f"iothread{number}")


def find_drive(node: str) -> int | None:
    """The number of the persistent drive whose node in QEMU has this name; None: it is another disk's."""
    number = node.removeprefix("node-drive")
    return int(number) if number != node and number.isdecimal() else None


def _drive(
    hardware: Hardware,
    disk: DiskDevice,
    drive: PersistentDrive,
    opened: DriveFd,
    threads: Mapping[str, str] | None,
) -> list[str]:
    """A file that the supervisor has opened: QEMU gets what was checked and locked, whatever has the name by now."""
    _, number = find_kind(disk)
    fdset = _FIRST_FDSET + number
    locking = "auto" if opened.locks and not disk.shared else "off"
    file = {"driver": "file", "filename": f"/dev/fdset/{fdset}", "locking": locking, **_aio(disk.aio)}
    node: dict[str, Any] = {"driver": drive.format, "node-name": f"node-{disk.name}", "file": file}
    if drive.format == "qcow2":
        node |= {"backing": None, **TABLES}
    argv = ["-add-fd", f"fd={opened.fd},set={fdset}", *_block(disk, node)]
    there = (threads or {}).get(disk.name)
    return argv + _attach(
        hardware, disk, {"drive": f"node-{disk.name}"}, thread=there or f"iothread-d{number}", make=there is None
    )


def _attach(
    hardware: Hardware, disk: DiskDevice, properties: dict[str, str], *, thread: str, make: bool = True
) -> list[str]:
    """The device of a disk at its place; ``make``: its iothread is not there yet."""
    properties = properties | {"id": disk.name}
    if disk.name == "disk0":
        properties["bootindex"] = "1"
    if disk.serial:
        properties["serial"] = disk.serial
    properties |= {"write-cache": "on" if CACHE_MODES[disk.cache][2] else "off", **_ERRORS}
    if disk.shared:
        properties["share-rw"] = "on"
    if disk.bus == "scsi":
        return ["-device", options("scsi-hd", bus="scsi0.0", **properties)]
    if disk.bus != "virtio":
        return ["-device", options("ide-hd", bus="ide.0", **properties)]
    argv = []
    if disk.thread:
        argv = ["-object", f"iothread,id={thread}"] if make else []
        properties["iothread"] = thread
    return [*argv, "-device", device(hardware, "virtio-blk", disk.place, **properties)]


def _aio(aio: str) -> dict[str, str]:
    """QEMU's own default is threads."""
    return {} if aio == "threads" else {"aio": aio}


def _block(disk: DiskDevice, node: dict[str, Any]) -> list[str]:
    """The node with its file below it."""
    direct, no_flush, _ = CACHE_MODES[disk.cache]
    more = {
        "discard": "unmap" if disk.discard else "ignore",
        "cache": {"direct": direct, "no-flush": no_flush},
    }
    found = {"driver": node["driver"], "node-name": node["node-name"], **more, "file": {**node["file"], **more}}
    found |= {key: node[key] for key in ("backing", *TABLES) if key in node}
    return ["-blockdev", to_json(found)]


def plan_backing(disk: Disk, images: Mapping[str, str], above: str) -> dict[str, Any]:
    """The node of a base image, with those below it: all that QEMU opens is said, no header's name is followed.

    ``images``: what QEMU calls the files, which it has as descriptors; ``above``: the node that rests on them.
    """
    node: dict[str, Any] | None = None
    for i, each in enumerate(disk.files):
        # Nobody writes an image of a repository in place, and not every parallel file system has the locks that
        # QEMU would take for each reader.
        file = {"driver": "file", "filename": images[each.path], "locking": "off", "read-only": True}
        below = {"backing": node, **_TABLES_BELOW} if each.format == "qcow2" else {}
        node = {"driver": each.format, "node-name": f"{above}-below{i}", "read-only": True, "file": file, **below}
    assert node is not None
    return node


def _seed(hardware: Hardware, disk: DiskDevice, path: str) -> list[str]:
    file = {"driver": "file", "filename": path, "locking": "off", "read-only": True}
    argv = ["-blockdev", to_json({"driver": "raw", "node-name": "seed", "read-only": True, "file": file})]
    if disk.bus != "virtio":
        return [*argv, "-device", f"ide-cd,bus=ide.1,drive=seed,id={disk.name}"]
    return [*argv, "-device", device(hardware, "virtio-blk", disk.place, drive="seed", id=disk.name)]
