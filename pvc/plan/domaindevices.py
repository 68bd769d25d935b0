"""Disks, directories and the CPU of a domain, and what libvirt cannot give it."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from pvc.errors import GuestError
from pvc.model.vm import EMULATED_CPU, Disk, ExtraDisk, VmTemplate, find_libvirt_problems
from pvc.plan.qemudrives import CACHE_MODES, LAST_SLOT, VmPaths, count_slots
from pvc.plan.qemuwords import base_machine

_DISK_SLOT, _SEED_SLOT, _SCSI_SLOT = 3, 4, 6


def find_problems(template: VmTemplate) -> list[str]:
    """What of a template libvirt cannot do, or pvc not through it."""
    return [
        text
        for _, text in find_libvirt_problems(
            machine_type=template.machine_type,
            cpu_model=template.cpu_model,
            custom_args=template.custom_args,
        )
    ]


def at_slot(device: Xml.Element, slot: int) -> None:
    """Its place on the root bus."""
    Xml.SubElement(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"{slot:#04x}", function="0x0")


def find_cpu(template: VmTemplate, *, kvm: bool, cpus: int) -> Xml.Element:
    """The CPU model with its topology."""
    model = EMULATED_CPU if template.cpu_model == "auto" and not kvm else template.cpu_model
    name, *flags = model.split(",")
    mode = {"auto": "host-passthrough", "host": "host-passthrough", "max": "maximum"}.get(name)
    if mode is not None:
        cpu = Xml.Element("cpu", mode=mode, check="none")
    else:
        cpu = Xml.Element("cpu", mode="custom", match="exact", check="none")
        Xml.SubElement(cpu, "model", fallback="forbid").text = name
    Xml.SubElement(cpu, "topology", sockets="1", dies="1", cores=str(cpus), threads="1")
    for flag in flags:
        word, _, value = flag.lstrip("+-").partition("=")
        on = value == "on" if value else not flag.startswith("-")
        Xml.SubElement(cpu, "feature", policy="require" if on else "disable", name=word)
    return cpu


def count_iothreads(template: VmTemplate) -> int:
    """Threads that disks have of their own: the image's disk, the scsi controller, more disks, in this order."""
    return len(_iothreads(template))


def _iothreads(template: VmTemplate) -> dict[str, str]:
    """The number of each one's thread."""
    wanted = []
    if template.disk is not None and template.disk_model in {"virtio", "virtio-blk"} and template.disk_iothread:
        wanted.append("disk")
    if _has_scsi(template):
        wanted.append("scsi")
    wanted += [f"disk{i}" for i, each in enumerate(template.disks, start=1) if each.iothread and each.bus == "virtio"]
    wanted += [f"drive{i}" for i, each in enumerate(template.drives, start=1) if each.iothread and each.bus == "virtio"]
    return {name: str(i) for i, name in enumerate(wanted, start=1)}


def drive_threads(template: VmTemplate) -> dict[int, str]:
    """QEMU's names of the threads of persistent drives, by the drives' numbers: libvirt knows its own threads only."""
    threads = _iothreads(template)
    places = {i: threads.get(f"drive{i}") for i in range(1, len(template.drives) + 1)}
    return {i: f"iothread{number}" for i, number in places.items() if number is not None}


def _has_scsi(template: VmTemplate) -> bool:
    own = template.disk is not None and template.disk_model == "virtio-scsi"
    return own or "scsi" in [each.bus for each in template.disks] + [each.bus for each in template.drives]


def add_disks(devices: Xml.Element, template: VmTemplate, paths: VmPaths) -> None:
    """All disks and the seed.

    :raise GuestError: a cache mode, a model or a bus is unknown.
    """
    threads = _iothreads(template)
    if _has_scsi(template):
        controller = Xml.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
        Xml.SubElement(controller, "driver", iothread=threads["scsi"])
        at_slot(controller, _SCSI_SLOT)
    if template.disk is not None and paths.overlay is not None:
        _add_image(devices, template, template.disk, paths.overlay, threads)
    if paths.seed is not None:
        _add_seed(devices, template, paths.seed)
    last = [each.bus for each in template.disks] + [each.bus for each in template.drives]
    slot = LAST_SLOT - last.count("virtio") + 1
    for i, (extra, path) in enumerate(zip(template.disks, paths.disks, strict=True), start=1):
        _add_extra(devices, template, extra, path, i, slot, threads)
        slot += extra.bus == "virtio"


