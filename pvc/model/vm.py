# SPDX-License-Identifier: Apache-2.0
"""VMs: what templates and images say of them, and how far each has come."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pvc.model.drive import PersistentDrive

_CPU_FLAG = re.compile(r"[+-][a-z0-9._-]+|[a-z0-9._-]+=(?:on|off)")


class Accel(StrEnum):
    """How QEMU runs a guest's instructions; AUTO is KVM where a probe guest really ran, else TCG."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Phase(StrEnum):
    """How far a VM has come, in this order; PAUSED leads back, FAILED and STOPPED to a new start only."""

    WAITING = "waiting"  # nothing done yet
    NETWORK = "network"  # the node's share of the network is there, taps are in hand
    BOOTING = "booting"  # QEMU runs
    REACHABLE = "reachable"  # ssh answered with its banner
    PAUSED = "paused"  # its processors stand still; ``detail`` says why
    STOPPED = "stopped"  # ended on request
    FAILED = "failed"  # ended by itself, or never started; ``detail`` says why


ENDED = (Phase.FAILED, Phase.STOPPED)


class Order(StrEnum):
    """What may be asked of single VMs of a running cluster."""

    RESET = "reset"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    START = "start"


# What dump-guest-memory of QEMU writes; makedumpfile's formats leave out pages of zeros.
DUMP_FORMATS = ("elf", "kdump-zlib", "kdump-lzo", "kdump-snappy")


class Restart(StrEnum):
    """When a VM that ended by itself is started again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"  # also after its guest powered itself off


@dataclass(frozen=True)
class DiskFile:
    """A file that disks read from, on a file system that every node sees."""

    path: str
    format: str


@dataclass(frozen=True)
class Disk:
    """A base image on a file system that every node sees; ``size`` is the guest's, in bytes.

    ``below``: the files that it rests on, lowest first. ``image``: where it is from, as "REPOSITORY:NAME@REVISION".
    """

    path: str
    format: str
    size: int
    below: tuple[DiskFile, ...] = ()
    image: str = ""

    @property
    def files(self) -> tuple[DiskFile, ...]:
        """All that must be read, lowest first."""
        return (*self.below, DiskFile(self.path, self.format))


@dataclass(frozen=True)
class SavedDisk:
    """A disk of a running VM, for whoever saves it: number 0 is the image's, the others are the template's ``disks``.

    ``size`` is the guest's, in bytes; ``image`` is what it started from, "": an empty disk.
    """

    number: int
    size: int
    image: str
    path: str


@dataclass(frozen=True)
class ExtraDisk:
    """A disk besides the image's, new for each VM; ``base`` is what it starts from, None: it is empty."""

    base: Disk | None
    size: int
    bus: str = "virtio"  # virtio | scsi
    cache: str = "unsafe"
    discard: bool = True
    iothread: bool = False
    aio: str = "threads"  # threads | native | io_uring


@dataclass(frozen=True)
class Firmware:
    """UEFI firmware on a node: its code, and the VM's own copy of its variables; ``smm``: it needs that mode."""

    code: str
    variables: str
    format: str = "raw"
    smm: bool = False


@dataclass(frozen=True)
class Mount:
    """A directory of the host in a guest; ``tag`` is its name there, "": any."""

    source: str
    target: str
    read_only: bool = False
    tag: str = ""
    type: str = "9p"  # 9p | virtiofs


@dataclass(frozen=True)
class Hooks:
    """Programs of the job's owner around a VM's life, with their arguments, (): none; each has ``timeout_s``."""

    before_start: tuple[str, ...] = ()
    reachable: tuple[str, ...] = ()
    before_stop: tuple[str, ...] = ()
    after_stop: tuple[str, ...] = ()
    timeout_s: int = 60

    @property
    def commands(self) -> dict[str, tuple[str, ...]]:
        """By the names that they have in templates."""
        return {
            "before-start": self.before_start,
            "reachable": self.reachable,
            "before-stop": self.before_stop,
            "after-stop": self.after_stop,
        }


NO_HOOKS = Hooks()


