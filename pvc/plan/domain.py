# SPDX-License-Identifier: Apache-2.0
"""A VM as domain XML of libvirt: the same hardware as ``plan.qemu`` writes, device by device at the same slots.

Elements and their first versions are from
libvirt's formatdomain; what libvirt 9.0 has no element for goes through its QEMU namespace (drvqemu).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as Xml

from pvc.errors import GuestError
from pvc.model.hardware import Hardware
from pvc.model.vm import Accel, VmTemplate, find_libvirt_problems
from pvc.plan.domaindevices import add_disks, add_mounts, at_slot, drive_threads, find_cpu
from pvc.plan.hardware import CHANNELS_SLOT, RNG_SLOT, SCREEN_SLOT
from pvc.plan.qemu import VIDEO_MIB, boot_file, boot_words, channel_alias, plan_tpm
from pvc.plan.qemudrives import DriveFd, VmPaths, plan_persistent, plan_shares
from pvc.plan.qemumemory import TCG_TB_SIZE_MIB
from pvc.texts import clean_text

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


@dataclass(frozen=True)
class Inherited:
    """Numbers of QEMU's descriptors, as of ``plan.qemu.VmFds``; ``boot`` are those of kernel and initrd."""

    drives: tuple[DriveFd, ...] = ()
    tpm: int | None = None
    shares: tuple[int, ...] = ()
    boot: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DomainPlaces:
    """What the domain finds on its node.

    ``inherited`` are the descriptors that pvc's own trampoline gives QEMU besides libvirt's: what libvirt 9.0 has no
    element for, or what it must not have, as the locks of persistent drives.
    ``emulator`` is what libvirt starts in place of QEMU; ``console`` and ``channels`` (name, path) are Unix sockets
    that QEMU connects to, ``display`` one that it makes; ``taps`` are the names by which libvirt's bridge helper is
    asked for them, in the order of the nics; ``cpus`` are the node's that the VM may use.
    """

    emulator: str
    console: str
    cpus: tuple[int, ...]
    taps: tuple[str, ...]
    channels: tuple[tuple[str, str], ...] = ()
    display: str | None = None
    inherited: Inherited = Inherited()


@dataclass(frozen=True)
class DomainSpec:
    """All that decides a domain; as ``plan.qemu.QemuSpec``."""

    name: str
    uuid: str
    hardware: Hardware
    template: VmTemplate
    paths: VmPaths
    places: DomainPlaces


def plan_domain(spec: DomainSpec) -> str:
    """The domain's XML.

    :raise GuestError: the template has what libvirt, or XML, cannot have.
    """
    template, hardware = spec.template, spec.hardware
    problems = find_libvirt_problems(
        machine_type=hardware.machine, cpu_model=hardware.cpu, custom_args=hardware.custom_args
    )
    if problems:
        text = "; ".join(text for _, text in problems)
        raise GuestError(f"template {template.name}: {text}", hint="use hypervisor: qemu")
    Xml.register_namespace("qemu", _QEMU)
    domain = Xml.Element("domain", {"type": "kvm" if hardware.accel is Accel.KVM else "qemu"})
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    _text(domain, "memory", str(hardware.memory.mib), unit="MiB")
    _add_memory(domain, hardware)
    _text(domain, "vcpu", str(hardware.cpus), placement="static", cpuset=",".join(map(str, spec.places.cpus)))
    if hardware.threads:
        _text(domain, "iothreads", str(len(hardware.threads)))
    _add_boot(domain, spec)
    _add_features(domain, hardware)
    domain.append(find_cpu(hardware))
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", action)
    devices = Xml.SubElement(domain, "devices")
    _text(devices, "emulator", spec.places.emulator)
    Xml.SubElement(devices, "controller", type="usb", model="none")
    Xml.SubElement(devices, "memballoon", model="none")
    add_disks(devices, hardware, template, spec.paths)
    add_mounts(devices, hardware, template.mounts)
    _add_nics(devices, spec)
    _add_channels(devices, spec)
    _add_small(devices, spec)
    _add_hostdevs(devices, hardware)
    _add_overrides(domain, spec)
    Xml.indent(domain)
    text = Xml.tostring(domain, encoding="unicode") + "\n"
    bad = _NO_XML.search(text)
    if bad is not None:
        line = text[text.rfind("\n", 0, bad.start()) + 1 : text.find("\n", bad.start())].strip()
        raise GuestError(
            f"template {template.name}: {clean_text(line)} has a character that XML, and so libvirt, cannot have",
            hint="rename it, or leave hypervisor: libvirt out of the template",
        )
    return text


def _text(parent: Xml.Element, tag: str, text: str, **attributes: str) -> None:
    Xml.SubElement(parent, tag, attributes).text = text


def _add_memory(domain: Xml.Element, hardware: Hardware) -> None:
    """A virtiofsd reads and writes the guest's memory itself, so it is shared; huge pages are taken at once."""
    memory = hardware.memory
    if not memory.shared:
        return
    backing = Xml.SubElement(domain, "memoryBacking")
    if memory.pages:
        pages = Xml.SubElement(backing, "hugepages")
        Xml.SubElement(pages, "page", size=memory.pages[:-1], unit=f"{memory.pages[-1]}iB")
    Xml.SubElement(backing, "source", type="memfd")
    Xml.SubElement(backing, "access", mode="shared")
    if memory.pages:
        Xml.SubElement(backing, "allocation", mode="immediate")


