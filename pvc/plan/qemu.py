"""QEMU's command line for one VM: a pure function of the template, its nics, and where its files are.

Devices sit at fixed slots of the root bus (q35's pcie.0 takes integrated end points, so no root port is
spent), so a guest's device names do not depend on what else it has. QMP and the serial console are
inherited socket descriptors: nothing listens in the file system, and the first byte is never missed.

Facts from qemu(1) and the sources of QEMU 7.2 (hw/i386/pc_q35.c: slots 0 and 0x1f are the chipset's).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pvc.errors import GuestError
from pvc.model.node import Nic
from pvc.model.vm import Accel, Disk, VmTemplate

# QEMU's own need of memory besides the guest's, from measurements: code, heap, stacks and device rings of
# an idle q35 with two virtio devices stay below 64 MiB; TCG adds its translation buffer (tb-size, below)
# and about half of it again for the descriptors of translated blocks. The supervisor of a node (60 MB) is
# paid from the same allocation, in the worst case by one VM alone.
QEMU_OVERHEAD_MIB = 64
SUPERVISOR_OVERHEAD_MIB = 64
# The default is an eighth of the *host's* memory up to 1 GiB, which a batch system's memory limit kills.
# A Debian boot translates about 40 MiB of code: 64 does not flush while booting.
TCG_TB_SIZE_MIB = 64
TCG_OVERHEAD_MIB = TCG_TB_SIZE_MIB + TCG_TB_SIZE_MIB // 2
MIN_GUEST_MIB = 64

_DISK_SLOT, _SEED_SLOT, _RNG_SLOT, _SCSI_SLOT, _FIRST_NIC_SLOT, _LAST_SLOT = 3, 4, 5, 6, 8, 0x1E
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# disk_cache as in the peer's templates and in qemu(1), -drive cache=: (cache.direct, cache.no-flush, write-cache)
_CACHE_MODES = {
    "unsafe": (False, True, True),
    "writeback": (False, False, True),
    "none": (True, False, True),
    "writethrough": (False, False, False),
    "directsync": (True, False, False),
}


@dataclass(frozen=True)
class VmPaths:
    """A VM's files on its node; None: the VM has no such file."""

    overlay: str | None
    seed: str | None


@dataclass(frozen=True)
class VmFds:
    """Descriptors that QEMU inherits; ``taps`` in the order of the VM's nics."""

    qmp: int
    console: int
    taps: tuple[int, ...]


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


def guest_memory_mib(allocated_mib: int, accel: Accel) -> int:
    """What a guest may have of the memory that was allocated for its VM, in MiB.

    :raise GuestError: less than MIN_GUEST_MIB would be left.
    """
    overhead = QEMU_OVERHEAD_MIB + SUPERVISOR_OVERHEAD_MIB
    if accel is not Accel.KVM:
        overhead += TCG_OVERHEAD_MIB
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
        *("-device", _device(template, "virtio-rng", _RNG_SLOT, rng="rng0", id="rng")),
    ]
    if spec.sandbox and "-sandbox" not in template.custom_args:
        argv += ["-sandbox", _SANDBOX]
    argv += _disk(spec) + _seed(spec) + _boot(spec) + _nics(spec)
    return [*argv, *template.custom_args]


def _machine(spec: QemuSpec) -> list[str]:
    template = spec.template
    kvm = spec.accel is Accel.KVM
    accel = "kvm" if kvm else f"tcg,thread=multi,tb-size={TCG_TB_SIZE_MIB}"
    model = template.cpu_model
    if model == "auto":
        model = "host" if kvm else "max"
    argv = ["-machine", template.machine_type, "-accel", accel, "-cpu", model]
    argv += ["-smp", f"{spec.cpus},sockets=1,cores={spec.cpus},threads=1", "-m", f"{spec.memory_mib}M"]
    if _has_isa(template):
        # Without it a panicked Linux guest is a silent, running QEMU.
        argv += ["-device", "pvpanic"]
    return argv