# The command line of a kernel that comes without one: a root file system on the first disk's first partition.
KERNEL_APPEND = "console=ttyS0 root=/dev/vda1"


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
    instance_id: str | None = None  # None: a new one for each VM
    machine_type: str = "q35"
    cpu_model: str = "auto"  # auto: host with KVM, EMULATED_CPU with TCG
    nic_model: str = "virtio-net"
    disk_model: str = "virtio"
    disk_cache: str = "unsafe"
    disk_discard: bool = True
    disk_iothread: bool = True
    disk_aio: str = "threads"
    disks: tuple[ExtraDisk, ...] = ()
    drives: tuple[PersistentDrive, ...] = ()
    firmware: str = "bios"  # bios | uefi | uefi-secure
    tpm: str = ""  # "": none, 2.0
    hugepages: str = ""  # "": none, 2M, 1G
    mounts: tuple[Mount, ...] = ()
    qemu_bin: str = "qemu-system-x86_64"
    custom_args: tuple[str, ...] = ()
    restart: Restart = Restart.NEVER
    remote_display: str = "none"  # none | vnc | spice
    hypervisor: str = "qemu"  # qemu | libvirt
    hooks: Hooks = NO_HOOKS


# All that QEMU emulates but `rep movsb` for copies and clears: a byte at a time costs an emulator most.
EMULATED_CPU = "max,erms=off,fsrm=off"


def find_libvirt_problems(
    *,
    machine_type: str,
    cpu_model: str,
    custom_args: Sequence[str],
) -> list[tuple[str, str]]:
    """What a VM cannot have through libvirt: the template's key and why."""
    found = []
    if machine_type.partition(",")[0] == "microvm":
        found.append(("machine-type", "libvirt has no microvm"))
    elif "," in machine_type:
        found.append(("machine-type", "libvirt takes no options of the machine"))
    odd = [flag for flag in cpu_model.split(",")[1:] if not _CPU_FLAG.fullmatch(flag)]
    if odd:
        found.append(("cpu-model", f"libvirt has features of a CPU, as +avx2 or avx2=off, but not {', '.join(odd)}"))
    if any(word.startswith(("-sandbox", "-mon", "-qmp", "-S")) for word in custom_args):
        found.append(("custom-args", "with libvirt, QEMU's sandbox and monitors are libvirt's own"))
    return found


def has_disks(templates: Mapping[Any, VmTemplate]) -> bool:
    """Whether some have disks that can be saved."""
    return any(template.disk is not None or template.disks for template in templates.values())


def needs_libvirt(templates: Mapping[Any, VmTemplate]) -> bool:
    """Whether libvirt runs some of them."""
    return any(template.hypervisor == "libvirt" for template in templates.values())


@dataclass(frozen=True)
class AgentStatus:
    """The agent in a guest; ``problem`` is why it does not answer, ``since`` seconds since the epoch."""

    connected: bool = False
    release: str = ""
    since: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class GuestLoad:
    """How busy a guest is, as it says itself: its load average of one minute, memory in MiB, seconds since its boot."""

    load1: float
    memory_used_mib: int
    memory_total_mib: int
    uptime_s: int


@dataclass(frozen=True)
class CloudInit:
    """How a guest's cloud-init got on, as it says itself; ``finished``: all that it does at a boot is done."""

    finished: bool
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


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
    ssh_by_owner: bool = False  # only the job's owner reaches that port, and only on the node itself
    restarts: int = 0  # how often it was started again because its template says so
    last_words: tuple[str, ...] = ()  # of a failed VM: the last lines of its console
    libvirt_uri: str | None = None  # of the job owner's libvirt that runs it, on its node
    since: float | None = None  # when the phase began
    hint: str | None = None  # what its owner may do about ``detail``
    agent: AgentStatus = AgentStatus()
    load: GuestLoad | None = None  # not the supervisor's: who shows it asks the agents
    cloud_init: CloudInit | None = None  # neither; None also where a guest has no cloud-init


@dataclass(frozen=True)
class OrderResult:
    """What became of an order to one VM, and how the VM is now; ``error`` None: it was carried out.

    ``exit_code`` is that of the error's class.
    """

    rank: int
    name: str
    node: str
    phase: Phase | None  # None: nobody knows
    detail: str = ""
    error: str | None = None
    hint: str | None = None
    exit_code: int | None = None
