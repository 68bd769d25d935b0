"""VMs: what templates and images say of them, and how far each has come."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Accel(StrEnum):
    """How QEMU runs a guest's instructions; AUTO is KVM where a probe guest really ran, else TCG."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Phase(StrEnum):
    """How far a VM has come, in this order; FAILED and STOPPED end it."""

    WAITING = "waiting"  # nothing done yet
    NETWORK = "network"  # the node's share of the network is there, taps are in hand
    BOOTING = "booting"  # QEMU runs
    REACHABLE = "reachable"  # ssh answered with its banner
    STOPPED = "stopped"  # ended on request
    FAILED = "failed"  # ended by itself, or never started; ``detail`` says why


@dataclass(frozen=True)
class Disk:
    """A base image on a file system that every node sees; ``size`` is the guest's, in bytes."""

    path: str
    format: str
    size: int


@dataclass(frozen=True)
class DirectBoot:
    """A kernel given to QEMU instead of a boot loader in the image."""

    kernel: str
    initrd: str | None
    append: str


@dataclass(frozen=True)
class VmTemplate:
    """A template with its image resolved: all that a supervisor needs to start a VM."""

    name: str
    disk: Disk | None
    boot: DirectBoot | None
    resource_set: str
    user_data: str | None = None  # the user's cloud-config, verbatim
    machine_type: str = "q35"
    cpu_model: str = "auto"  # auto: host with KVM, max with TCG
    nic_model: str = "virtio-net"
    disk_model: str = "virtio"
    disk_cache: str = "unsafe"
    qemu_bin: str = "qemu-system-x86_64"
    custom_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class VmStatus:
    """What a supervisor knows of one VM; times are seconds since the epoch, None: not yet."""

    rank: int
    name: str
    template: str
    node: str
    phase: Phase
    cpus: int
    memory_mib: int
    addresses: tuple[str, ...]
    ssh_host: str | None  # node address and port that lead to the VM's port 22
    ssh_port: int | None
    accel: str
    pinned: tuple[int, ...]  # host CPU of each vCPU; empty: not pinned
    started: float | None
    reachable: float | None
    detail: str = ""
