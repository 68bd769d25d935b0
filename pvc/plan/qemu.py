# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line for one VM: its hardware, and where what is behind it is on this node.

QMP and the serial console are inherited socket descriptors: nothing listens in the file system, and the first byte is
never missed. Facts from qemu(1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pvc.model.hardware import Hardware
from pvc.model.vm import Accel, DirectBoot, VmTemplate
from pvc.plan.hardware import CHANNELS_SLOT, RNG_SLOT, SCREEN_SLOT, is_microvm
from pvc.plan.qemudrives import (
    DriveFd,
    VmPaths,
    name_images,
    plan_drives,
    plan_firmware,
    plan_images,
    plan_mounts,
)
from pvc.plan.qemumemory import TCG_TB_SIZE_MIB
from pvc.plan.qemuwords import device

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# A screen of 1920x1080. The default is for twice that, and the memory is the job's.
VIDEO_MIB = 8


@dataclass(frozen=True)
class VmFds:
    """Descriptors that QEMU inherits. ``taps`` and ``drives`` are in the order of the VM's nics and its template's
    drives, ``channels`` in that of its ports. ``tpm`` leads to its swtpm, None: it has none; ``shares`` to the
    virtiofsd of each directory over virtio-fs. ``images``: layers, firmware's code, kernel and initrd by their paths.
    """

    qmp: int
    console: int
    taps: tuple[int, ...]
    channels: tuple[int, ...] = ()
    drives: tuple[DriveFd, ...] = ()
    tpm: int | None = None
    shares: tuple[int, ...] = ()
    images: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class QemuSpec:
    """All that decides a VM's command line. ``template`` says what is behind the hardware: images, directories, drives.

    ``display``: the Unix socket of its screen, for hardware that has one.
    """

    name: str
    hardware: Hardware
    template: VmTemplate
    paths: VmPaths
    fds: VmFds
    sandbox: bool = True
    display: str | None = None
    tsc_khz: int | None = None  # of the node, where ``lacks_clock``


def qemu_argv(spec: QemuSpec) -> list[str]:
    """The command that starts the VM, stopped before its first instruction (``-S``): its supervisor pins first."""
    hardware = spec.hardware
    argv = [
        hardware.program,
        *("-name", f"{spec.name},process=pvc-{spec.name},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *_machine(spec),
        *("-chardev", f"socket,id=qmp,fd={spec.fds.qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={spec.fds.console}", "-serial", "chardev:console"),
        *("-object", "rng-builtin,id=rng0"),
        *("-device", device(hardware, "virtio-rng", RNG_SLOT, rng="rng0", id="rng")),
    ]
    argv += plan_images(_block_images(spec))
    if spec.sandbox and "-sandbox" not in hardware.custom_args:
        argv += ["-sandbox", _SANDBOX]
    argv += (
        plan_drives(hardware, spec.template, spec.paths, spec.fds.drives, name_images(_block_images(spec)))
        + plan_mounts(hardware, spec.template.mounts, spec.fds.shares)
        + plan_tpm(hardware, spec.fds.tpm)
    )
    argv += _boot(spec) + _nics(spec) + _devices(hardware) + _channels(spec) + _screen(hardware, spec.display)
    return [*argv, *hardware.custom_args]


def _machine(spec: QemuSpec) -> list[str]:
    hardware, memory = spec.hardware, spec.hardware.memory
    accel = "kvm" if hardware.accel is Accel.KVM else f"tcg,thread=multi,tb-size={TCG_TB_SIZE_MIB}"
    options = [hardware.machine]
    firmware = spec.paths.firmware
    if firmware is not None:
        options += ["pflash0=firmware", "pflash1=variables", *(["smm=on"] if hardware.smm else [])]
    if memory.shared:
        options.append("memory-backend=memory")
    argv = ["-machine", ",".join(options), "-accel", accel, "-cpu", hardware.cpu]
    argv += ["-smp", f"{hardware.cpus},sockets=1,cores={hardware.cpus},threads=1", "-m", f"{memory.mib}M"]
    if memory.shared:
        # A virtiofsd reads and writes the guest's memory itself.
        pages = f",prealloc=on,hugetlb=on,hugetlbsize={memory.pages}" if memory.pages else ""
        argv += ["-object", f"memory-backend-memfd,id=memory,share=on,size={memory.mib}M{pages}"]
    if firmware is not None:
        argv += plan_firmware(firmware, name_images(_block_images(spec)))
    if hardware.panic:
        # Without it a panicked Linux guest is a silent, running QEMU.
        argv += ["-device", "pvpanic"]
    return argv


def lacks_clock(hardware: Hardware) -> bool:
    """Whether a guest has nothing but the PIT to find out how fast its TSC runs, which is as fast as the node's."""
    return hardware.accel is Accel.TCG and is_microvm(hardware.machine)


def boot_words(boot: DirectBoot | None, hardware: Hardware, tsc_khz: int | None = None) -> DirectBoot | None:
    """The kernel that QEMU starts itself, with what an emulated one must be told; None: the disk's own."""
    if boot is None or hardware.accel is not Accel.TCG:
        return boot
    # An emulated guest of a busy host misses the ticks that this check counts, and panics: "IO-APIC + timer
    # doesn't work" (kernel: Documentation/admin-guide/kernel-parameters.txt). It misses the PIT's, too, and hangs.
    words = ["no_timer_check", *([f"tsc_early_khz={tsc_khz}"] if tsc_khz and lacks_clock(hardware) else [])]
    said = {word.partition("=")[0] for word in boot.append.split()}
    return replace(boot, append=" ".join([boot.append, *(w for w in words if w.partition("=")[0] not in said)]).strip())


def plan_tpm(hardware: Hardware, fd: int | None) -> list[str]:
    """A TPM behind the socket that leads to its swtpm, for hardware that has one."""
    if not hardware.tpm or fd is None:
        return []
    argv = ["-chardev", f"socket,id=tpm,fd={fd}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
    return [*argv, "-device", "tpm-crb,tpmdev=tpm0"]


def _boot(spec: QemuSpec) -> list[str]:
    boot = boot_words(spec.template.boot, spec.hardware, spec.tsc_khz)
    if boot is None:
        return []
    images = spec.fds.images
    initrd = [] if boot.initrd is None else ["-initrd", boot_file(images[boot.initrd])]
    return ["-kernel", boot_file(images[boot.kernel]), *initrd, "-append", boot.append]


def boot_file(fd: int) -> str:
    """A kernel or an initrd as QEMU opens it: its loaders know no fd sets."""
    return f"/proc/self/fd/{fd}"


def _block_images(spec: QemuSpec) -> dict[str, int]:
    boot = spec.template.boot
    return {path: fd for path, fd in spec.fds.images.items() if boot is None or path not in {boot.kernel, boot.initrd}}


def channel_alias(name: str) -> str:
    """What QEMU calls a port in its events where libvirt has started it (formatdomain, "alias")."""
    return "ua-" + name.replace(".", "-")


def _channels(spec: QemuSpec) -> list[str]:
    """Ports of virtio-serial, which the guest has as /dev/virtio-ports/NAME."""
    if not spec.hardware.ports:
        return []
    argv = ["-device", device(spec.hardware, "virtio-serial", CHANNELS_SLOT, id="channels")]
    for i, (name, fd) in enumerate(zip(spec.hardware.ports, spec.fds.channels, strict=True)):
        argv += ["-chardev", f"socket,id=channel{i},fd={fd}"]
        argv += ["-device", f"virtserialport,bus=channels.0,chardev=channel{i},name={name},id={name}"]
    return argv


def _nics(spec: QemuSpec) -> list[str]:
    argv: list[str] = []
    for i, (nic, fd) in enumerate(zip(spec.hardware.nics, spec.fds.taps, strict=True)):
        argv += ["-netdev", f"tap,id=net{i},fd={fd}"]
        properties = {"netdev": f"net{i}", "id": f"nic{i}", "mac": nic.mac}
        if nic.model == "virtio-net":
            properties["host_mtu"] = str(nic.mtu)
            if not nic.boot:
                properties["romfile"] = ""  # Q35's firmware reads it, too
        if nic.boot:
            properties["bootindex"] = str(nic.boot)
        argv += ["-device", device(spec.hardware, nic.model, nic.slot, **properties)]
    return argv


def _devices(hardware: Hardware) -> list[str]:
    argv: list[str] = []
    for i, each in enumerate(hardware.devices):
        argv += ["-device", device(hardware, "vfio-pci", each.slot, host=each.address, id=f"host{i}")]
    return argv


def _screen(hardware: Hardware, path: str | None) -> list[str]:
    """A graphics card, and where it is served."""
    if not hardware.screen or path is None:
        return []
    argv = ["-device", device(hardware, "VGA", SCREEN_SLOT, id="screen0", vgamem_mb=str(VIDEO_MIB))]
    # QEMU's own quoting: a comma within a value is written twice.
    place = path.replace(",", ",,")
    if hardware.screen == "spice":
        return [*argv, "-spice", f"unix=on,addr={place},disable-ticketing=on"]
    return [*argv, "-vnc", f"unix:{place}"]
