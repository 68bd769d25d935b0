# SPDX-License-Identifier: Apache-2.0
"""Which hardware a VM has: the one place that knows of slots, machine types and what each of them can have.

Devices sit at fixed slots of the root bus (q35's pcie.0 takes integrated end points, so no root port is spent), so a
guest's device names do not depend on what else it has. The image's disk and the seed have fixed slots. Directories,
more disks and persistent drives are at the end of the bus, in their order, so that they move no network interface; the
guest finds disks in /dev/disk/by-id by their serial numbers, disk1, disk2, ..., drive1, drive2, ...

Facts from the sources of QEMU 7.2 (hw/i386/pc_q35.c: slots 0 and 0x1f are the chipset's).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pvc.errors import GuestError
from pvc.model.drive import Mmp
from pvc.model.hardware import DiskDevice, GuestMemory, Hardware, HostDevice, NicDevice, ShareDevice
from pvc.model.node import Nic
from pvc.model.vm import EMULATED_CPU, Accel, ExtraDisk, Firmware, VmTemplate
from pvc.plan.helpers import shared_mounts

SCREEN_SLOT, DISK_SLOT, SEED_SLOT, RNG_SLOT, SCSI_SLOT, CHANNELS_SLOT, FIRST_NIC_SLOT = 2, 3, 4, 5, 6, 7, 8
LAST_SLOT = 0x1E
# disk_cache as in the peer's templates and in qemu(1), -drive cache=: (cache.direct, cache.no-flush, write-cache)
CACHE_MODES = {
    "unsafe": (False, True, True),
    "writeback": (False, False, True),
    "none": (True, False, True),
    "writethrough": (False, False, False),
    "directsync": (True, False, False),
}


@dataclass(frozen=True)
class Wanted:
    """What a VM is given besides its template; ``memory_mib`` is the guest's own, ``accel`` KVM or TCG.

    ``devices``: addresses of the node's PCI devices; ``ports``: names of ports of virtio-serial.
    """

    cpus: int
    memory_mib: int
    accel: Accel
    nics: tuple[Nic, ...] = ()
    devices: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    seed: bool = True
    firmware: Firmware | None = None


def plan_hardware(name: str, template: VmTemplate, wanted: Wanted) -> Hardware:
    """The machine of the VM ``name``.

    :raise GuestError: the machine cannot have what is wanted, or a disk's model, bus or cache mode is unknown.
    """
    machine = _base(template)
    kvm = wanted.accel is Accel.KVM
    cpu = template.cpu_model if template.cpu_model != "auto" else "host" if kvm else EMULATED_CPU
    screen = "" if template.remote_display == "none" else template.remote_display
    _check_microvm(name, template, wanted, screen)
    return Hardware(
        program=template.qemu_bin,
        machine=template.machine_type,
        bus=_root_bus(template),
        accel=wanted.accel,
        cpu=cpu,
        cpus=wanted.cpus,
        memory=GuestMemory(wanted.memory_mib, bool(template.hugepages or shared_mounts(template)), template.hugepages),
        firmware="bios" if wanted.firmware is None else "uefi",
        smm=wanted.firmware is not None and wanted.firmware.smm,
        panic=machine in {"q35", "pc"} or machine.startswith(("pc-q35", "pc-i440fx")),
        tpm=bool(template.tpm),
        screen=screen,
        scsi=_has_scsi(template),
        disks=tuple(_disks(template, seed=wanted.seed)),
        shares=tuple(_shares(template)),
        nics=tuple(_nics(template, wanted.nics)),
        devices=tuple(_devices(name, template, wanted)),
        ports=wanted.ports,
        custom_args=template.custom_args,
    )


def is_microvm(machine: str) -> bool:
    """Whether a machine of this type has no PCI."""
    return machine.partition(",")[0] == "microvm"


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


def _base(template: VmTemplate) -> str:
    return template.machine_type.partition(",")[0]


def _root_bus(template: VmTemplate) -> str:
    if is_microvm(template.machine_type):
        return ""
    return "pcie.0" if "q35" in template.machine_type or template.machine_type.startswith("virt") else "pci.0"


def _check_microvm(name: str, template: VmTemplate, wanted: Wanted, screen: str) -> None:
    if not is_microvm(template.machine_type):
        return
    if template.tpm:
        # QEMU 7.2 for x86 has tpm-tis-device, which sits on no ISA bus, for no machine.
        raise GuestError(f"template {template.name}: a microvm has no TPM")
    if screen:
        raise GuestError(f"template {template.name}: a microvm has no screen: remote-display must be none")
    if wanted.devices:
        raise GuestError(f"{name}: a microvm has no PCI bus for devices of its node")


def _buses(template: VmTemplate) -> list[str]:
    return [each.bus for each in template.disks] + [each.bus for each in template.drives]


def _has_scsi(template: VmTemplate) -> bool:
    own = template.disk is not None and template.disk_model == "virtio-scsi"
    return own or "scsi" in _buses(template)


def _first_at_the_end(template: VmTemplate) -> int:
    return LAST_SLOT - len(template.mounts) - _buses(template).count("virtio") + 1


def _disks(template: VmTemplate, *, seed: bool) -> Iterator[DiskDevice]:
    ide = "sata" if "q35" in _base(template) else "ide"
    if template.disk is not None:
        yield _image_disk(template, ide)
    if seed:
        bus = ide if template.disk_model == "ide" else "virtio"
        yield DiskDevice("seed0", bus, SEED_SLOT)
    slot = _first_at_the_end(template) + len(template.mounts)
    for i, disk in enumerate(template.disks, start=1):
        yield _more(template, disk, f"disk{i}", i, slot)
        slot += disk.bus == "virtio"
    for i, drive in enumerate(template.drives, start=1):
        like = ExtraDisk(None, 0, drive.bus, drive.cache, drive.discard, drive.iothread, drive.aio)
        shared = drive.format == "raw" and drive.mmp is not Mmp.YES
        yield replace(_more(template, like, f"drive{i}", len(template.disks) + i, slot), shared=shared)
        slot += drive.bus == "virtio"


def _image_disk(template: VmTemplate, ide: str) -> DiskDevice:
    buses = {"virtio": "virtio", "virtio-blk": "virtio", "virtio-scsi": "scsi", "ide": ide}
    if template.disk_model not in buses:
        known = "ide, virtio, virtio-scsi"
        raise GuestError(f"template {template.name}: disk_model {template.disk_model!r} is none of {known}")
    bus = buses[template.disk_model]
    return DiskDevice(
        "disk0",
        bus,
        DISK_SLOT if bus == "virtio" else 0,
        cache=_checked(template, template.disk_cache),
        discard=template.disk_discard,
        aio=template.disk_aio,
        thread=bus == "virtio" and template.disk_iothread,
    )


def _more(template: VmTemplate, disk: ExtraDisk, name: str, unit: int, slot: int) -> DiskDevice:
    if disk.bus not in ("virtio", "scsi"):
        raise GuestError(f"template {template.name}: bus {disk.bus!r} is neither virtio nor scsi")
    virtio = disk.bus == "virtio"
    return DiskDevice(
        name,
        disk.bus,
        slot if virtio else unit,
        serial=name,
        cache=_checked(template, disk.cache),
        discard=disk.discard,
        aio=disk.aio,
        thread=virtio and disk.iothread,
    )


def _checked(template: VmTemplate, cache: str) -> str:
    if cache not in CACHE_MODES:
        raise GuestError(f"template {template.name}: disk_cache {cache!r} is none of {', '.join(sorted(CACHE_MODES))}")
    return cache


def _shares(template: VmTemplate) -> Iterator[ShareDevice]:
    for i, mount in enumerate(template.mounts):
        yield ShareDevice(i, _first_at_the_end(template) + i, mount.type, mount.tag, mount.read_only)


def _nics(template: VmTemplate, nics: Sequence[Nic]) -> Iterator[NicDevice]:
    # An option ROM costs each boot a probe, so only a VM that has nothing else to boot from has one.
    over_network = template.disk is None and template.boot is None
    model = "virtio-net" if template.nic_model.startswith("virtio-net") else template.nic_model
    for i, nic in enumerate(nics):
        yield NicDevice(FIRST_NIC_SLOT + i, model, nic.mac, nic.mtu, boot=i + 1 if over_network else 0)


def _devices(name: str, template: VmTemplate, wanted: Wanted) -> Iterator[HostDevice]:
    nics, devices = len(wanted.nics), len(wanted.devices)
    others = LAST_SLOT - _first_at_the_end(template) + 1
    if nics + devices + others > LAST_SLOT - FIRST_NIC_SLOT + 1:
        count = f"{nics} network interfaces, {devices} devices of its node and {others} more disks or directories"
        raise GuestError(f"{name} has {count}; a VM can have at most 23 of all")
    for i, address in enumerate(wanted.devices):
        yield HostDevice(FIRST_NIC_SLOT + nics + i, address)
