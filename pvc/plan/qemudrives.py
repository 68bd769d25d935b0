"""The drives of one VM on QEMU's command line: disk, seed, more disks, directories of the host, the firmware's flash.

The image's disk and the seed have fixed slots. Directories, more disks and persistent drives are at the end of the bus,
in their order, so that they move no network interface; the guest finds disks in /dev/disk/by-id by their serial
numbers, disk1, disk2, ..., drive1, drive2, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pvc.errors import GuestError
from pvc.model.drive import Mmp, PersistentDrive
from pvc.model.vm import Disk, ExtraDisk, Firmware, VmTemplate
from pvc.plan.qemuwords import device, options, to_json

LAST_SLOT = 0x1E
_DISK_SLOT, _SEED_SLOT, _SCSI_SLOT = 3, 4, 6
# disk_cache as in the peer's templates and in qemu(1), -drive cache=: (cache.direct, cache.no-flush, write-cache)
CACHE_MODES = {
    "unsafe": (False, True, True),
    "writeback": (False, False, True),
    "none": (True, False, True),
    "writethrough": (False, False, False),
    "directsync": (True, False, False),
}


_FIRST_FDSET = 100
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


def count_slots(template: VmTemplate) -> int:
    """Slots that directories, more disks and persistent drives take at the end of the bus."""
    return len(template.mounts) + _buses(template).count("virtio")


def _buses(template: VmTemplate) -> list[str]:
    return [each.bus for each in template.disks] + [each.bus for each in template.drives]


def replace_aio(template: VmTemplate, old: str, new: str) -> VmTemplate:
    """The template with ``new`` in place of ``old`` as every disk's aio."""

    def change(aio: str) -> str:
        return new if aio == old else aio

    return replace(
        template,
        disk_aio=change(template.disk_aio),
        disks=tuple(replace(each, aio=change(each.aio)) for each in template.disks),
        drives=tuple(replace(each, aio=change(each.aio)) for each in template.drives),
    )


def uses_aio(template: VmTemplate, aio: str) -> bool:
    """Whether a disk of the template wants this aio."""
    return replace_aio(template, aio, "") != template


def plan_mounts(template: VmTemplate, shares: tuple[int, ...]) -> list[str]:
    """Directories of the host, over 9p or virtio-fs; ``shares`` are the sockets of those over virtio-fs.

    9p is served by QEMU itself with its own rights: those of the job's owner. ``security_model=none`` creates files as
    that user and lets a chown fail: what is right for homes. QEMU never follows a symbolic link of the guest's out of
    the directory.
    """
    argv: list[str] = []
    slot = LAST_SLOT - count_slots(template) + 1
    sockets = iter(shares)
    for i, mount in enumerate(template.mounts):
        if mount.type == "virtiofs":
            argv += _share(template, i, slot + i, next(sockets))
            continue
        facts = {"id": f"fs{i}", "path": mount.source, "security_model": "none", "multidevs": "remap"}
        if mount.read_only:
            facts["readonly"] = "on"
        argv += ["-fsdev", options("local", **facts)]
        argv += [
            "-device",
            device(template, "virtio-9p", slot + i, fsdev=f"fs{i}", mount_tag=mount.tag, id=f"mount{i}"),
        ]
    return argv


def plan_shares(template: VmTemplate, shares: Sequence[int]) -> list[str]:
    """The directories over virtio-fs alone."""
    slot = LAST_SLOT - count_slots(template) + 1
    places = [i for i, mount in enumerate(template.mounts) if mount.type == "virtiofs"]
    return [word for i, fd in zip(places, shares, strict=True) for word in _share(template, i, slot + i, fd)]


def _share(template: VmTemplate, number: int, slot: int, fd: int) -> list[str]:
    name, tag = f"fs{number}", template.mounts[number].tag
    argv = ["-chardev", f"socket,id={name},fd={fd}"]
    return [*argv, "-device", device(template, "vhost-user-fs", slot, chardev=name, tag=tag, id=f"mount{number}")]


