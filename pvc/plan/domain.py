"""A VM as domain XML of libvirt: the same machine as ``plan.qemu`` describes, device by device at the same slots.

A pure function of the template, its nics and where its files are. Elements and their first versions are from
libvirt's formatdomain; what libvirt 9.0 has no element for goes through its QEMU namespace (drvqemu).
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from pvc.errors import GuestError
from pvc.model.node import Nic
from pvc.model.vm import Accel, VmTemplate
from pvc.plan.domaindevices import (
    add_disks,
    add_mounts,
    at_slot,
    count_iothreads,
    drive_threads,
    find_cpu,
    find_problems,
)
from pvc.plan.helpers import shared_mounts
from pvc.plan.qemu import TCG_TB_SIZE_MIB, boot_words, channel_alias, count_devices, plan_tpm
from pvc.plan.qemudrives import DriveFd, VmPaths, plan_persistent, plan_shares
from pvc.plan.qemuwords import boots_over_network, has_isa

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_SCREEN_SLOT, _RNG_SLOT, _CHANNELS_SLOT, _FIRST_NIC_SLOT = 2, 5, 7, 8
_VIDEO_KIB = 8 << 10


@dataclass(frozen=True)
class Inherited:
    """Numbers of QEMU's descriptors, as of ``plan.qemu.VmFds``."""

    drives: tuple[DriveFd, ...] = ()
    tpm: int | None = None
    shares: tuple[int, ...] = ()


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
    template: VmTemplate
    nics: tuple[Nic, ...]
    cpus: int
    memory_mib: int
    accel: Accel
    paths: VmPaths
    places: DomainPlaces
    devices: tuple[str, ...] = ()


def plan_domain(spec: DomainSpec) -> str:
    """The domain's XML.

    :raise GuestError: the template wants what libvirt cannot do, or is wrong for QEMU, too.
    """
    template = spec.template
    problems = find_problems(template)
    if problems:
        raise GuestError(f"template {template.name}: {'; '.join(problems)}", hint="use hypervisor: qemu")
    Xml.register_namespace("qemu", _QEMU)
    domain = Xml.Element("domain", {"type": "kvm" if spec.accel is Accel.KVM else "qemu"})
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _add_memory(domain, template)
    _text(domain, "vcpu", str(spec.cpus), placement="static", cpuset=",".join(map(str, spec.places.cpus)))
    threads = count_iothreads(template)
    if threads:
        _text(domain, "iothreads", str(threads))
    _add_boot(domain, spec)
    _add_features(domain, spec)
    domain.append(find_cpu(template, kvm=spec.accel is Accel.KVM, cpus=spec.cpus))
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{event}", action)
    devices = Xml.SubElement(domain, "devices")
    _text(devices, "emulator", spec.places.emulator)
    Xml.SubElement(devices, "controller", type="usb", model="none")
    Xml.SubElement(devices, "memballoon", model="none")
    add_disks(devices, template, spec.paths)
    add_mounts(devices, template)
    _add_nics(devices, spec)
    _add_channels(devices, spec)
    _add_small(devices, spec)
    _add_hostdevs(devices, spec)
    _add_overrides(domain, spec)
    Xml.indent(domain)
    return Xml.tostring(domain, encoding="unicode") + "\n"


def _text(parent: Xml.Element, tag: str, text: str, **attributes: str) -> None:
    Xml.SubElement(parent, tag, attributes).text = text


def _add_memory(domain: Xml.Element, template: VmTemplate) -> None:
    """A virtiofsd reads and writes the guest's memory itself, so it is shared; huge pages are taken at once."""
    if not template.hugepages and not shared_mounts(template):
        return
    backing = Xml.SubElement(domain, "memoryBacking")
    if template.hugepages:
        pages = Xml.SubElement(backing, "hugepages")
        Xml.SubElement(pages, "page", size=template.hugepages[:-1], unit=f"{template.hugepages[-1]}iB")
    Xml.SubElement(backing, "source", type="memfd")
    Xml.SubElement(backing, "access", mode="shared")
    if template.hugepages:
        Xml.SubElement(backing, "allocation", mode="immediate")


def _add_boot(domain: Xml.Element, spec: DomainSpec) -> None:
    system = Xml.SubElement(domain, "os")
    template, firmware = spec.template, spec.paths.firmware
    arch = template.qemu_bin.rpartition("/")[2].removeprefix("qemu-system-")
    _text(system, "type", "hvm", arch=arch, machine=template.machine_type)
    if firmware is not None:
        if firmware.format != "raw":
            raise GuestError(f"{spec.name}: libvirt 9.0 knows no firmware in format {firmware.format}")
        secure = {"secure": "yes"} if firmware.smm else {}
        _text(system, "loader", firmware.code, readonly="yes", type="pflash", **secure)
        _text(system, "nvram", firmware.variables)
    boot = boot_words(template, spec.accel)
    if boot is not None:
        for tag, value in (("kernel", boot.kernel), ("initrd", boot.initrd), ("cmdline", boot.append)):
            if value is not None:
                _text(system, tag, value)


