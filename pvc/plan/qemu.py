"""QEMU's command line for one VM: a pure function of the template, its nics, and where its files are.

Devices sit at fixed slots of the root bus (q35's pcie.0 takes integrated end points, so no root port is
spent), so a guest's device names do not depend on what else it has. QMP and the serial console are
inherited socket descriptors: nothing listens in the file system, and the first byte is never missed.

Facts from qemu(1) and the sources of QEMU 7.2 (hw/i386/pc_q35.c: slots 0 and 0x1f are the chipset's).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pvc.errors import GuestError
from pvc.model.node import Nic
from pvc.model.vm import EMULATED_CPU, Accel, DirectBoot, VmTemplate
from pvc.plan.helpers import shared_mounts
from pvc.plan.qemudrives import LAST_SLOT, DriveFd, VmPaths, count_slots, plan_drives, plan_firmware, plan_mounts
from pvc.plan.qemuwords import base_machine, boots_over_network, device, has_isa

# QEMU's own need of memory besides the guest's, from measurements: code, heap, stacks and device rings of
# an idle q35 with two virtio devices stay below 64 MiB; TCG adds its translation buffer (tb-size, below)
# and about half of it again for the descriptors of translated blocks. The supervisor of a node (60 MB) is
# paid from the same allocation, in the worst case by one VM alone.
QEMU_OVERHEAD_MIB = 64
SUPERVISOR_OVERHEAD_MIB = 64
# libvirtd and its client within the supervisor, with 8 VMs: 21 MB that nobody shares, 48 MB with the libraries.
LIBVIRT_OVERHEAD_MIB = 48
# The default is an eighth of the *host's* memory up to 1 GiB, which a batch system's memory limit kills.
# A Debian boot translates about 40 MiB of code: 64 does not flush while booting.
TCG_TB_SIZE_MIB = 64
TCG_OVERHEAD_MIB = TCG_TB_SIZE_MIB + TCG_TB_SIZE_MIB // 2
MIN_GUEST_MIB = 64

_RNG_SLOT, _CHANNELS_SLOT, _FIRST_NIC_SLOT = 5, 7, 8
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True)
class VmFds:
    """Descriptors that QEMU inherits. ``taps`` and ``drives`` are in the order of the VM's nics and its template's
    drives, ``channels`` are (name, descriptor). ``tpm`` leads to its swtpm, None: it has none; ``shares`` to the
    virtiofsd of each directory over virtio-fs.
    """

    qmp: int
    console: int
    taps: tuple[int, ...]
    channels: tuple[tuple[str, int], ...] = ()
    drives: tuple[DriveFd, ...] = ()
    tpm: int | None = None
    shares: tuple[int, ...] = ()


@dataclass(frozen=True)
class QemuSpec:
    """All that decides a VM's command line; ``accel`` is KVM or TCG, ``memory_mib`` the guest's own."""

    name: str
    template: VmTemplate
    nics: tuple[Nic, ...]
    cpus: int
    memory_mib: int
    accel: Accel
    paths: VmPaths
    fds: VmFds
    sandbox: bool = True
    devices: tuple[str, ...] = ()  # addresses of the node's PCI devices that are the guest's
    tsc_khz: int | None = None  # of the node, where ``lacks_clock``


def guest_memory_mib(allocated_mib: int, accel: Accel, *, libvirt: bool = False) -> int:
    """What a guest may have of the memory that was allocated for its VM, in MiB.

    ``libvirt``: it runs some of the cluster's VMs.

    :raise GuestError: less than MIN_GUEST_MIB would be left.
    """
    overhead = QEMU_OVERHEAD_MIB + SUPERVISOR_OVERHEAD_MIB
    if accel is not Accel.KVM:
        overhead += TCG_OVERHEAD_MIB
    if libvirt:
        overhead += LIBVIRT_OVERHEAD_MIB
    left = allocated_mib - overhead
    if left < MIN_GUEST_MIB:
        raise GuestError(
            f"{allocated_mib} MiB for a VM leave {max(left, 0)} MiB to its guest: "
            f"QEMU and its supervisor need {overhead} MiB ({accel.value})",
            hint=f"ask for at least {overhead + MIN_GUEST_MIB} MiB a VM, for instance with -m {overhead + 512}M",
        )
    return left


def qemu_argv(spec: QemuSpec) -> list[str]:
    """The command that starts the VM, stopped before its first instruction (``-S``): the supervisor pins, then goes on.

    :raise GuestError: the template's disk_cache or disk_model is unknown, or there are too many nics.
    """
    template = spec.template
    argv = [
        template.qemu_bin,
        *("-name", f"{spec.name},process=pvc-{spec.name},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *_machine(spec),
        *("-chardev", f"socket,id=qmp,fd={spec.fds.qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={spec.fds.console}", "-serial", "chardev:console"),
        *("-object", "rng-builtin,id=rng0"),
        *("-device", device(template, "virtio-rng", _RNG_SLOT, rng="rng0", id="rng")),
    ]
    if spec.sandbox and "-sandbox" not in template.custom_args:
        argv += ["-sandbox", _SANDBOX]
    argv += (
        plan_drives(template, spec.paths, spec.fds.drives)
        + plan_mounts(template, spec.fds.shares)
        + plan_tpm(template, spec.fds.tpm)
    )
    argv += _boot(spec) + _nics(spec) + _devices(spec) + _channels(spec)
    return [*argv, *template.custom_args]


def _machine(spec: QemuSpec) -> list[str]:
    template = spec.template
    kvm = spec.accel is Accel.KVM
    accel = "kvm" if kvm else f"tcg,thread=multi,tb-size={TCG_TB_SIZE_MIB}"
    model = template.cpu_model
    if model == "auto":
        model = "host" if kvm else EMULATED_CPU
    options = [template.machine_type]
    firmware = spec.paths.firmware
    if firmware is not None:
        options += ["pflash0=firmware", "pflash1=variables", *(["smm=on"] if firmware.smm else [])]
    shared = bool(template.hugepages or shared_mounts(template))
    if shared:
        options.append("memory-backend=memory")
    argv = ["-machine", ",".join(options), "-accel", accel, "-cpu", model]
    argv += ["-smp", f"{spec.cpus},sockets=1,cores={spec.cpus},threads=1", "-m", f"{spec.memory_mib}M"]
    if shared:
        # A virtiofsd reads and writes the guest's memory itself.
        pages = f",prealloc=on,hugetlb=on,hugetlbsize={template.hugepages}" if template.hugepages else ""
        argv += ["-object", f"memory-backend-memfd,id=memory,share=on,size={spec.memory_mib}M{pages}"]
    if firmware is not None:
        argv += plan_firmware(firmware)
    if has_isa(template):
        # Without it a panicked Linux guest is a silent, running QEMU.
        argv += ["-device", "pvpanic"]
    return argv


def lacks_clock(template: VmTemplate, accel: Accel) -> bool:
    """Whether a guest has nothing but the PIT to find out how fast its TSC runs, which is as fast as the node's."""
    return accel is Accel.TCG and base_machine(template) == "microvm"


