# SPDX-License-Identifier: Apache-2.0
"""Disks, directories and the CPU of a domain."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as Xml

from pvc.model.hardware import DiskDevice, Hardware
from pvc.model.vm import Disk, Mount, VmTemplate
from pvc.plan.hardware import SCSI_SLOT
from pvc.plan.qemudrives import TABLES, VmPaths, find_kind


def at_slot(device: Xml.Element, slot: int) -> None:
    """Its place on the root bus."""
    Xml.SubElement(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"{slot:#04x}", function="0x0")


def find_cpu(hardware: Hardware) -> Xml.Element:
    """The CPU model with its topology."""
    name, *flags = hardware.cpu.split(",")
    mode = {"host": "host-passthrough", "max": "maximum"}.get(name)
    if mode is not None:
        cpu = Xml.Element("cpu", mode=mode, check="none")
    else:
        cpu = Xml.Element("cpu", mode="custom", match="exact", check="none")
        Xml.SubElement(cpu, "model", fallback="forbid").text = name
    Xml.SubElement(cpu, "topology", sockets="1", dies="1", cores=str(hardware.cpus), threads="1")
    for flag in flags:
        word, _, value = flag.lstrip("+-").partition("=")
        on = value == "on" if value else not flag.startswith("-")
        Xml.SubElement(cpu, "feature", policy="require" if on else "disable", name=word)
    return cpu


def drive_threads(hardware: Hardware) -> dict[str, str]:
    """QEMU's names of the threads of persistent drives, by the drives' names: libvirt knows its own threads only."""
    found = enumerate(hardware.threads, start=1)
    return {name: f"iothread{number}" for number, name in found if name.startswith("drive")}


def add_disks(devices: Xml.Element, hardware: Hardware, template: VmTemplate, paths: VmPaths) -> None:
    """The image's disk, the seed, and more disks; persistent drives are no elements."""
    threads = {name: str(number) for number, name in enumerate(hardware.threads, start=1)}
    if hardware.scsi:
        controller = Xml.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
        Xml.SubElement(controller, "driver", iothread=threads["scsi0"])
        at_slot(controller, SCSI_SLOT)
    for disk in hardware.disks:
        kind, number = find_kind(disk)
        if kind == "seed" and paths.seed is not None:
            _add_seed(devices, disk, paths.seed)
        elif kind == "disk":
            path = paths.overlay if number == 0 else paths.disks[number - 1]
            base = template.disk if number == 0 else template.disks[number - 1].base
            assert path is not None
            _add_disk(devices, disk, path, base, threads.get(disk.name))


def _add_disk(devices: Xml.Element, disk: DiskDevice, path: str, base: Disk | None, thread: str | None) -> None:
    _, number = find_kind(disk)
    element = _add_file(devices, path, base, _driver_words(disk, thread))
    # A name of its own; the seed has the second one.
    letters = _letters(number + 1 if number else 0)
    if disk.bus == "virtio":
        _target(element, f"vd{letters}", "virtio")
        at_slot(element, disk.place)
    elif disk.bus == "scsi":
        _target(element, f"sd{letters}", "scsi")
        _unit(element, bus=0, unit=disk.place)
    else:
        _target(element, "sda" if disk.bus == "sata" else "hda", disk.bus)
        _unit(element, bus=0, unit=0)
    if number == 0:
        Xml.SubElement(element, "boot", order="1")
    if disk.serial:
        Xml.SubElement(element, "serial").text = disk.serial
    Xml.SubElement(element, "alias", name=f"ua-{disk.name}")


def _add_seed(devices: Xml.Element, seed: DiskDevice, path: str) -> None:
    virtio, sata = seed.bus == "virtio", seed.bus == "sata"
    disk = Xml.SubElement(devices, "disk", type="file", device="disk" if virtio else "cdrom")
    Xml.SubElement(disk, "driver", name="qemu", type="raw")
    Xml.SubElement(disk, "source", file=path)
    if virtio:
        _target(disk, "vdb", "virtio")
        at_slot(disk, seed.place)
    else:
        _target(disk, "sdb" if sata else "hdc", seed.bus)
        _unit(disk, bus=0 if sata else 1, unit=1 if sata else 0)
    Xml.SubElement(disk, "readonly")
    Xml.SubElement(disk, "alias", name=f"ua-{seed.name}")


def _driver_words(disk: DiskDevice, thread: str | None) -> dict[str, str]:
    words = {"cache": disk.cache, "discard": "unmap" if disk.discard else "ignore"}
    words |= {"error_policy": "stop", "rerror_policy": "report"}
    if disk.aio != "threads":
        words["io"] = disk.aio
    return words | ({"iothread": thread} if thread else {})


def _add_file(devices: Xml.Element, path: str, base: Disk | None, words: dict[str, str]) -> Xml.Element:
    disk = Xml.SubElement(devices, "disk", type="file", device="disk")
    driver = Xml.SubElement(disk, "driver", {"name": "qemu", "type": "qcow2"} | words)
    tables = Xml.SubElement(driver, "metadata_cache")
    Xml.SubElement(tables, "max_size", unit="bytes").text = str(TABLES["l2-cache-size"])
    Xml.SubElement(disk, "source", file=path)
    # All that QEMU opens is said, no header's name is followed: an empty element ends the chain.
    below = disk
    for each in reversed(base.files) if base is not None else ():
        below = Xml.SubElement(below, "backingStore", type="file")
        Xml.SubElement(below, "format", type=each.format)
        Xml.SubElement(below, "source", file=each.path)
    Xml.SubElement(below, "backingStore")
    return disk


def add_mounts(devices: Xml.Element, hardware: Hardware, mounts: Sequence[Mount]) -> None:
    """Directories of the host over 9p; "squash" is QEMU's security_model=none."""
    for share in hardware.shares:
        if share.type == "virtiofs":
            continue
        directory = Xml.SubElement(devices, "filesystem", type="mount", accessmode="squash", multidevs="remap")
        Xml.SubElement(directory, "source", dir=mounts[share.number].source)
        Xml.SubElement(directory, "target", dir=share.tag)
        if share.read_only:
            Xml.SubElement(directory, "readonly")
        at_slot(directory, share.slot)


def _target(disk: Xml.Element, name: str, bus: str) -> None:
    Xml.SubElement(disk, "target", dev=name, bus=bus)


def _unit(disk: Xml.Element, *, bus: int, unit: int) -> None:
    Xml.SubElement(disk, "address", type="drive", controller="0", bus=str(bus), target="0", unit=str(unit))


def _letters(number: int) -> str:
    """As the kernel names disks: a to z, aa..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