def _add_features(domain: Xml.Element, spec: DomainSpec) -> None:
    features = Xml.SubElement(domain, "features")
    Xml.SubElement(features, "acpi")
    Xml.SubElement(features, "apic")
    if spec.paths.firmware is not None and spec.paths.firmware.smm:
        Xml.SubElement(features, "smm", state="on")
    if spec.accel is not Accel.KVM:
        tcg = Xml.SubElement(features, "tcg")
        _text(tcg, "tb-cache", str(TCG_TB_SIZE_MIB), unit="MiB")


def _add_nics(devices: Xml.Element, spec: DomainSpec) -> None:
    """Taps of unprivileged domains come from a bridge helper, which pvc answers for with the VM's own."""
    count_devices(spec.name, spec.template, len(spec.nics), len(spec.devices))
    for i, (nic, name) in enumerate(zip(spec.nics, spec.places.taps, strict=True)):
        model = spec.template.nic_model
        interface = Xml.SubElement(devices, "interface", type="bridge")
        Xml.SubElement(interface, "source", bridge=name)
        Xml.SubElement(interface, "mac", address=nic.mac)
        Xml.SubElement(interface, "model", type="virtio" if model.startswith("virtio-net") else model)
        if boots_over_network(spec.template):
            Xml.SubElement(interface, "boot", order=str(i + 1))
        elif model.startswith("virtio-net"):
            Xml.SubElement(interface, "rom", enabled="no")
        Xml.SubElement(interface, "alias", name=f"ua-nic{i}")
        at_slot(interface, _FIRST_NIC_SLOT + i)


def _add_channels(devices: Xml.Element, spec: DomainSpec) -> None:
    serial = Xml.SubElement(devices, "serial", type="unix")
    Xml.SubElement(serial, "source", mode="connect", path=spec.places.console)
    Xml.SubElement(serial, "target", port="0")
    if not spec.places.channels:
        return
    at_slot(Xml.SubElement(devices, "controller", type="virtio-serial", index="0"), _CHANNELS_SLOT)
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
    at_slot(rng, _RNG_SLOT)
    if has_isa(spec.template):
        Xml.SubElement(devices, "panic", model="isa")
    path = spec.places.display
    if path is None:
        return
    screen = Xml.SubElement(devices, "graphics", type=spec.template.remote_display)
    Xml.SubElement(screen, "listen", type="socket", socket=path)
    video = Xml.SubElement(devices, "video")
    Xml.SubElement(video, "model", type="vga", vram=str(_VIDEO_KIB), heads="1", primary="yes")
    at_slot(video, _SCREEN_SLOT)


def _add_hostdevs(devices: Xml.Element, spec: DomainSpec) -> None:
    for i, address in enumerate(spec.devices):
        domain, bus, rest = address.split(":")
        slot, _, function = rest.partition(".")
        device = Xml.SubElement(devices, "hostdev", mode="subsystem", type="pci", managed="no")
        Xml.SubElement(device, "driver", name="vfio")
        source = Xml.SubElement(device, "source")
        numbers = {"domain": domain, "bus": bus, "slot": slot, "function": function}
        Xml.SubElement(source, "address", {key: f"0x{value}" for key, value in numbers.items()})
        at_slot(device, _FIRST_NIC_SLOT + len(spec.nics) + i)


def _add_overrides(domain: Xml.Element, spec: DomainSpec) -> None:
    """What has no element of its own: the user's arguments, descriptors, MTUs of taps that libvirt may not change."""
    template = spec.template
    if spec.nics and template.nic_model.startswith("virtio-net"):
        override = Xml.SubElement(domain, f"{{{_QEMU}}}override")
        for i, nic in enumerate(spec.nics):
            device = Xml.SubElement(override, f"{{{_QEMU}}}device", alias=f"ua-nic{i}")
            front = Xml.SubElement(device, f"{{{_QEMU}}}frontend")
            Xml.SubElement(front, f"{{{_QEMU}}}property", name="host_mtu", type="unsigned", value=str(nic.mtu))
    inherited = spec.places.inherited
    words = plan_shares(template, inherited.shares) + plan_persistent(
        template, inherited.drives, drive_threads(template)
    )
    words += [*plan_tpm(template, inherited.tpm), *template.custom_args]
    if words:
        line = Xml.SubElement(domain, f"{{{_QEMU}}}commandline")
        for word in words:
            Xml.SubElement(line, f"{{{_QEMU}}}arg", value=word)