def _add_image(devices: Xml.Element, template: VmTemplate, image: Disk, overlay: str, threads: dict[str, str]) -> None:
    words = _driver_words(template.disk_cache, template.disk_discard, template.disk_aio, threads.get("disk"))
    disk = _add_file(devices, template, overlay, image, words)
    match template.disk_model:
        case "virtio" | "virtio-blk":
            _target(disk, "vda", "virtio")
            at_slot(disk, _DISK_SLOT)
        case "virtio-scsi":
            _target(disk, "sda", "scsi")
            _unit(disk, bus=0, unit=0)
        case "ide":
            _target(disk, "sda" if _has_sata(template) else "hda", "sata" if _has_sata(template) else "ide")
            _unit(disk, bus=0, unit=0)
        case other:
            raise GuestError(f"template {template.name}: disk_model {other!r} is none of ide, virtio, virtio-scsi")
    Xml.SubElement(disk, "boot", order="1")
    Xml.SubElement(disk, "alias", name="ua-disk0")


def _add_seed(devices: Xml.Element, template: VmTemplate, path: str) -> None:
    ide = template.disk_model == "ide"
    disk = Xml.SubElement(devices, "disk", type="file", device="cdrom" if ide else "disk")
    Xml.SubElement(disk, "driver", name="qemu", type="raw")
    Xml.SubElement(disk, "source", file=path)
    if ide:
        sata = _has_sata(template)
        _target(disk, "sdb" if sata else "hdc", "sata" if sata else "ide")
        _unit(disk, bus=0 if sata else 1, unit=1 if sata else 0)
    else:
        _target(disk, "vdb", "virtio")
        at_slot(disk, _SEED_SLOT)
    Xml.SubElement(disk, "readonly")
    Xml.SubElement(disk, "alias", name="ua-seed0")


def _add_extra(
    devices: Xml.Element,
    template: VmTemplate,
    extra: ExtraDisk,
    path: str,
    number: int,
    slot: int,
    threads: dict[str, str],
) -> None:
    name = f"disk{number}"
    words = _driver_words(extra.cache, extra.discard, extra.aio, threads.get(name))
    disk = _add_file(devices, template, path, extra.base, words)
    if extra.bus == "scsi":
        _target(disk, f"sd{_letters(number + 1)}", "scsi")
        _unit(disk, bus=0, unit=number)
    elif extra.bus == "virtio":
        _target(disk, f"vd{_letters(number + 1)}", "virtio")
        at_slot(disk, slot)
    else:
        raise GuestError(f"template {template.name}: bus {extra.bus!r} is neither virtio nor scsi")
    Xml.SubElement(disk, "serial").text = name
    Xml.SubElement(disk, "alias", name=f"ua-{name}")


def _driver_words(cache: str, discard: bool, aio: str, thread: str | None) -> dict[str, str]:
    words = {"cache": cache, "discard": "unmap" if discard else "ignore"}
    words |= {"error_policy": "stop", "rerror_policy": "report"}
    if aio != "threads":
        words["io"] = aio
    return words | ({"iothread": thread} if thread else {})


def _add_file(
    devices: Xml.Element, template: VmTemplate, path: str, base: Disk | None, words: dict[str, str]
) -> Xml.Element:
    if words["cache"] not in CACHE_MODES:
        known = ", ".join(sorted(CACHE_MODES))
        raise GuestError(f"template {template.name}: disk_cache {words['cache']!r} is none of {known}")
    disk = Xml.SubElement(devices, "disk", type="file", device="disk")
    Xml.SubElement(disk, "driver", {"name": "qemu", "type": "qcow2"} | words)
    Xml.SubElement(disk, "source", file=path)
    # All that QEMU opens is said, no header's name is followed: an empty element ends the chain.
    below = disk
    for each in reversed(base.files) if base is not None else ():
        below = Xml.SubElement(below, "backingStore", type="file")
        Xml.SubElement(below, "format", type=each.format)
        Xml.SubElement(below, "source", file=each.path)
    Xml.SubElement(below, "backingStore")
    return disk


def add_mounts(devices: Xml.Element, template: VmTemplate) -> None:
    """Directories of the host over 9p; "squash" is QEMU's security_model=none."""
    slot = LAST_SLOT - count_slots(template) + 1
    for i, mount in enumerate(template.mounts):
        if mount.type == "virtiofs":
            continue
        directory = Xml.SubElement(devices, "filesystem", type="mount", accessmode="squash", multidevs="remap")
        Xml.SubElement(directory, "source", dir=mount.source)
        Xml.SubElement(directory, "target", dir=mount.tag)
        if mount.read_only:
            Xml.SubElement(directory, "readonly")
        at_slot(directory, slot + i)


def _target(disk: Xml.Element, name: str, bus: str) -> None:
    Xml.SubElement(disk, "target", dev=name, bus=bus)


def _unit(disk: Xml.Element, *, bus: int, unit: int) -> None:
    Xml.SubElement(disk, "address", type="drive", controller="0", bus=str(bus), target="0", unit=str(unit))


def _has_sata(template: VmTemplate) -> bool:
    return "q35" in base_machine(template)


def _letters(number: int) -> str:
    """As the kernel names disks: a to z, aa..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