def _add_boot(domain: Xml.Element, spec: DomainSpec) -> None:
    system = Xml.SubElement(domain, "os")
    hardware, firmware = spec.hardware, spec.paths.firmware
    arch = hardware.program.rpartition("/")[2].removeprefix("qemu-system-")
    _text(system, "type", "hvm", arch=arch, machine=hardware.machine)
    if firmware is not None:
        if firmware.format != "raw":
            raise GuestError(f"{spec.name}: libvirt 9.0 knows no firmware in format {firmware.format}")
        secure = {"secure": "yes"} if hardware.smm else {}
        _text(system, "loader", firmware.code, readonly="yes", type="pflash", **secure)
        _text(system, "nvram", firmware.variables)
    boot = boot_words(spec.template.boot, hardware)
    if boot is not None:
        opened = spec.places.inherited.boot
        for tag, path in (("kernel", boot.kernel), ("initrd", boot.initrd)):
            if path is not None:
                _text(system, tag, boot_file(opened[path]))
        _text(system, "cmdline", boot.append)


def _add_features(domain: Xml.Element, hardware: Hardware) -> None:
    features = Xml.SubElement(domain, "features")
    Xml.SubElement(features, "acpi")
    Xml.SubElement(features, "apic")
    if hardware.smm:
        Xml.SubElement(features, "smm", state="on")
    if hardware.accel is not Accel.KVM:
        tcg = Xml.SubElement(features, "tcg")
        _text(tcg, "tb-cache", str(TCG_TB_SIZE_MIB), unit="MiB")


def _add_nics(devices: Xml.Element, spec: DomainSpec) -> None:
    """Taps of unprivileged domains come from a bridge helper, which pvc answers for with the VM's own."""
    for i, (nic, name) in enumerate(zip(spec.hardware.nics, spec.places.taps, strict=True)):
        interface = Xml.SubElement(devices, "interface", type="bridge")
        Xml.SubElement(interface, "source", bridge=name)
        Xml.SubElement(interface, "mac", address=nic.mac)
        Xml.SubElement(interface, "model", type="virtio" if nic.model == "virtio-net" else nic.model)
        if nic.boot:
            Xml.SubElement(interface, "boot", order=str(nic.boot))
        elif nic.model == "virtio-net":
            Xml.SubElement(interface, "rom", enabled="no")
        Xml.SubElement(interface, "alias", name=f"ua-nic{i}")
        at_slot(interface, nic.slot)


def _add_channels(devices: Xml.Element, spec: DomainSpec) -> None:
    serial = Xml.SubElement(devices, "serial", type="unix")
    Xml.SubElement(serial, "source", mode="connect", path=spec.places.console)
    Xml.SubElement(serial, "target", port="0")
    if not spec.places.channels:
        return
    at_slot(Xml.SubElement(devices, "controller", type="virtio-serial", index="0"), CHANNELS_SLOT)
    for i, (name, path) in enumerate(spec.places.channels, start=1):
        channel = Xml.SubElement(devices, "channel", type="unix")
        Xml.SubElement(channel, "source", mode="connect", path=path)
        Xml.SubElement(channel, "target", type="virtio", name=name)
        Xml.SubElement(channel, "alias", name=channel_alias(name))
        Xml.SubElement(channel, "address", type="virtio-serial", controller="0", bus="0", port=str(i))


def _add_small(devices: Xml.Element, spec: DomainSpec) -> None:
    """Entropy, what tells of a panic, a screen."""
    rng = Xml.SubElement(devices, "rng", model="virtio")
    Xml.SubElement(rng, "backend", model="builtin")
    at_slot(rng, RNG_SLOT)
    if spec.hardware.panic:
        Xml.SubElement(devices, "panic", model="isa")
    path = spec.places.display
    if not spec.hardware.screen or path is None:
        return
    screen = Xml.SubElement(devices, "graphics", type=spec.hardware.screen)
    Xml.SubElement(screen, "listen", type="socket", socket=path)
    video = Xml.SubElement(devices, "video")
    Xml.SubElement(video, "model", type="vga", vram=str(VIDEO_MIB << 10), heads="1", primary="yes")
    at_slot(video, SCREEN_SLOT)


def _add_hostdevs(devices: Xml.Element, hardware: Hardware) -> None:
    for each in hardware.devices:
        domain, bus, rest = each.address.split(":")
        slot, _, function = rest.partition(".")
        device = Xml.SubElement(devices, "hostdev", mode="subsystem", type="pci", managed="no")
        Xml.SubElement(device, "driver", name="vfio")
        source = Xml.SubElement(device, "source")
        numbers = {"domain": domain, "bus": bus, "slot": slot, "function": function}
        Xml.SubElement(source, "address", {key: f"0x{value}" for key, value in numbers.items()})
        at_slot(device, each.slot)


def _add_overrides(domain: Xml.Element, spec: DomainSpec) -> None:
    """What has no element of its own: the user's arguments, descriptors, MTUs of taps that libvirt may not change."""
    hardware = spec.hardware
    virtio = [(i, nic) for i, nic in enumerate(hardware.nics) if nic.model == "virtio-net"]
    if virtio:
        override = Xml.SubElement(domain, f"{{{_QEMU}}}override")
        for i, nic in virtio:
            device = Xml.SubElement(override, f"{{{_QEMU}}}device", alias=f"ua-nic{i}")
            front = Xml.SubElement(device, f"{{{_QEMU}}}frontend")
            Xml.SubElement(front, f"{{{_QEMU}}}property", name="host_mtu", type="unsigned", value=str(nic.mtu))
    inherited = spec.places.inherited
    words = plan_shares(hardware, inherited.shares)
    words += plan_persistent(hardware, spec.template.drives, inherited.drives, drive_threads(hardware))
    words += [*plan_tpm(hardware, inherited.tpm), *hardware.custom_args]
    if words:
        line = Xml.SubElement(domain, f"{{{_QEMU}}}commandline")
        for word in words:
            Xml.SubElement(line, f"{{{_QEMU}}}arg", value=word)