def _disk(spec: QemuSpec) -> list[str]:
    disk, overlay = spec.template.disk, spec.paths.overlay
    if disk is None or overlay is None:
        return []
    template = spec.template
    try:
        direct, no_flush, write_cache = _CACHE_MODES[template.disk_cache]
    except KeyError:
        known = ", ".join(sorted(_CACHE_MODES))
        raise GuestError(f"template {template.name}: disk_cache {template.disk_cache!r} is none of {known}") from None
    cache = {"direct": direct, "no-flush": no_flush}
    nodes = {
        "driver": "qcow2",
        "node-name": "disk",
        "discard": "unmap",
        "cache": cache,
        "file": {"driver": "file", "filename": overlay, "discard": "unmap", "cache": cache},
        "backing": _backing(disk),
    }
    properties = {"drive": "disk", "id": "disk0", "bootindex": "1", "write-cache": "on" if write_cache else "off"}
    argv = ["-blockdev", _json(nodes)]
    match template.disk_model:
        case "virtio" | "virtio-blk":
            argv += ["-object", "iothread,id=iothread0"]
            argv += ["-device", _device(template, "virtio-blk", _DISK_SLOT, iothread="iothread0", **properties)]
        case "virtio-scsi":
            argv += ["-object", "iothread,id=iothread0"]
            argv += ["-device", _device(template, "virtio-scsi", _SCSI_SLOT, iothread="iothread0", id="scsi0")]
            argv += ["-device", _options("scsi-hd", bus="scsi0.0", **properties)]
        case "ide":
            argv += ["-device", _options("ide-hd", bus="ide.0", **properties)]
        case other:
            raise GuestError(f"template {template.name}: disk_model {other!r} is none of ide, virtio, virtio-scsi")
    return argv


def _backing(disk: Disk) -> dict[str, Any]:
    # Nobody writes an image of a repository in place, and not every parallel file system has the locks that
    # QEMU would take for each reader.
    return {
        "driver": disk.format,
        "read-only": True,
        "file": {"driver": "file", "filename": disk.path, "locking": "off", "read-only": True},
    }


def _seed(spec: QemuSpec) -> list[str]:
    if spec.paths.seed is None:
        return []
    file = {"driver": "file", "filename": spec.paths.seed, "locking": "off", "read-only": True}
    argv = ["-blockdev", _json({"driver": "raw", "node-name": "seed", "read-only": True, "file": file})]
    if spec.template.disk_model == "ide":
        return [*argv, "-device", "ide-cd,bus=ide.1,drive=seed,id=seed0"]
    return [*argv, "-device", _device(spec.template, "virtio-blk", _SEED_SLOT, drive="seed", id="seed0")]


def _boot(spec: QemuSpec) -> list[str]:
    boot = spec.template.boot
    if boot is None:
        return []
    argv = ["-kernel", boot.kernel]
    if boot.initrd is not None:
        argv += ["-initrd", boot.initrd]
    append = boot.append
    if spec.accel is Accel.TCG and "no_timer_check" not in append.split():
        # An emulated guest of a busy host misses the ticks that this check counts, and panics: "IO-APIC + timer
        # doesn't work" (kernel: Documentation/admin-guide/kernel-parameters.txt).
        append = f"{append} no_timer_check".lstrip()
    return [*argv, "-append", append]


def _nics(spec: QemuSpec) -> list[str]:
    argv: list[str] = []
    if len(spec.nics) > _LAST_SLOT - _FIRST_NIC_SLOT + 1:
        raise GuestError(f"{spec.name} has {len(spec.nics)} network interfaces; a VM can have at most 23")
    for i, (nic, fd) in enumerate(zip(spec.nics, spec.fds.taps, strict=True)):
        argv += ["-netdev", f"tap,id=net{i},fd={fd}"]
        properties = {"netdev": f"net{i}", "id": f"nic{i}", "mac": nic.mac}
        model = spec.template.nic_model
        if model.startswith("virtio-net"):
            # No boot over the network: the option ROM would cost each boot a probe. (Q35's firmware reads it.)
            properties |= {"host_mtu": str(nic.mtu), "romfile": ""}
            model = "virtio-net"
        argv += ["-device", _device(spec.template, model, _FIRST_NIC_SLOT + i, **properties)]
    return argv


def _has_isa(template: VmTemplate) -> bool:
    base = template.machine_type.split(",")[0]
    return base in {"q35", "pc"} or base.startswith(("pc-q35", "pc-i440fx"))


def _device(template: VmTemplate, model: str, slot: int, **properties: str) -> str:
    """A device at its fixed slot, or on the virtio-mmio bus of a machine without PCI."""
    if template.machine_type.split(",")[0] == "microvm":
        properties.pop("romfile", None)
        return _options(f"{model}-device", **properties)
    name = f"{model}-pci" if model.startswith("virtio-") else model
    express = "q35" in template.machine_type or template.machine_type.startswith("virt")
    bus = "pcie.0" if express else "pci.0"
    return _options(name, bus=bus, addr=f"{slot:#x}", **properties)


def _options(name: str, **properties: str) -> str:
    # QEMU's own quoting: a comma within a value is written twice.
    return ",".join([name, *(f"{key}={value.replace(',', ',,')}" for key, value in properties.items())])


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
