# SPDX-License-Identifier: Apache-2.0
"""PCI devices handed to VMs: bound to vfio-pci for a job, and back to the host's driver afterwards.

By the files of the kernel's Documentation/ABI/testing/sysfs-bus-pci (bind, unbind, driver_override, drivers_probe) and
Documentation/driver-api/vfio.rst (IOMMU groups, /dev/vfio/GROUP).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pvc.errors import HostError, JobError
from pvc.model.host import PciDevice

VFIO = "vfio-pci"
_NODE_S = 2.0
_POLL_S = 0.02


def _write(path: Path, text: str) -> None:
    # sysfs wants a value in one write; truncating means nothing to it.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


@dataclass(frozen=True)
class Bus:
    """Where the kernel shows its PCI bus and VFIO's device nodes; tests have a kernel of their own behind it."""

    pci: Path = Path("/sys/bus/pci")
    nodes: Path = Path("/dev/vfio")
    write: Callable[[Path, str], None] = field(default=_write)
    open: Callable[[Path], int] = field(default=_open)

    def device(self, address: str) -> Path:
        """The directory of a device."""
        return self.pci / "devices" / address

    def driver(self, address: str) -> str | None:
        """The driver that a device is bound to."""
        try:
            return os.path.basename(os.readlink(self.device(address) / "driver"))
        except OSError:
            return None

    def is_held(self, group: int) -> bool:
        """Whether any process has a group open, or a device of it: the kernel lets one have it at a time."""
        try:
            os.close(self.open(self.nodes / str(group)))
        except OSError as err:
            return err.errno == errno.EBUSY
        return False


def read_device(address: str, bus: Bus | None = None) -> PciDevice | None:
    """What the kernel says of a device; None: it is not there."""
    bus = bus or Bus()
    place = bus.device(address)
    if not place.is_dir():
        return None
    group: int | None = None
    others: list[tuple[str, str | None]] = []
    with suppress(OSError, ValueError):
        group = int(os.path.basename(os.readlink(place / "iommu_group")))
        members = sorted(entry.name for entry in (place / "iommu_group" / "devices").iterdir())
        others = [(each, bus.driver(each)) for each in members if each != address]
    return PciDevice(bus.driver(address), group, tuple(others))


def bind(address: str, group: int, uid: int, gid: int, bus: Bus | None = None) -> None:
    """Give a device to vfio-pci, and its group to a user. Again is fine.

    :raise HostError: there is no vfio-pci, or it does not take the device.
    """
    bus = bus or Bus()
    if not (bus.pci / "drivers" / VFIO).is_dir():
        raise HostError(f"cannot bind {address}: the kernel has no driver {VFIO}", hint=f"modprobe {VFIO}")
    try:
        bus.write(bus.device(address) / "driver_override", VFIO)
        if bus.driver(address) not in (None, VFIO):
            bus.write(bus.device(address) / "driver" / "unbind", address)
        if bus.driver(address) is None:
            bus.write(bus.pci / "drivers_probe", address)
    except OSError as err:
        raise HostError(f"cannot bind {address} to {VFIO}") from err
    if bus.driver(address) != VFIO:
        raise HostError(f"{address} is at driver {bus.driver(address) or 'none'}, not at {VFIO}")
    node = bus.nodes / str(group)
    deadline = time.monotonic() + _NODE_S
    while not node.exists():
        if time.monotonic() > deadline:
            raise HostError(f"there is no {node}", hint="is the IOMMU on? dmesg tells")
        time.sleep(_POLL_S)
    try:
        # QEMU 7.2 opens the group by its path; it takes no descriptor (hw/vfio/common.c, vfio_get_group).
        os.chown(node, uid, gid)
        node.chmod(0o600)
    except OSError as err:
        raise HostError(f"cannot give {node} to uid {uid}") from err


def release(address: str, group: int, driver: str, bus: Bus | None = None) -> None:
    """Give a device back to the host's ``driver``. Absent is fine: it may have been taken out.

    :raise JobError: a process of the user's has it still.
    :raise HostError: the driver does not take it.
    """
    bus = bus or Bus()
    place = bus.device(address)
    if not place.is_dir():
        return
    node = bus.nodes / str(group)
    with suppress(OSError):
        # Other devices of the group may keep the node; it is root's again.
        os.chown(node, 0, 0)
    # A process of another job may have it (SCM_RIGHTS): taking it away would wait for that one's end.
    if bus.driver(address) == VFIO and bus.is_held(group):
        raise JobError(f"{address} is still held by a process of the user who had it", hint=f"fuser -v {node}")
    try:
        bus.write(place / "driver_override", "\n")
        if bus.driver(address) == driver:
            return
        if bus.driver(address) is not None:
            bus.write(place / "driver" / "unbind", address)
        bus.write(bus.pci / "drivers" / driver / "bind", address)
    except OSError as err:
        raise HostError(f"cannot bind {address} to {driver} again", hint=f"modprobe {driver}") from err
    if bus.driver(address) != driver:
        raise HostError(f"{address} is at driver {bus.driver(address) or 'none'}, not at {driver} again")
