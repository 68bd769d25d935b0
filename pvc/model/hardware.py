# SPDX-License-Identifier: Apache-2.0
"""A virtual machine as its guest sees it: devices at their slots, memory, firmware, CPU.

A value without paths and descriptors: it is the same on each node and at each start, so it can be kept and compared.
What must be equal for a guest's memory and devices to be taken up by another QEMU is all in here (QEMU's
docs/devel/migration: same machine, same devices at the same places).
"""

from __future__ import annotations

from dataclasses import dataclass

from pvc.model.vm import Accel


@dataclass(frozen=True)
class GuestMemory:
    """``pages``: the size of huge pages, "": usual ones; ``shared``: other processes map it, too."""

    mib: int
    shared: bool = False
    pages: str = ""


@dataclass(frozen=True)
class DiskDevice:
    """A disk. Its ``name`` is QEMU's: disk0 is the image's, seed0 the seed, then disk1, disk2, ..., drive1, drive2, ...

    ``place`` is a slot of the root bus on ``bus`` virtio, and a unit of the controller on scsi; ide's are fixed.
    ``thread``: it has an iothread of its own. ``shared``: other machines write to it at the same time.
    """

    name: str
    bus: str  # virtio | scsi | ide | sata
    place: int
    serial: str = ""
    cache: str = "unsafe"
    discard: bool = True
    aio: str = "threads"
    thread: bool = False
    shared: bool = False


@dataclass(frozen=True)
class ShareDevice:
    """A directory of the host; ``number`` is its place in the template."""

    number: int
    slot: int
    type: str  # 9p | virtiofs
    tag: str
    read_only: bool


@dataclass(frozen=True)
class NicDevice:
    """``boot``: when the firmware tries it, 0: never."""

    slot: int
    model: str  # virtio-net or QEMU's name of another one
    mac: str
    mtu: int
    boot: int = 0


@dataclass(frozen=True)
class HostDevice:
    """A PCI device of the node, at a slot of the guest's root bus."""

    slot: int
    address: str


@dataclass(frozen=True)
class Hardware:
    """All that a guest has. ``bus`` is the root bus, "": there is none, devices are found over virtio-mmio.

    ``cpu`` is a model with features in QEMU's words, ``screen`` the protocol that shows it, "": it has none. ``ports``
    are those of virtio-serial, by name. ``custom_args`` are the template's, which may add anything.
    """

    program: str
    machine: str
    bus: str
    accel: Accel
    cpu: str
    cpus: int
    memory: GuestMemory
    firmware: str = "bios"  # bios | uefi
    smm: bool = False  # system management mode: what Secure Boot rests on
    panic: bool = False  # a device by which a panicked guest is no silent, running one
    tpm: bool = False
    screen: str = ""  # "" | vnc | spice
    scsi: bool = False
    disks: tuple[DiskDevice, ...] = ()
    shares: tuple[ShareDevice, ...] = ()
    nics: tuple[NicDevice, ...] = ()
    devices: tuple[HostDevice, ...] = ()
    ports: tuple[str, ...] = ()
    custom_args: tuple[str, ...] = ()

    @property
    def threads(self) -> tuple[str, ...]:
        """Whose iothreads there are, in libvirt's order: the image's disk, the scsi controller, more disks."""
        own = [each.name for each in self.disks if each.thread]
        first = [name for name in own if name == "disk0"]
        return (*first, *(["scsi0"] if self.scsi else []), *(name for name in own if name != "disk0"))