def boot_words(template: VmTemplate, accel: Accel, tsc_khz: int | None = None) -> DirectBoot | None:
    """The kernel that QEMU starts itself, with what an emulated one must be told; None: the disk's own."""
    boot = template.boot
    if boot is None or accel is not Accel.TCG:
        return boot
    # An emulated guest of a busy host misses the ticks that this check counts, and panics: "IO-APIC + timer
    # doesn't work" (kernel: Documentation/admin-guide/kernel-parameters.txt). It misses the PIT's, too, and hangs.
    words = ["no_timer_check", *([f"tsc_early_khz={tsc_khz}"] if tsc_khz and lacks_clock(template, accel) else [])]
    said = {word.partition("=")[0] for word in boot.append.split()}
    return replace(boot, append=" ".join([boot.append, *(w for w in words if w.partition("=")[0] not in said)]).strip())


def plan_tpm(template: VmTemplate, fd: int | None) -> list[str]:
    """A TPM behind the socket that leads to its swtpm; None: the VM has none.

    :raise GuestError: its machine cannot have one.
    """
    if fd is None:
        return []
    if base_machine(template) == "microvm":
        # QEMU 7.2 for x86 has tpm-tis-device, which sits on no ISA bus, for no machine.
        raise GuestError(f"template {template.name}: a microvm has no TPM")
    argv = ["-chardev", f"socket,id=tpm,fd={fd}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
    return [*argv, "-device", "tpm-crb,tpmdev=tpm0"]


def _boot(spec: QemuSpec) -> list[str]:
    boot = boot_words(spec.template, spec.accel, spec.tsc_khz)
    if boot is None:
        return []
    initrd = [] if boot.initrd is None else ["-initrd", boot.initrd]
    return ["-kernel", boot.kernel, *initrd, "-append", boot.append]


def channel_alias(name: str) -> str:
    """What QEMU calls a port in its events where libvirt has started it (formatdomain, "alias")."""
    return "ua-" + name.replace(".", "-")


def _channels(spec: QemuSpec) -> list[str]:
    """Ports of virtio-serial, which the guest has as /dev/virtio-ports/NAME."""
    if not spec.fds.channels:
        return []
    argv = ["-device", device(spec.template, "virtio-serial", _CHANNELS_SLOT, id="channels")]
    for i, (name, fd) in enumerate(spec.fds.channels):
        argv += ["-chardev", f"socket,id=channel{i},fd={fd}"]
        argv += ["-device", f"virtserialport,bus=channels.0,chardev=channel{i},name={name},id={name}"]
    return argv


def count_devices(name: str, template: VmTemplate, nics: int, devices: int) -> None:
    """:raise GuestError: there are more than the root bus has slots."""
    others = count_slots(template)
    if nics + devices + others > LAST_SLOT - _FIRST_NIC_SLOT + 1:
        count = f"{nics} network interfaces, {devices} devices of its node and {others} more disks or directories"
        raise GuestError(f"{name} has {count}; a VM can have at most 23 of all")


def _nics(spec: QemuSpec) -> list[str]:
    argv: list[str] = []
    count_devices(spec.name, spec.template, len(spec.nics), len(spec.devices))
    for i, (nic, fd) in enumerate(zip(spec.nics, spec.fds.taps, strict=True)):
        argv += ["-netdev", f"tap,id=net{i},fd={fd}"]
        properties = {"netdev": f"net{i}", "id": f"nic{i}", "mac": nic.mac}
        model = spec.template.nic_model
        if model.startswith("virtio-net"):
            properties["host_mtu"] = str(nic.mtu)
            if not boots_over_network(spec.template):
                properties["romfile"] = ""  # Q35's firmware reads it, too
            model = "virtio-net"
        if boots_over_network(spec.template):
            properties["bootindex"] = str(i + 1)
        argv += ["-device", device(spec.template, model, _FIRST_NIC_SLOT + i, **properties)]
    return argv


def _devices(spec: QemuSpec) -> list[str]:
    argv: list[str] = []
    if spec.devices and base_machine(spec.template) == "microvm":
        raise GuestError(f"{spec.name}: a microvm has no PCI bus for devices of its node")
    for i, address in enumerate(spec.devices):
        slot = _FIRST_NIC_SLOT + len(spec.nics) + i
        argv += ["-device", device(spec.template, "vfio-pci", slot, host=address, id=f"host{i}")]
    return argv