def plan_drives(template: VmTemplate, paths: VmPaths, drives: Sequence[DriveFd] = ()) -> list[str]:
    """Arguments for all disks and the seed; ``drives`` in the order of the template's.

    :raise GuestError: a cache mode, a model or a bus is unknown.
    """
    argv = []
    disk, overlay = template.disk, paths.overlay
    on_scsi = disk is not None and template.disk_model == "virtio-scsi"
    if on_scsi or "scsi" in _buses(template):
        argv += ["-object", "iothread,id=iothread-scsi"]
        argv += ["-device", device(template, "virtio-scsi", _SCSI_SLOT, iothread="iothread-scsi", id="scsi0")]
    if disk is not None and overlay is not None:
        argv += _disk(template, disk, overlay)
    argv += _seed(template, paths.seed)
    slot = LAST_SLOT - _buses(template).count("virtio") + 1
    for i, (extra, path) in enumerate(zip(template.disks, paths.disks, strict=True), start=1):
        argv += _extra(template, extra, path, i, slot)
        slot += extra.bus == "virtio"
    return argv + plan_persistent(template, drives)


def plan_persistent(
    template: VmTemplate, drives: Sequence[DriveFd], threads: Mapping[int, str] | None = None
) -> list[str]:
    """Arguments for the persistent drives, which are the last on the bus.

    ``threads``: iothreads that are there already, by the numbers of drives; None: they are made here.

    :raise GuestError: a cache mode or a bus is unknown.
    """
    argv: list[str] = []
    slot = LAST_SLOT - sum(each.bus == "virtio" for each in template.drives) + 1
    for i, (drive, opened) in enumerate(zip(template.drives, drives, strict=True), start=1):
        argv += _drive(template, drive, opened, i, slot, threads)
        slot += drive.bus == "virtio"
    return argv


def plan_firmware(firmware: Firmware) -> list[str]:
    """Two flash chips: the code, which all share, and the VM's variables."""
    code = {"driver": "file", "filename": firmware.code, "read-only": True, "locking": "off"}
    variables = {"driver": "file", "filename": firmware.variables}
    argv = ["-blockdev", to_json({"driver": firmware.format, "node-name": "firmware", "read-only": True, "file": code})]
    argv += ["-blockdev", to_json({"driver": firmware.format, "node-name": "variables", "file": variables})]
    if firmware.smm:
        # Only code in system management mode may write variables: what Secure Boot rests on.
        argv += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return argv


def _disk(template: VmTemplate, disk: Disk, overlay: str) -> list[str]:
    file = {"driver": "file", "filename": overlay, **_aio(template.disk_aio)}
    write_cache, argv = _block(template, _node("disk", file, disk), template.disk_cache, discard=template.disk_discard)
    properties = {"drive": "disk", "id": "disk0", "bootindex": "1", "write-cache": write_cache, **_ERRORS}
    match template.disk_model:
        case "virtio" | "virtio-blk":
            if template.disk_iothread:
                argv += ["-object", "iothread,id=iothread0"]
                properties = {"iothread": "iothread0"} | properties
            argv += ["-device", device(template, "virtio-blk", _DISK_SLOT, **properties)]
        case "virtio-scsi":
            argv += ["-device", options("scsi-hd", bus="scsi0.0", **properties)]
        case "ide":
            argv += ["-device", options("ide-hd", bus="ide.0", **properties)]
        case other:
            raise GuestError(f"template {template.name}: disk_model {other!r} is none of ide, virtio, virtio-scsi")
    return argv


def _extra(template: VmTemplate, disk: ExtraDisk, path: str, number: int, slot: int) -> list[str]:
    name = f"disk{number}"
    file = {"driver": "file", "filename": path, **_aio(disk.aio)}
    node = _node(f"extra{number}", file, disk.base)
    write_cache, argv = _block(template, node, disk.cache, discard=disk.discard)
    properties = {"drive": f"extra{number}", "id": name, "serial": name, "write-cache": write_cache, **_ERRORS}
    return argv + _attach(template, disk, properties, slot, iothread=f"iothread{number}")


def find_drive(node: str) -> int | None:
    """The number of the persistent drive whose node in QEMU has this name; None: it is another disk's."""
    number = node.removeprefix("node-drive")
    return int(number) if number != node and number.isdecimal() else None


