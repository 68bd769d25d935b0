"""The drives of one VM on QEMU's command line: disk, seed, more disks, directories of the host, the firmware's flash.

The image's disk and the seed have fixed slots. Directories and more disks are at the end of the bus, in their order, so
that they move no network interface; the guest finds disks in /dev/disk/by-id by their serial numbers, disk1, disk2...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pvc.errors import GuestError
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


@dataclass(frozen=True)
class VmPaths:
    """A VM's files on its node; None: the VM has no such file. ``disks`` in the order of the template's."""

    overlay: str | None
    seed: str | None
    disks: tuple[str, ...] = ()
    firmware: Firmware | None = None


def count_slots(template: VmTemplate) -> int:
    """Slots that directories and more disks take at the end of the bus."""
    return len(template.mounts) + _count_disks(template)


def _count_disks(template: VmTemplate) -> int:
    return sum(each.bus == "virtio" for each in template.disks)


def plan_mounts(template: VmTemplate) -> list[str]:
    """Directories of the host, served by QEMU itself over 9p with its own rights: those of the job's owner.

    ``security_model=none`` creates files as that user and lets a chown fail: what is right for homes. QEMU never
    follows a symbolic link of the guest's out of the directory.
    """
    argv: list[str] = []
    slot = LAST_SLOT - count_slots(template) + 1
    for i, mount in enumerate(template.mounts):
        facts = {"id": f"fs{i}", "path": mount.source, "security_model": "none", "multidevs": "remap"}
        if mount.read_only:
            facts["readonly"] = "on"
        argv += ["-fsdev", options("local", **facts)]
        argv += [
            "-device",
            device(template, "virtio-9p", slot + i, fsdev=f"fs{i}", mount_tag=mount.tag, id=f"mount{i}"),
        ]
    return argv


def plan_drives(template: VmTemplate, paths: VmPaths) -> list[str]:
    """Arguments for all disks and the seed.

    :raise GuestError: a cache mode, a model or a bus is unknown.
    """
    argv = []
    disk, overlay = template.disk, paths.overlay
    on_scsi = disk is not None and template.disk_model == "virtio-scsi"
    if on_scsi or any(each.bus == "scsi" for each in template.disks):
        argv += ["-object", "iothread,id=iothread-scsi"]
        argv += ["-device", device(template, "virtio-scsi", _SCSI_SLOT, iothread="iothread-scsi", id="scsi0")]
    if disk is not None and overlay is not None:
        argv += _disk(template, disk, overlay)
    argv += _seed(template, paths.seed)
    slot = LAST_SLOT - _count_disks(template) + 1
    for i, (extra, path) in enumerate(zip(template.disks, paths.disks, strict=True), start=1):
        argv += _extra(template, extra, path, i, slot)
        slot += extra.bus == "virtio"
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
    write_cache, argv = _block(template, "disk", overlay, disk, template.disk_cache, template.disk_discard)
    properties = {"drive": "disk", "id": "disk0", "bootindex": "1", "write-cache": write_cache}
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
    write_cache, argv = _block(template, f"extra{number}", path, disk.base, disk.cache, disk.discard)
    properties = {"drive": f"extra{number}", "id": name, "serial": name, "write-cache": write_cache}
    if disk.bus == "scsi":
        return [*argv, "-device", options("scsi-hd", bus="scsi0.0", **properties)]
    if disk.bus != "virtio":
        raise GuestError(f"template {template.name}: bus {disk.bus!r} is neither virtio nor scsi")
    if disk.iothread:
        argv += ["-object", f"iothread,id=iothread{number}"]
        properties["iothread"] = f"iothread{number}"
    return [*argv, "-device", device(template, "virtio-blk", slot, **properties)]


def _block(
    template: VmTemplate, node: str, path: str, base: Disk | None, mode: str, discard: bool
) -> tuple[str, list[str]]:
    """Whether the device has a write cache, and the node of a qcow2 file that reads from ``base``."""
    try:
        direct, no_flush, write_cache = CACHE_MODES[mode]
    except KeyError:
        known = ", ".join(sorted(CACHE_MODES))
        raise GuestError(f"template {template.name}: disk_cache {mode!r} is none of {known}") from None
    cache = {"direct": direct, "no-flush": no_flush}
    unmap = "unmap" if discard else "ignore"
    found: dict[str, Any] = {
        "driver": "qcow2",
        "node-name": node,
        "discard": unmap,
        "cache": cache,
        "file": {"driver": "file", "filename": path, "discard": unmap, "cache": cache},
    }
    if base is not None:
        found["backing"] = plan_backing(base)
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