def _drive(
    template: VmTemplate,
    drive: PersistentDrive,
    opened: DriveFd,
    number: int,
    slot: int,
    threads: Mapping[int, str] | None,
) -> list[str]:
    """A file that the supervisor has opened: QEMU gets what was checked and locked, whatever has the name by now."""
    name, fdset = f"drive{number}", _FIRST_FDSET + number
    shared = drive.format == "raw" and drive.mmp is not Mmp.YES
    locking = "auto" if opened.locks and not shared else "off"
    file = {"driver": "file", "filename": f"/dev/fdset/{fdset}", "locking": locking, **_aio(drive.aio)}
    node: dict[str, Any] = {"driver": drive.format, "node-name": f"node-{name}", "file": file}
    if drive.format == "qcow2":
        node["backing"] = None
    write_cache, argv = _block(template, node, drive.cache, discard=drive.discard)
    properties = {"drive": f"node-{name}", "id": name, "serial": name, "write-cache": write_cache, **_ERRORS}
    if shared:
        properties["share-rw"] = "on"
    if threads is not None and number in threads:
        properties["iothread"] = threads[number]
        drive = replace(drive, iothread=False)
    argv = ["-add-fd", f"fd={opened.fd},set={fdset}", *argv]
    return argv + _attach(template, drive, properties, slot, iothread=f"iothread-d{number}")


def _attach(
    template: VmTemplate, disk: ExtraDisk | PersistentDrive, properties: dict[str, str], slot: int, *, iothread: str
) -> list[str]:
    if disk.bus == "scsi":
        return ["-device", options("scsi-hd", bus="scsi0.0", **properties)]
    if disk.bus != "virtio":
        raise GuestError(f"template {template.name}: bus {disk.bus!r} is neither virtio nor scsi")
    argv = []
    if disk.iothread:
        argv += ["-object", f"iothread,id={iothread}"]
        properties = {**properties, "iothread": iothread}
    return [*argv, "-device", device(template, "virtio-blk", slot, **properties)]


def _aio(aio: str) -> dict[str, str]:
    """QEMU's own default is threads."""
    return {} if aio == "threads" else {"aio": aio}


def _node(name: str, file: dict[str, Any], base: Disk | None) -> dict[str, Any]:
    """The node of a qcow2 file that reads from ``base``."""
    node: dict[str, Any] = {"driver": "qcow2", "node-name": name, "file": file}
    if base is not None:
        node["backing"] = plan_backing(base)
    return node


def _block(template: VmTemplate, node: dict[str, Any], mode: str, *, discard: bool) -> tuple[str, list[str]]:
    """Whether the device has a write cache, and the node with its file below it."""
    try:
        direct, no_flush, write_cache = CACHE_MODES[mode]
    except KeyError:
        known = ", ".join(sorted(CACHE_MODES))
        raise GuestError(f"template {template.name}: disk_cache {mode!r} is none of {known}") from None
    more = {"discard": "unmap" if discard else "ignore", "cache": {"direct": direct, "no-flush": no_flush}}
    found = {"driver": node["driver"], "node-name": node["node-name"], **more, "file": {**node["file"], **more}}
    if "backing" in node:
        found["backing"] = node["backing"]
    return ("on" if write_cache else "off"), ["-blockdev", to_json(found)]


def plan_backing(disk: Disk) -> dict[str, Any]:
    """The node of a base image, with those below it: all that QEMU opens is said, no header's name is followed."""
    node: dict[str, Any] | None = None
    for each in disk.files:
        # Nobody writes an image of a repository in place, and not every parallel file system has the locks that
        # QEMU would take for each reader.
        file = {"driver": "file", "filename": each.path, "locking": "off", "read-only": True}
        below = {"backing": node} if each.format == "qcow2" else {}
        node = {"driver": each.format, "read-only": True, "file": file, **below}
    assert node is not None
    return node


def _seed(template: VmTemplate, path: str | None) -> list[str]:
    if path is None:
        return []
    file = {"driver": "file", "filename": path, "locking": "off", "read-only": True}
    argv = ["-blockdev", to_json({"driver": "raw", "node-name": "seed", "read-only": True, "file": file})]
    if template.disk_model == "ide":
        return [*argv, "-device", "ide-cd,bus=ide.1,drive=seed,id=seed0"]
    return [*argv, "-device", device(template, "virtio-blk", _SEED_SLOT, drive="seed", id="seed0")]
